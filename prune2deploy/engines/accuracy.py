"""Top-1 accuracy of an engine: what a user of the deployed file would see."""

from prune2deploy.engines.engine import BuiltEngine
from prune2deploy.engines.parity import filled_batch, run_once
from prune2deploy.errors import InputError
from prune2deploy.evaluation import EvaluationSet
from prune2deploy.progress import SILENT, Progress


def engine_accuracy(
    built: BuiltEngine, evaluation: EvaluationSet, batch: int, *, progress: Progress = SILENT
) -> float | None:
    """Share of the evaluation set's labels that the engine's largest output names, in [0, 1]; None without labels.

    All labelled inputs are run in batches of ``batch``. The last one is filled up with repeated inputs, whose
    outputs are not counted, because an engine may have been built for that size alone.

    Raises:
        InputError: the outputs are not (N, classes).
    """
    labels = evaluation.labels
    if labels is None or len(labels) == 0:
        return None
    right = 0
    with progress.task("Accuracy through the engine", total=len(labels)) as task:
        for first in range(0, len(labels), batch):
            wanted = labels[first : first + batch]
            outputs = run_once(built, filled_batch(evaluation.inputs, first, len(wanted), batch))
            if outputs.ndim != 2:
                raise InputError(f"outputs of shape {outputs.shape} are not class scores (N, classes)")
            right += int((outputs[: len(wanted)].argmax(axis=1) == wanted).sum())
            task.advance(len(wanted))
    return right / len(labels)
