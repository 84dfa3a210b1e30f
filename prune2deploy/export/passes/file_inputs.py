"""The same images in two forms: as the network takes them, and as the exported file takes them."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from prune2deploy.errors import ModelError
from prune2deploy.export.passes.graph import BYTE_IMAGES, GraphPasses
from prune2deploy.export.passes.resizing import Resizing

FileInputs = NDArray[np.float32] | NDArray[np.uint8]

_CHUNK = 64


def file_shape(input_shape: tuple[int, ...], passes: GraphPasses) -> tuple[int, ...]:
    """Shape of one input of the file, of a network that takes (C, H, W)."""
    if passes.input_format != BYTE_IMAGES:
        return input_shape
    channels, height, width = input_shape
    return (*(passes.source_size or (height, width)), channels)


def file_inputs(images: NDArray[np.float32], passes: GraphPasses) -> FileInputs:
    """Images as a file with these passes takes them.

    Shape: normalised float32 (N, C, H, W) -> the same without passes; float32 images in [0, 1] with ``normalize``;
    bytes (N, H, W, C) of ``source_size`` for "uint8-nhwc". What rounding and resizing lose is lost:
    ``network_inputs`` says what the network then sees.

    Raises:
        ModelError: ``normalize`` has constants for another number of channels.
    """
    if passes.normalize is None:
        return images
    mean, std = _columns(passes, images.shape[1])
    if passes.input_format != BYTE_IMAGES:
        return images * std + mean
    made = np.empty((len(images), *file_shape(images.shape[1:], passes)), dtype=np.uint8)
    for first in range(0, len(images), _CHUNK):
        chunk = torch.from_numpy(images[first : first + _CHUNK] * std + mean)
        if passes.source_size is not None:
            chunk = _resized(chunk, passes.source_size)
        made[first : first + _CHUNK] = (chunk * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    return made


def _resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images of another size that the file's own resizing brings back as they were, as far as that goes.

    Repeated pixels do: averages over blocks take them back exactly, and interpolated ones would only be blurred twice.
    """
    if all(new >= old for new, old in zip(size, images.shape[2:], strict=True)):
        return functional.interpolate(images, size=size, mode="nearest-exact")
    return functional.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)


def network_inputs(inputs: FileInputs, passes: GraphPasses, size: tuple[int, ...]) -> Tensor:
    """What the file's own preprocessing makes of its inputs, computed by torch.

    Shape: as ``file_inputs`` gives them -> normalised float32 (N, C, *size). ``size`` is the network's (H, W).

    Raises:
        ModelError: ``normalize`` has constants for another number of channels.
    """
    images = torch.from_numpy(inputs)
    if passes.normalize is None:
        return images
    if passes.input_format == BYTE_IMAGES:
        height, width = size
        images = images.permute(0, 3, 1, 2).float()
        images = Resizing(source=(images.shape[2], images.shape[3]), target=(height, width)).apply(images) / 255
    mean, std = _columns(passes, images.shape[1])
    return (images - torch.from_numpy(mean)) / torch.from_numpy(std)


def _columns(passes: GraphPasses, channels: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and deviation as (C, 1, 1), so that they broadcast over images."""
    assert passes.normalize is not None
    mean, std = (np.asarray(values, dtype=np.float32).reshape(-1, 1, 1) for values in passes.normalize)
    if len(mean) != channels:
        raise ModelError(f"{len(mean)} means were given and the input has {channels} channels", where="--normalize")
    return mean, std
