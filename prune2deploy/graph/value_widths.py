"""Shapes of values in which every dimension that can be cut is named by its width."""

import numpy as np
from numpy.typing import NDArray
from torch.fx import Node

from prune2deploy.graph.channels import FROZEN
from prune2deploy.graph.labels import Value
from prune2deploy.graph.sizes import shape_of
from prune2deploy.graph.trace import Trace
from prune2deploy.graph.unit import Shape


class ValueWidths:
    """The widths of a trace, numbered as its values are asked for.

    ``arrays`` are those numbered so far: the channel of each index, -1 where frozen. Dimensions that hold the same
    channels equally often are one width, in whatever order.
    """

    def __init__(self, traced: Trace) -> None:
        self._values = traced.interpretation.values
        self._channel_of_label = traced.channel_of_label
        self._numbers: dict[bytes, int] = {}
        self.arrays: list[NDArray[np.int64]] = []

    def channels(self, node: Node, dim: int) -> NDArray[np.int64] | None:
        """The channel of each index of a dimension of ``node``'s result; None where none can leave."""
        value = self._values.get(node.name)
        labels = value.labels_of(dim) if isinstance(value, Value) else None
        if labels is None:
            return None
        channels = self._channel_of_label[labels]
        return channels if (channels != FROZEN).any() else None

    def shape(self, node: Node) -> Shape:
        """The shape of ``node``'s result: sizes, and -1 - n for a dimension that is the width number n."""
        return tuple(self._size(node, dim, size) for dim, size in enumerate(shape_of(node)))

    def _size(self, node: Node, dim: int, size: int) -> int:
        channels = self.channels(node, dim)
        if channels is None:
            return size
        key = np.sort(channels).tobytes()
        if key not in self._numbers:
            self._numbers[key] = len(self.arrays)
            self.arrays.append(channels)
        return -1 - self._numbers[key]
