"""The evaluation set that goes beside the ONNX files: real inputs, labels, and what torch makes of them."""

import math
from collections.abc import Mapping, Sized
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from prune2deploy.errors import DataError, ModelError
from prune2deploy.evaluation import EvaluationSet
from prune2deploy.export.onnx_from_model import cpu_copy
from prune2deploy.export.passes.file_inputs import file_inputs, file_shape, network_inputs
from prune2deploy.export.passes.graph import GraphPasses
from prune2deploy.export.passes.outputs import check_top_k
from prune2deploy.export.reasons import reason_of
from prune2deploy.progress import SILENT, Progress

_BYTES_LIMIT = 512 * 2**20
_REFERENCE_BATCH = 16


def make_evaluation_set(
    models: Mapping[str, nn.Module],
    dataset: Dataset[Any] | None,
    *,
    input_shape: tuple[int, ...],
    images: int = 10_000,
    references: int = 64,
    seed: int = 0,
    passes: GraphPasses | None = None,
    progress: Progress = SILENT,
) -> EvaluationSet:
    """Collect inputs and labels, and run every variant on the first ``references`` of them.

    ``models`` maps a variant's name to its module. ``dataset`` is the evaluation split, whose samples are
    (normalised float image of ``input_shape``, int label): all of it, or a random ``images`` of it, and never
    more than 512 MB. The order is random, so that the first inputs cover all classes even where a data set is
    sorted by them. Without a data set the inputs are ``references`` standard normal images and the labels None.

    Inputs are stored in the form that files with ``passes`` take (``file_inputs``). References are what torch makes of
    these, rounded and resized as they are: probabilities with ``passes.softmax``, and with ``passes.top_k`` the best
    scores alone. They are computed on the CPU in evaluation mode; the models are left as they were.

    Raises:
        DataError: the data set is empty, or a sample is not what it should be.
        ModelError: a model cannot run on the inputs, gives several outputs, or gives NaN or infinity.
        InputError: ``passes.top_k`` is more than there are classes.
    """
    passes = passes or GraphPasses()
    rng = np.random.default_rng(seed)
    labels: NDArray[np.int64] | None
    if dataset is None:
        normalised, labels = rng.standard_normal((references, *input_shape), dtype=np.float32), None
    else:
        largest = max(4 * math.prod(input_shape), math.prod(file_shape(input_shape, passes)))
        fitting = min(images, max(1, _BYTES_LIMIT // largest))
        normalised, labels = _samples(dataset, input_shape, fitting, rng, progress)
    inputs = file_inputs(normalised, passes)
    seen = network_inputs(inputs[:references], passes, input_shape[1:])
    outputs = {}
    with progress.task("Reference outputs", total=len(models)) as task:
        for name, model in models.items():
            task.describe(name)
            outputs[name] = _reference(name, model, seen, passes)
            task.advance()
    return EvaluationSet(inputs=inputs, labels=labels, references=outputs)


def _samples(
    dataset: Dataset[Any],
    input_shape: tuple[int, ...],
    images: int,
    rng: np.random.Generator,
    progress: Progress,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    available = len(cast(Sized, dataset))
    if available == 0:
        raise DataError("the evaluation split is empty", where="--data")
    count = min(available, images)
    if count < available:
        progress.note(f"Accuracy of the exported files is measured on {count} of {available} evaluation images.")
    order = rng.permutation(available)[:count]
    inputs = np.empty((count, *input_shape), dtype=np.float32)
    labels = np.empty(count, dtype=np.int64)
    with progress.task("Evaluation inputs", total=count) as task:
        for row, index in enumerate(order):
            image, label = dataset[int(index)]
            if tuple(image.shape) != tuple(input_shape):
                raise DataError(
                    f"sample {index} has shape {tuple(image.shape)}, the model takes {tuple(input_shape)}",
                    where="--data",
                    hint="set the size with --input",
                )
            inputs[row] = np.asarray(image, dtype=np.float32)
            labels[row] = int(label)
            task.advance()
    if not np.isfinite(inputs).all():
        raise DataError("the evaluation split holds images with NaN or infinity", where="--data")
    return inputs, labels


def _reference(name: str, model: nn.Module, images: Tensor, passes: GraphPasses) -> NDArray[np.float32]:
    network = cpu_copy(model).float()
    batches = []
    with torch.inference_mode():
        for first in range(0, len(images), _REFERENCE_BATCH):
            try:
                returned = network(images[first : first + _REFERENCE_BATCH])
            except (MemoryError, torch.OutOfMemoryError):
                raise
            # The model's own code runs here, and may raise anything.
            except Exception as error:
                raise ModelError(f"cannot run on its inputs: {reason_of(error)}", where=name) from error
            output = _one_tensor(returned)
            if output is None:
                raise ModelError(
                    f"returns a {type(returned).__name__}, and parity can be proven for one output tensor",
                    where=name,
                    hint="wrap the model so that forward returns the tensor that is served",
                )
            batches.append(_finished(output, passes))
    result: NDArray[np.float32] = torch.cat(batches).float().numpy()
    if not np.isfinite(result).all():
        raise ModelError("gives NaN or infinity on its inputs", where=name, hint="check the weights of the checkpoint")
    return result


def _finished(output: Tensor, passes: GraphPasses) -> Tensor:
    """What is built in behind the network: its first output."""
    if passes.softmax:
        output = output.softmax(dim=1)
    if passes.top_k is None:
        return output
    check_top_k(passes.top_k, tuple(output.shape))
    return output.topk(passes.top_k, dim=1).values


def _one_tensor(returned: Any) -> Tensor | None:
    """The tensor itself, or the only one of a dict or tuple, as segmentation networks return it; else None."""
    leaves = torch.utils._pytree.tree_leaves(returned)
    return leaves[0] if len(leaves) == 1 and isinstance(leaves[0], Tensor) else None
