"""Labels: which parameter index each position of a value comes from.

While the exported graph is interpreted, every value carries *blocks*. A block says, for one dimension (or for
several together), which *label node* each position belongs to. Operators move labels (permute, concatenate, split)
and unite them (an addition, a convolution's input with its weight's input dimension). Label 0 is *frozen*: what
is united with it cannot leave. The connected components of the united labels are the channels.

A dimension without a block is not prunable: it has size 1, or nothing that produces it can be cut.
"""

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FROZEN_LABEL = 0

Labels = NDArray[np.int64]


class AttentionAxis(enum.StrEnum):
    """What leaves an attention: ``HEADS``, whole ones, or ``HEAD_DIM``, the same positions of every head."""

    HEADS = "heads"
    HEAD_DIM = "head-dim"


@dataclass(frozen=True, slots=True)
class AxisKey:
    """Names one axis of a block that a reshape made: the node and the dimension of its output."""

    node: str
    dim: int


@dataclass(frozen=True, slots=True)
class Block:
    """Labels of one or several dimensions of a value.

    ``labels`` has one axis for each of ``dims``, in the same order. ``keys`` tell where the axes of a joint block
    were made, so that an operator can vote for the axis that should be cut.
    """

    dims: tuple[int, ...]
    labels: Labels
    keys: tuple[AxisKey | None, ...]

    @classmethod
    def of(cls, dim: int, labels: Labels) -> "Block":
        """A block of one dimension."""
        return cls((dim,), labels, (None,))

    def moved(self, dims: Sequence[int]) -> "Block":
        """The same labels on other dimensions, with the axes sorted by dimension."""
        order = sorted(range(len(dims)), key=lambda axis: dims[axis])
        return Block(
            tuple(dims[axis] for axis in order),
            np.transpose(self.labels, order),
            tuple(self.keys[axis] for axis in order),
        )

    def along(self, dim: int) -> int:
        """The axis of ``labels`` that stands for ``dim``."""
        return self.dims.index(dim)


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor while it is interpreted: its shape and the blocks of its dimensions.

    ``tensor`` is the ``state_dict`` name where the value is a parameter or buffer itself.
    """

    shape: tuple[int, ...]
    blocks: tuple[Block, ...] = ()
    tensor: str | None = None

    def block_of(self, dim: int) -> Block | None:
        """The block that covers ``dim``, if any."""
        for block in self.blocks:
            if dim in block.dims:
                return block
        return None

    def labels_of(self, dim: int) -> Labels | None:
        """Labels along ``dim`` where it has a block of its own."""
        block = self.block_of(dim)
        return block.labels if block is not None and len(block.dims) == 1 else None


def value_of(shape: Sequence[int], blocks: Iterable[Block]) -> tuple[Value, Labels]:
    """A value whose blocks say only what they must, and the labels that lost their last axis.

    Axes of size 1, or along which the labels do not change, drop out. A block that loses all its axes stands
    for a single channel that fills the whole value: removing it would empty the value, so the caller must freeze it.
    """
    kept: list[Block] = []
    lost: list[Labels] = []
    for block in blocks:
        if block.labels.size == 0:  # an empty slice
            continue
        labels, dims, keys = block.labels, list(block.dims), list(block.keys)
        for axis in reversed(range(len(dims))):
            first = labels.take([0], axis=axis)
            if labels.shape[axis] == 1 or (labels == first).all():
                labels = np.asarray(labels.take(0, axis=axis))
                del dims[axis], keys[axis]
        if dims and labels.any():
            kept.append(Block(tuple(dims), labels, tuple(keys)))
        elif not dims and labels.any():
            lost.append(labels.reshape(1))
    return Value(tuple(shape), tuple(kept)), np.concatenate(lost) if lost else np.zeros(0, dtype=np.int64)
