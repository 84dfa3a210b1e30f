"""Splitting off an evaluation set where the data brings none: always the same one, every class in it."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from prune2deploy.errors import DataError

EVALUATION_FRACTION = 0.2
_SEED = 0


def stratified_split(
    labels: Sequence[int] | NDArray[np.int64],
    *,
    name: str,
    per_class: int | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices for training and for evaluation, sorted.

    Of every class ``per_class`` samples, or a fifth (at least one), are set aside. The choice depends on the labels
    alone: ``RandomState`` draws the same in every NumPy version.

    Raises:
        DataError: a class has too few samples to be in both.
    """
    every = np.asarray(labels, dtype=np.int64)
    generator = np.random.RandomState(_SEED)
    chosen = []
    for label in np.unique(every):
        members = np.flatnonzero(every == label)
        count = per_class if per_class is not None else max(1, round(len(members) * EVALUATION_FRACTION))
        if count >= len(members):
            raise DataError(
                f"class number {label} has {len(members)} samples, too few to train and to evaluate on",
                where=name,
                hint="add samples, remove the class, or bring a split of your own (train and val)",
            )
        chosen.append(generator.permutation(members)[:count])
    evaluation = np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, dtype=np.int64)
    train = np.setdiff1d(np.arange(len(every)), evaluation, assume_unique=True)
    return train, evaluation
