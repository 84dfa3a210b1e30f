"""Top-1 accuracy of an engine: what a user of the deployed file would see."""

import numpy as np
from numpy.typing import NDArray

from prune2deploy.engines.engine import Array, BuiltEngine
from prune2deploy.engines.parity import filled_batch, run_for_outputs
from prune2deploy.errors import InputError
from prune2deploy.evaluation import EvaluationSet
from prune2deploy.progress import SILENT, Progress

CLASSES_OUTPUT = "classes"
"""What exported files call the output that holds classes rather than their scores."""


def engine_accuracy(
    built: BuiltEngine, evaluation: EvaluationSet, batch: int, *, progress: Progress = SILENT
) -> float | None:
    """Share of the evaluation set's labels that the engine names, in [0, 1]; None without labels.

    Raises:
        InputError: the engine gives no classes.
    """
    right = engine_answers(built, evaluation, batch, progress=progress)
    return None if right is None else float(right.mean())


def engine_answers(
    built: BuiltEngine, evaluation: EvaluationSet, batch: int, *, progress: Progress = SILENT
) -> NDArray[np.bool_] | None:
    """Whether the engine names the label of each input of the evaluation set, in its order; None without labels.

    All labelled inputs are run in batches of ``batch``. The last one is filled up with repeated inputs, whose
    outputs are not counted, because an engine may have been built for that size alone. Shape: -> (labels,).

    Raises:
        InputError: the engine gives no classes.
    """
    labels = evaluation.labels
    if labels is None or len(labels) == 0:
        return None
    right = np.zeros(len(labels), dtype=np.bool_)
    with progress.task("Accuracy through the engine", total=len(labels)) as task:
        for first in range(0, len(labels), batch):
            wanted = labels[first : first + batch]
            named = predicted_classes(built, filled_batch(evaluation.inputs, first, len(wanted), batch))
            right[first : first + batch] = named[: len(wanted)] == wanted
            task.advance(len(wanted))
    return right


def predicted_classes(built: BuiltEngine, inputs: Array) -> NDArray[np.int64]:
    """The class that an engine names for each input: the first of its ``classes``, else that of its largest score.

    Shape: (N, ...) -> (N,). Files with ``--top-k`` have an output ``classes``, in order of their scores.

    Raises:
        InputError: the outputs are neither class scores (N, classes) nor classes.
    """
    outputs = run_for_outputs(built, inputs)
    if CLASSES_OUTPUT in outputs:
        return outputs[CLASSES_OUTPUT][:, 0].astype(np.int64)
    scores = outputs[built.outputs[0].name]
    if scores.ndim != 2:
        raise InputError(f"outputs of shape {scores.shape} are not class scores (N, classes)")
    best: NDArray[np.int64] = scores.argmax(axis=1)
    return best
