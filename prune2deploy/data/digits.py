"""The 8x8 handwritten digits that come with scikit-learn: real data without a download."""

import torch
from sklearn.datasets import load_digits

from prune2deploy.data.in_memory import InMemorySamples, SmallImageAugmentation
from prune2deploy.data.request import DataRequest
from prune2deploy.data.splits import DataSplits, Normalization, check_input_shape
from prune2deploy.data.stratify import stratified_split

EVALUATION_PER_CLASS = 50
_BRIGHTEST = 16
_NATIVE_SHAPE = (1, 8, 8)
_NORMALIZATION = Normalization(mean=(0.3061,), std=(0.3766,))


def digits(request: DataRequest) -> DataSplits:
    """1,297 images to train on, 500 to evaluate on, 50 of each class; 1x8x8 unless the request says otherwise.

    Augmentation shifts by up to one pixel; a mirrored digit is no digit.
    """
    shape = request.input_shape or _NATIVE_SHAPE
    check_input_shape(shape, name=request.name)
    constants = (request.normalization or _NORMALIZATION).for_channels(shape[0])
    bundle = load_digits()
    images = torch.from_numpy(bundle.images / _BRIGHTEST).to(torch.float32).unsqueeze(1)
    labels = torch.from_numpy(bundle.target).to(torch.int64)
    train, evaluation = (
        torch.from_numpy(part)
        for part in stratified_split(bundle.target, name=request.name, per_class=EVALUATION_PER_CLASS)
    )

    def samples(chosen: torch.Tensor, augmentation: SmallImageAugmentation | None = None) -> InMemorySamples:
        return InMemorySamples(
            images=images[chosen],
            labels=labels[chosen],
            input_shape=shape,
            normalization=constants,
            augmentation=augmentation,
        )

    return DataSplits(
        name=request.name,
        train=samples(train, SmallImageAugmentation(padding=1, flip=False) if request.augment else None),
        evaluation=samples(evaluation),
        calibration=samples(train),
        class_names=tuple(str(digit) for digit in range(10)),
        input_shape=shape,
        normalization=constants,
    )
