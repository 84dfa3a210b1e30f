"""Data of the user's own code, by import path."""

import inspect
from collections.abc import Callable, Sequence, Sized
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from prune2deploy.data.request import DataRequest
from prune2deploy.data.splits import DataSplits, Samples, Shape, class_names_from
from prune2deploy.errors import DataError, P2DError
from prune2deploy.user_code import import_object

_LARGEST_SCAN = 10_000
_CONTRACT = "return a DataSplits, or (train, evaluation) datasets of (float32 CxHxW tensor, integer label)"


class UserSamples(Samples):
    """A user's dataset, checked as it is read. Shape of each image: ``input_shape``."""

    def __init__(self, dataset: Dataset[Any], *, input_shape: Shape, class_count: int, name: str) -> None:
        self._dataset = dataset
        self._input_shape = input_shape
        self._class_count = class_count
        self._name = name

    def __len__(self) -> int:
        return len(cast(Sized, self._dataset))

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        where = f"{self._name}, sample {index}"
        image, label = _checked_sample(self._dataset[index], where=where)
        if tuple(image.shape) != self._input_shape:
            raise DataError(
                f"has shape {_text(image.shape)}, not {_text(self._input_shape)}",
                where=where,
                hint="give every image the shape that --input says",
            )
        if not 0 <= label < self._class_count:
            raise DataError(
                f"has label {label}, outside 0 to {self._class_count - 1}", where=where, hint="number classes from 0"
            )
        return image, label


def imported_data(request: DataRequest) -> DataSplits:
    """What ``package.module:factory`` returns.

    ``input_shape``, ``augment`` and ``normalization`` are passed on where the factory has arguments of these names.
    Class names are the dataset's ``classes``, else its distinct labels.

    Raises:
        DataError: the factory fails, or returns something else than ``DataSplits`` or two datasets.
    """
    place, input_shape = request.place, request.input_shape
    factory = import_object(place, error_type=DataError)
    if not callable(factory):
        raise DataError(f"is {type(factory).__name__}, which cannot be called", where=place, hint=_CONTRACT)
    offered = {"input_shape": input_shape, "augment": request.augment, "normalization": request.normalization}
    returned = _call(factory, offered, where=place)
    splits = returned if isinstance(returned, DataSplits) else _splits_of_pair(returned, name=request.name)
    if input_shape is not None and splits.input_shape != input_shape:
        raise DataError(
            f"gives images of {_text(splits.input_shape)}, but {_text(input_shape)} is asked for",
            where=request.name,
            hint="leave --input out, or let the factory take an argument input_shape",
        )
    return splits


def _call(factory: Callable[..., object], offered: dict[str, Any], *, where: str) -> object:
    try:
        parameters = inspect.signature(factory).parameters
        return factory(**{argument: value for argument, value in offered.items() if argument in parameters})
    except (P2DError, MemoryError):
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or ["no message"])[0]
        raise DataError(f"fails ({type(error).__name__}: {reason})", where=where, hint=_CONTRACT) from error


def _splits_of_pair(returned: object, *, name: str) -> DataSplits:
    if not (isinstance(returned, tuple | list) and len(returned) == 2):
        raise DataError(f"returns {type(returned).__name__}", where=name, hint=_CONTRACT)
    train, evaluation = returned
    for part, dataset in (("train", train), ("evaluation", evaluation)):
        if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
            raise DataError(
                f"{part} is {type(dataset).__name__}, not a dataset with a length", where=name, hint=_CONTRACT
            )
        if not len(dataset):
            raise DataError(f"{part} is empty", where=name, hint="give it samples")
    image, _ = _checked_sample(train[0], where=f"{name}, sample 0")
    channels, height, width = image.shape
    input_shape = (channels, height, width)
    class_names = _class_names(train, name=name)

    def samples(dataset: Dataset[Any]) -> UserSamples:
        return UserSamples(dataset, input_shape=input_shape, class_count=len(class_names), name=name)

    return DataSplits(
        name=name,
        train=samples(train),
        evaluation=samples(evaluation),
        calibration=samples(train),
        class_names=class_names,
        input_shape=input_shape,
    )


def _class_names(dataset: Any, *, name: str) -> tuple[str, ...]:
    """``classes`` of the dataset or of what it is a subset of, else its distinct labels, else those of its samples."""
    whole = dataset
    while isinstance(whole, Subset):
        whole = whole.dataset
    if classes := getattr(whole, "classes", None):
        return tuple(str(label) for label in classes)
    labels = _known_labels(whole)
    if labels is None:
        if len(whole) > _LARGEST_SCAN:
            raise DataError(
                f"does not say its classes, and has too many samples ({len(whole)}) to look at them all",
                where=name,
                hint="give the dataset an attribute 'classes', or return a DataSplits",
            )
        labels = [_checked_sample(whole[index], where=f"{name}, sample {index}")[1] for index in range(len(whole))]
    return class_names_from(range(max(labels) + 1))


def _known_labels(dataset: Any) -> Sequence[int] | None:
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) == 2:
        return [int(label) for label in dataset.tensors[1].tolist()]
    for attribute in ("targets", "labels"):
        if (found := getattr(dataset, attribute, None)) is not None:
            return [int(label) for label in found]
    return None


def _checked_sample(sample: Any, *, where: str) -> tuple[Tensor, int]:
    if not (isinstance(sample, tuple | list) and len(sample) == 2):
        raise DataError(f"is {type(sample).__name__}, not an image and a label", where=where, hint=_CONTRACT)
    image, label = sample
    if not (isinstance(image, Tensor) and image.dtype == torch.float32 and image.ndim == 3):
        found = f"{image.dtype} of shape {_text(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        raise DataError(f"its image is {found}", where=where, hint=_CONTRACT)
    try:
        return image, int(label)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"its label is {label!r}", where=where, hint=_CONTRACT) from error


def _text(shape: Sequence[int]) -> str:
    return "x".join(str(size) for size in shape)
