"""CIFAR-10 and CIFAR-100 from the files that their authors publish, read by torchvision."""

from pathlib import Path

import torch
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.transforms.v2 import functional

from prune2deploy.data.in_memory import InMemorySamples, SmallImageAugmentation
from prune2deploy.data.request import DataRequest
from prune2deploy.data.splits import DataSplits, Normalization, check_input_shape
from prune2deploy.errors import DataError

_NATIVE_SHAPE = (3, 32, 32)
_AUGMENTATION = SmallImageAugmentation(padding=4, flip=True)
_NORMALIZATIONS = {
    CIFAR10: Normalization(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
    CIFAR100: Normalization(mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762)),
}


def cifar10(request: DataRequest) -> DataSplits:
    """50,000 images to train on, 10,000 to evaluate on, 10 classes; the folder holds ``cifar-10-batches-py``."""
    return _cifar(CIFAR10, request)


def cifar100(request: DataRequest) -> DataSplits:
    """50,000 images to train on, 10,000 to evaluate on, 100 classes; the folder holds ``cifar-100-python``."""
    return _cifar(CIFAR100, request)


def _cifar(kind: type[CIFAR10], request: DataRequest) -> DataSplits:
    shape = request.input_shape or _NATIVE_SHAPE
    check_input_shape(shape, name=request.name)
    constants = (request.normalization or _NORMALIZATIONS[kind]).for_channels(shape[0])
    folder = Path(request.place).expanduser()
    root = folder.parent if folder.name == kind.base_folder else folder
    train_images, train_labels, class_names = _read(kind, root, train=True, channels=shape[0], name=request.name)
    evaluation_images, evaluation_labels, _ = _read(kind, root, train=False, channels=shape[0], name=request.name)

    def samples(images: Tensor, labels: Tensor, augmentation: SmallImageAugmentation | None = None) -> InMemorySamples:
        return InMemorySamples(
            images=images, labels=labels, input_shape=shape, normalization=constants, augmentation=augmentation
        )

    return DataSplits(
        name=request.name,
        train=samples(train_images, train_labels, _AUGMENTATION if request.augment else None),
        evaluation=samples(evaluation_images, evaluation_labels),
        calibration=samples(train_images, train_labels),
        class_names=class_names,
        input_shape=shape,
        normalization=constants,
    )


def _read(
    kind: type[CIFAR10], root: Path, *, train: bool, channels: int, name: str
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Torchvision compares digests before it unpickles, so that nothing but the published files is read."""
    try:
        dataset = kind(root=root, train=train, download=False)
    except (RuntimeError, OSError) as error:
        raise DataError(
            f"{root} does not hold {kind.base_folder} as published, or it is damaged",
            where=name,
            hint=f"unpack {kind.filename} there",
        ) from error
    images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
    if channels == 1:
        images = functional.rgb_to_grayscale(images)
    return images, torch.tensor(dataset.targets, dtype=torch.int64), tuple(dataset.classes)
