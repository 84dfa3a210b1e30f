"""How good a model is on a data set."""

import math
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from prune2deploy.errors import DataError, ModelError
from prune2deploy.progress import SILENT, Progress
from prune2deploy.training.device import placed, preferred_device


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Top-1 ``accuracy`` in [0, 1] and mean cross-entropy ``loss`` (nat) over ``samples`` images."""

    accuracy: float
    loss: float
    samples: int


def evaluate(
    model: nn.Module,
    dataset: Dataset[tuple[Tensor, int]],
    *,
    batch_size: int = 256,
    workers: int = 0,
    accelerator: Accelerator | None = None,
    progress: Progress = SILENT,
) -> Evaluation:
    """Evaluate a model in ``eval`` mode without gradients; its training flags and device are restored.

    Samples are (C, H, W) float32 images with class numbers. With an ``accelerator``, which has prepared the model,
    each process evaluates its share and all get the whole result; without, this process evaluates everything.

    Raises:
        DataError: the data set is empty, or a label is no class of the model.
        ModelError: the model does not return class scores of shape (N, classes).
    """
    if dataset_size(dataset) == 0:
        raise DataError("the evaluation split is empty", hint="pass other data with --data")
    device = accelerator.device if accelerator is not None else preferred_device()
    processes = accelerator.num_processes if accelerator is not None else 1
    loader: Any = DataLoader(
        dataset,
        batch_size=math.ceil(batch_size / processes) * processes,
        num_workers=workers,
        pin_memory=device.type == "cuda",
    )
    if accelerator is not None:
        loader = accelerator.prepare_data_loader(loader)
    correct, loss, samples = 0, 0.0, 0
    with evaluating(model), placed(model, device), progress.task("evaluating", total=len(loader)) as task:
        for images, labels in loader:
            labels = labels.to(device, non_blocking=True)
            logits = checked_logits(model(images.to(device, non_blocking=True)), image_count=len(images))
            check_labels(labels, class_count=logits.shape[1])
            losses = functional.cross_entropy(logits.float(), labels, reduction="none")
            hits = logits.argmax(dim=1) == labels
            if accelerator is not None:
                hits, losses = accelerator.gather_for_metrics((hits, losses))
            correct += int(hits.sum())
            loss += float(losses.cpu().double().sum())
            samples += len(hits)
            task.advance()
    return Evaluation(accuracy=correct / samples, loss=loss / samples, samples=samples)


def dataset_size(dataset: Dataset[tuple[Tensor, int]]) -> int:
    """How many samples a data set holds.

    Raises:
        DataError: it cannot say, because it is a stream.
    """
    if not isinstance(dataset, Sized):
        raise DataError(
            f"{type(dataset).__name__} is a stream without a length",
            hint="pass a data set with __len__ and __getitem__",
        )
    return len(dataset)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """``eval`` mode without gradients; afterwards every module's training flag is what it was."""
    flags = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, flag in flags.items():
            module.training = flag


def checked_logits(logits: object, *, image_count: int) -> Tensor:
    """The same logits, known to be class scores. Shape: (image_count, classes).

    Raises:
        ModelError: they have another shape.
    """
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != image_count:
        found = f"a tensor of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelError(
            f"the model returns {found} for {image_count} images, where class scores (images, classes) are needed",
            hint="pass a classification model with --model",
        )
    return logits


def check_labels(labels: Tensor, *, class_count: int) -> None:
    """Refuse labels, shape (N,), that are no classes of the model; a GPU would die of them. Waits for the device.

    Raises:
        DataError: one is outside 0..class_count - 1.
    """
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= class_count:
        raise DataError(
            f"labels run from {low} to {high}, but the model has {class_count} classes",
            hint="fit the model to the data with ?num_classes=",
        )
