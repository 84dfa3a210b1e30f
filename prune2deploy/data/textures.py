"""Textures: a generated task that small networks do not get all right, in seconds an epoch.

Each image is the sum of a coarse and a fine grating in noise, each of one of ``ORIENTATIONS`` orientations; the class
is the sum of the two orientation numbers, modulo ``ORIENTATIONS``. Neither grating alone says anything of the class: a
network has to find both orientations and tell all pairs of them apart, and the more units it has for pairs, the more
it gets right. What could be learnt instead is random: phases, contrasts, frequencies (in a band for each grating), a
few degrees of the angle, place and extent of the window that each is seen through, and pixel noise. Gratings in a
Gaussian window are what the first layers of trained networks respond to (Gabor filters; Krizhevsky et al. 2012,
figure 3).
"""

import numpy as np
import torch
from numpy.typing import NDArray

from prune2deploy.data.in_memory import InMemorySamples
from prune2deploy.data.request import DataRequest
from prune2deploy.data.splits import DataSplits, Normalization, check_input_shape

ORIENTATIONS = 10
SIDE = 16
TRAINING_IMAGES = 4000
EVALUATION_IMAGES = 2000

_SEED = 20210
_CYCLES = ((1.8, 2.6), (4.2, 5.4))  # over the side: the bands of the coarse and the fine grating
_CONTRAST = (0.6, 1.4)
_ANGLE_DEVIATION = np.deg2rad(3.0)
_WINDOW = (0.35, 0.6)  # standard deviation of the Gaussian window, in sides
_WINDOW_SHIFT = 0.15
_NOISE = 0.5
_AMPLITUDE = 0.125  # of a grating in images whose range is [0, 1]
_NORMALIZATION = Normalization(mean=(0.5,), std=(0.1104,))


def drawn_images(count: int, generator: np.random.RandomState) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Images in [0, 1] and their classes, every pair of orientations equally often (within one).

    Shapes: (count, SIDE, SIDE), (count,).
    """
    pairs = generator.permutation(np.arange(count) % ORIENTATIONS**2)
    orientations = np.stack([pairs // ORIENTATIONS, pairs % ORIENTATIONS])
    gratings = np.zeros((count, SIDE, SIDE))
    for numbers, band in zip(orientations, _CYCLES, strict=True):
        gratings += _gratings(numbers, band, generator)
    noise = _NOISE * generator.standard_normal((count, SIDE, SIDE))
    images = np.clip(0.5 + _AMPLITUDE * (gratings + noise), 0, 1)
    return images.astype(np.float32), orientations.sum(axis=0) % ORIENTATIONS


def _gratings(
    numbers: NDArray[np.int64], band: tuple[float, float], generator: np.random.RandomState
) -> NDArray[np.float64]:
    """One grating an image, with amplitude about 1. Shape: (count,) -> (count, SIDE, SIDE)."""
    count = len(numbers)

    def uniform(low: float, high: float) -> NDArray[np.float64]:
        return generator.uniform(low, high, count)[:, None, None]

    deviation = _ANGLE_DEVIATION * generator.standard_normal(count)
    angle = (numbers * np.pi / ORIENTATIONS + deviation)[:, None, None]
    place = (np.arange(SIDE) + 0.5) / SIDE - 0.5
    down, across = place[None, :, None], place[None, None, :]
    wave = np.cos(2 * np.pi * uniform(*band) * (across * np.cos(angle) + down * np.sin(angle)) + uniform(0, 2 * np.pi))
    squared_distance = (across - uniform(-_WINDOW_SHIFT, _WINDOW_SHIFT)) ** 2 + (
        down - uniform(-_WINDOW_SHIFT, _WINDOW_SHIFT)
    ) ** 2
    window = np.exp(-squared_distance / (2 * uniform(*_WINDOW) ** 2))
    contrasted: NDArray[np.float64] = uniform(*_CONTRAST) * window * wave
    return contrasted


def textures(request: DataRequest) -> DataSplits:
    """4,000 images to train on, 2,000 to evaluate on, 1x16x16 unless the request says otherwise.

    The same images in every run and for every seed. Nothing is augmented: a mirrored grating has another orientation,
    and a shifted one brings no new phase.
    """
    shape = request.input_shape or (1, SIDE, SIDE)
    check_input_shape(shape, name=request.name)
    constants = (request.normalization or _NORMALIZATION).for_channels(shape[0])
    generator = np.random.RandomState(_SEED)  # draws the same in every NumPy version

    def samples(count: int) -> InMemorySamples:
        images, labels = drawn_images(count, generator)
        return InMemorySamples(
            images=torch.from_numpy(images).unsqueeze(1),
            labels=torch.from_numpy(labels),
            input_shape=shape,
            normalization=constants,
        )

    train, evaluation = samples(TRAINING_IMAGES), samples(EVALUATION_IMAGES)
    return DataSplits(
        name=request.name,
        train=train,
        evaluation=evaluation,
        calibration=train,
        class_names=tuple(str(number) for number in range(ORIENTATIONS)),
        input_shape=shape,
        normalization=constants,
    )
