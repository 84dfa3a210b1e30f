"""Pictures of any size, read from where they lie and preprocessed one by one."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from prune2deploy.data.request import DataRequest
from prune2deploy.data.splits import (
    IMAGENET_NORMALIZATION,
    DataSplits,
    Normalization,
    Samples,
    Shape,
    check_input_shape,
)
from prune2deploy.data.stratify import stratified_split
from prune2deploy.errors import DataError

_DEFAULT_SIZE = (224, 224)
_PEEKED_PICTURES = 16
_LARGEST_SMALL_SIDE = 64
_EVALUATION_MARGIN = 256 / 224


class PictureSource(Protocol):
    """Somewhere that pictures can be read from, picklable."""

    @property
    def labels(self) -> Sequence[int]:
        """The label of each picture, known without reading it."""

    def read(self, index: int) -> Image.Image:
        """One picture.

        Raises:
            DataError: it cannot be read; the message names it.
        """


class PictureSamples(Samples):
    """Some pictures of a source, with the channels of ``input_shape`` and preprocessed by ``transform``."""

    def __init__(
        self, source: PictureSource, indices: NDArray[np.int64], *, channels: int, transform: v2.Transform
    ) -> None:
        self._source = source
        self._indices = indices
        self._mode = "L" if channels == 1 else "RGB"
        self._transform = transform

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        number = int(self._indices[index])
        picture = self._source.read(number).convert(self._mode)
        image: Tensor = self._transform(functional.pil_to_tensor(picture))
        return image, int(self._source.labels[number])


def picture_splits(
    request: DataRequest,
    *,
    train: PictureSource,
    evaluation: PictureSource | None,
    class_names: tuple[str, ...],
) -> DataSplits:
    """Splits of pictures in the usual preprocessing; without ``evaluation`` a fifth of ``train`` is set aside for it.

    Without an input shape it is that of the pictures where a sample of them agrees, else 3x224x224. Where pictures
    have that size, they are used whole. Otherwise evaluation resizes to 256/224 of it and takes the centre.
    Augmentation: a crop of random area and a mirroring; for pictures of up to 64 pixels, CIFAR's shift and mirroring.
    """
    if evaluation is None:
        train_indices, evaluation_indices = stratified_split(train.labels, name=request.name)
    else:
        train_indices, evaluation_indices = np.arange(len(train.labels)), np.arange(len(evaluation.labels))
    native = _shape_of_pictures(train, train_indices)
    shape = request.input_shape or native or (3, *_DEFAULT_SIZE)
    check_input_shape(shape, name=request.name)
    constants = (request.normalization or IMAGENET_NORMALIZATION).for_channels(shape[0])
    whole = native is not None and native[1:] == shape[1:]
    plain = _evaluation_transform(shape, constants, whole=whole)
    augmented = _training_transform(shape, constants, whole=whole) if request.augment else plain
    return DataSplits(
        name=request.name,
        train=PictureSamples(train, train_indices, channels=shape[0], transform=augmented),
        evaluation=PictureSamples(evaluation or train, evaluation_indices, channels=shape[0], transform=plain),
        calibration=PictureSamples(train, train_indices, channels=shape[0], transform=plain),
        class_names=class_names,
        input_shape=shape,
        normalization=constants,
    )


def check_picture(picture: Image.Image, *, where: str) -> Image.Image:
    """The picture itself, if its pixels are of a kind that can be brought to 8 bits without losing their meaning.

    Raises:
        DataError: it has 16 or 32 bits a channel, whose range is unknown.
    """
    if picture.mode in ("I", "F") or picture.mode.startswith("I;"):
        raise DataError(
            f"has {picture.mode} pixels, of more than 8 bits", where=where, hint="convert the picture to 8 bits"
        )
    return picture


def _shape_of_pictures(source: PictureSource, indices: NDArray[np.int64]) -> Shape | None:
    """The shape that a few pictures, spread over all, have in common; None where they differ."""
    peeked = np.unique(np.linspace(0, len(indices) - 1, _PEEKED_PICTURES).astype(np.int64))
    pictures = [source.read(int(index)) for index in indices[peeked]]
    sizes = {picture.size for picture in pictures}
    if len(sizes) != 1:
        return None
    width, height = sizes.pop()
    return (1 if all(picture.mode in ("1", "L") for picture in pictures) else 3, height, width)


def _training_transform(shape: Shape, constants: Normalization, *, whole: bool) -> v2.Transform:
    size = shape[1:]
    if whole and max(size) <= _LARGEST_SMALL_SIDE:
        geometry: list[v2.Transform] = [v2.RandomCrop(size, padding=max(1, max(size) // 8))]
    else:
        geometry = [v2.RandomResizedCrop(size, antialias=True)]
    return v2.Compose([*geometry, v2.RandomHorizontalFlip(), *_to_input(constants)])


def _evaluation_transform(shape: Shape, constants: Normalization, *, whole: bool) -> v2.Transform:
    height, width = shape[1:]
    if whole:
        return v2.Compose(_to_input(constants))
    margin = [round(side * _EVALUATION_MARGIN) for side in (height, width)]
    resize = v2.Resize(margin[:1] if height == width else margin, antialias=True)
    return v2.Compose([resize, v2.CenterCrop((height, width)), *_to_input(constants)])


def _to_input(constants: Normalization) -> list[v2.Transform]:
    return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(constants.mean), list(constants.std))]
