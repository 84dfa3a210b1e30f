"""How images that come in another size are resized: averages over whole blocks of pixels, then linear interpolation.

Plain linear interpolation reads two pixels in each direction and skips the others where an image shrinks to less than
half. Filters against that exist in ONNX (``antialias`` of Resize), but TensorRT refuses them, and OpenVINO and ONNX
Runtime compute other values than torch. Blocks of pixels are averaged alike everywhere.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

Size = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resizing:
    """From ``source`` to ``target``, both (height, width): the blocks to average, and how to fill up the last ones.

    ``pads`` are (top, left, bottom, right), and what is filled up does not count in an average.
    """

    source: Size
    target: Size

    @property
    def blocks(self) -> Size:
        """Height and width of the blocks of pixels, as many whole pixels as fall on one of the result."""
        height, width = (max(1, old // new) for old, new in zip(self.source, self.target, strict=True))
        return height, width

    @property
    def pads(self) -> tuple[int, int, int, int]:
        """Pixels to add so that blocks fill the image, half of them on each side."""
        lacking = [-size % block for size, block in zip(self.source, self.blocks, strict=True)]
        before = [count // 2 for count in lacking]
        return before[0], before[1], lacking[0] - before[0], lacking[1] - before[1]

    @property
    def averaged(self) -> Size:
        """Height and width after averaging."""
        height, width = (-(-size // block) for size, block in zip(self.source, self.blocks, strict=True))
        return height, width

    @property
    def factors(self) -> tuple[float, float]:
        """By what height and width grow in the interpolation after averaging, as float32 numbers.

        Never less than exact: engines cut size times factor down to a whole number.
        """
        height, width = (_factor(old, new) for old, new in zip(self.averaged, self.target, strict=True))
        return height, width

    def apply(self, images: Tensor) -> Tensor:
        """What the exported graph computes, by torch. Shape: (N, C, *source) -> (N, C, *target)."""
        if self.blocks != (1, 1):
            top, left, bottom, right = self.pads
            sides = (left, right, top, bottom)
            ones = functional.pad(torch.ones_like(images[:1, :1]), sides)
            counted = functional.avg_pool2d(ones, self.blocks)
            images = functional.avg_pool2d(functional.pad(images, sides), self.blocks) / counted
        if self.averaged != self.target:
            # By factors, as in the graph: a coordinate that is off by a rounding is seen on images full of edges.
            images = functional.interpolate(
                images,
                scale_factor=self.factors,
                mode="bilinear",
                align_corners=False,
                recompute_scale_factor=False,
            )
        return images


def _factor(old: int, new: int) -> float:
    factor = np.float32(new / old)
    while old * float(factor) < new:
        factor = np.nextafter(factor, np.float32(np.inf), dtype=np.float32)
    return float(factor)
