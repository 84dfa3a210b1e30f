"""Batches: the epochs of a training, the samples that policies score on, and each process's parts of them."""

from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from prune2deploy.training.evaluate import dataset_size
from prune2deploy.training.randomness import EpochOrder
from prune2deploy.training.recipe import TrainingRecipe

_SAMPLING = 1_000_003
"""Keeps the order of the samples unrelated to that of the epochs."""


def epoch_loader(
    accelerator: Accelerator, dataset: Dataset[tuple[Tensor, int]], recipe: TrainingRecipe, *, batch_size: int
) -> Any:
    """The loader of all epochs, each batch split over the processes; ``set_epoch`` chooses the order."""
    size = dataset_size(dataset)
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=EpochOrder(range(size), seed=recipe.seed),
        num_workers=recipe.workers,
        pin_memory=accelerator.device.type == "cuda",
        # A last batch of one image would give batch normalisation nothing to take a variance of.
        drop_last=size > batch_size and size % batch_size == 1,
    )
    return accelerator.prepare_data_loader(loader)


def sample_batches(
    accelerator: Accelerator,
    dataset: Dataset[tuple[Tensor, int]],
    recipe: TrainingRecipe,
    *,
    batch_size: int,
    images: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """This process's share of ``images`` random samples with labels, on the device, in parts as training takes them."""
    size = dataset_size(dataset)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(recipe.seed + _SAMPLING))[:images]
    for batch in DataLoader(Subset(dataset, order.tolist()), batch_size=batch_size):
        own = [values.tensor_split(accelerator.num_processes)[accelerator.process_index] for values in batch]
        for part, labels in parts(own[0], own[1], recipe.micro_batches):
            yield part.to(accelerator.device), labels.to(accelerator.device)


def parts(images: Tensor, labels: Tensor, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """A batch in at most ``count`` parts of nearly equal size, none of them empty."""
    count = max(1, min(count, len(images)))
    yield from zip(images.tensor_split(count), labels.tensor_split(count), strict=True)
