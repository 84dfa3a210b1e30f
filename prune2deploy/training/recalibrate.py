"""Batch-norm statistics for a network that has just been cut."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, Dataset, Subset

from prune2deploy.errors import DataError
from prune2deploy.progress import SILENT, Progress
from prune2deploy.surgery.edited import EditedModule
from prune2deploy.training.device import placed, preferred_device
from prune2deploy.training.evaluate import dataset_size, evaluating
from prune2deploy.training.randomness import epoch_seed, own_randomness, seed_everything


@dataclass(frozen=True, slots=True, kw_only=True)
class Recalibration:
    """How many norms had their statistics renewed, from how many images. Both are 0 without batch norms."""

    norms: int
    images: int


def recalibrate_batchnorm(
    model: nn.Module,
    dataset: Dataset[tuple[Tensor, int]],
    *,
    images: int = 1024,
    batch_size: int = 128,
    seed: int = 0,
    progress: Progress = SILENT,
) -> Recalibration:
    """Replace all running statistics by averages over ``images`` random samples (fewer if the data set is smaller).

    Only the batch norms run in ``train`` mode: dropout stays off, so the statistics are those that inference will
    meet. Every batch is full and counts equally. Weights, training flags and momentum stay; the same seed gives the
    same statistics on the same device. A model without running statistics is left alone, and ``progress`` is told.
    Source: the cumulative average of ``torch.optim.swa_utils.update_bn``, which however turns dropout on.

    Raises:
        DataError: there are fewer than two images.
    """
    norm_count = model.batch_norm_count if isinstance(model, EditedModule) else len(_norms(model))
    if not norm_count:
        progress.note("the model has no batch-norm statistics to recalibrate")
        return Recalibration(norms=0, images=0)
    size = dataset_size(dataset)
    batch_size = min(batch_size, images, size)
    if batch_size < 2:
        raise DataError(
            f"batch-norm statistics need at least 2 images, there are {batch_size}", hint="pass other data with --data"
        )
    count = min(images, size) // batch_size * batch_size
    device = preferred_device()
    with own_randomness(device), evaluating(model), placed(model, device):
        seed_everything(epoch_seed(seed, 0))
        chosen = torch.randperm(size)[:count].tolist()
        loader = DataLoader(Subset(dataset, chosen), batch_size=batch_size, pin_memory=device.type == "cuda")
        averaging = model.averaging_statistics() if isinstance(model, EditedModule) else _averaging(model)
        with averaging as take, progress.task("recalibrating batch norms", total=len(loader)) as task:
            for batch, _ in loader:
                take(batch.to(device, non_blocking=True))
                task.advance()
    return Recalibration(norms=norm_count, images=count)


def _norms(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm) and module.running_mean is not None]


@contextmanager
def _averaging(model: nn.Module) -> Iterator[Callable[[Tensor], Any]]:
    """Start the statistics anew; yields what takes in one batch, each of equal weight."""
    norms = _norms(model)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    try:
        yield model
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
