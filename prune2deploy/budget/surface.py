"""A latency over widths: measured at a few points, and linear between them along each axis."""

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RegularGridInterpolator

from prune2deploy.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Surface:
    """Latency of one unit in ns over its widths: none, one or two of them.

    ``axes`` are the widths along each axis, ascending; ``values`` has the shape of their lengths. Between them the
    latency is linear along each axis, which is exact for work that is a product of the widths; beyond them the last
    slope goes on.
    """

    axes: tuple[tuple[int, ...], ...]
    values: NDArray[np.float64]

    def __post_init__(self) -> None:
        if self.values.shape != tuple(len(axis) for axis in self.axes):
            raise InputError(f"latencies of shape {self.values.shape} for axes of {[len(axis) for axis in self.axes]}")
        if any(a >= b for axis in self.axes for a, b in itertools.pairwise(axis)):
            raise InputError("the widths of a latency table must ascend")
        if not np.isfinite(self.values).all() or (self.values < 0).any():
            raise InputError("a latency is negative or no number")

    def at(self, *sizes: Any) -> NDArray[np.float64]:
        """Latency in ns at ``sizes``, one argument an axis, broadcast against each other; never below 0.

        An axis of a single width is taken to be proportional to it: nothing else is known of it.
        """
        if not self.axes:
            return np.asarray(float(self.values))
        arrays = np.broadcast_arrays(*(np.asarray(size, dtype=np.float64) for size in sizes))
        points = np.stack([array.ravel() for array in arrays], axis=-1)
        scale = np.ones(len(points))
        used = []
        for number, axis in enumerate(self.axes):
            if len(axis) == 1:
                scale *= points[:, number] / max(axis[0], 1)
            else:
                used.append(number)
        values = self._interpolator(points[:, used]) if used else np.full(len(points), float(self.values.ravel()[0]))
        return np.asarray(np.maximum(values * scale, 0.0).reshape(arrays[0].shape))

    @cached_property
    def _interpolator(self) -> RegularGridInterpolator:
        used = [number for number, axis in enumerate(self.axes) if len(axis) > 1]
        values = self.values.reshape([len(self.axes[number]) for number in used])
        return RegularGridInterpolator(
            [np.asarray(self.axes[number], dtype=np.float64) for number in used],
            values,
            bounds_error=False,
            fill_value=None,
        )
