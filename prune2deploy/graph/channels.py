"""Channels, groups and the graph that holds them: what every later stage knows of a model's structure.

A *channel* is the smallest set of parameter slices that can only leave together. Channels that are produced by
the same dimensions form a *group*. ``graph.trace`` builds the graph from a module; nothing here needs the module
again, so that scores, budgets and plans are computed on plain arrays.
"""

import enum
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from prune2deploy.graph.becomes import Becomes
from prune2deploy.graph.cost import CostModel
from prune2deploy.graph.frozen import FREE, HELD_ALREADY, flops_by_holder

FROZEN = -1

ChannelMask = NDArray[np.bool_]


class Role(enum.Enum):
    """What a tensor's dimension does with a channel.

    ``PRODUCER``: the output dimension of a weight. ``CONSUMER``: the input dimension of a weight. ``AFFINE``: a
    value that rides on the channel (norm scale and shift, running statistics, bias, depthwise kernel, layer scale).
    """

    PRODUCER = "producer"
    CONSUMER = "consumer"
    AFFINE = "affine"


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One dimension of one tensor, and the channel that each of its indices belongs to.

    ``tensor`` is the ``state_dict`` name (of the first alias, where a tensor is shared). ``channels`` has shape
    (size,), integers; ``FROZEN`` where the index cannot leave. One channel may own several indices (a flattened
    7x7 map gives 49 columns of the next linear layer). ``learnable`` is False for buffers.
    """

    tensor: str
    dim: int
    role: Role
    learnable: bool
    channels: NDArray[np.int64]

    @property
    def size(self) -> int:
        """Dense size of the dimension."""
        return len(self.channels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Channels that share their producers, and so make up one width of the network.

    ``name`` is the module that produces them first (``layer1.0.conv1``). ``channels`` holds channel numbers in the
    order of their first index there. ``positions`` is how many indices of the widest producer dimension one
    channel takes (4 where convolution groups of 4 leave whole). ``exact`` is False where a norm or a mean is
    taken over these channels, so that removing some changes the statistics of the rest. ``stream`` is True
    where a residual addition joins two or more producers: such a group is not *inside* a block.
    """

    index: int
    name: str
    channels: NDArray[np.int64]
    positions: int
    exact: bool
    stream: bool

    @property
    def width(self) -> int:
        """Dense width in indices of the producing dimension."""
        return len(self.channels) * self.positions


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """What a residual addition adds to its shortcut, and which can leave whole: zeros are added then.

    ``name`` is its last module. ``modules``: what becomes of each module that leaves, by path, none inside another.
    ``groups`` are the groups that are produced and read inside only; a mask in which all of them are empty removes the
    branch. ``tensors`` are the ``state_dict`` names that leave, each alias included. ``node`` is the name of the
    addition in the exported program and ``argument`` the number of its argument that becomes zero.
    """

    name: str
    modules: Mapping[str, Becomes]
    groups: tuple[int, ...]
    tensors: tuple[str, ...]
    node: str
    argument: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenReason:
    """Why some indices cannot leave: the first cause in the order of execution.

    ``operator`` is the ATen name; ``place`` the module path and source line of the user's code; ``axes`` the
    tensor dimensions that it froze, as (tensor, dim). ``flops_by_layer`` are the dense FLOPs at batch 1 that stay
    because of it, by the module path of the operator: disjoint from those of the other reasons.
    """

    reason: str
    operator: str
    place: str
    axes: tuple[tuple[str, int], ...]
    flops_by_layer: Mapping[str, int] = field(default_factory=dict)

    @property
    def flops(self) -> int:
        """Dense FLOPs at batch 1 that stay because of this."""
        return sum(self.flops_by_layer.values())


@dataclass(frozen=True, kw_only=True)
class ChannelGraph:
    """Everything that can leave a model, what holds it together and what it costs.

    ``shapes`` are the dense shapes of all tensors of the ``state_dict``; ``fingerprint`` identifies them.
    ``group_of`` has shape (channel_count,). ``cost`` gives FLOPs and parameters of any channel mask. ``branches`` are
    the residual branches that can leave whole, in the order of execution.
    """

    fingerprint: str
    shapes: Mapping[str, tuple[int, ...]]
    axes: tuple[Axis, ...]
    groups: tuple[Group, ...]
    frozen: tuple[FrozenReason, ...]
    cost: CostModel
    channel_count: int
    aliases: Mapping[str, str] = field(default_factory=dict)
    branches: tuple[Branch, ...] = ()

    @cached_property
    def group_of(self) -> NDArray[np.int64]:
        """The group of each channel. Shape: (channel_count,)."""
        owner = np.zeros(self.channel_count, dtype=np.int64)
        for group in self.groups:
            owner[group.channels] = group.index
        return owner

    def axes_with(self, role: Role, *, learnable: bool = True) -> tuple[Axis, ...]:
        """Axes of one role, of parameters only unless ``learnable`` is False."""
        return tuple(axis for axis in self.axes if axis.role is role and (axis.learnable or not learnable))

    def sum_over_slices(self, axis: Axis, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sum ``values``, one for each index of ``axis``, into the channels that own the indices.

        Shape: (axis.size,) -> (channel_count,). Frozen indices are left out.
        """
        owned = axis.channels != FROZEN
        summed = np.bincount(axis.channels[owned], weights=values[owned], minlength=self.channel_count)
        return summed.astype(np.float64)

    def everything(self) -> ChannelMask:
        """The mask that keeps all channels. Shape: (channel_count,)."""
        return np.ones(self.channel_count, dtype=bool)

    def numbers_without(self, groups: Collection[int]) -> NDArray[np.int64]:
        """New channel numbers once ``groups`` are frozen; the last entry maps ``FROZEN`` to itself.

        Shape: (channel_count + 1,), so that it can be indexed by channels, ``FROZEN`` included.
        """
        stays = ~np.isin(self.group_of, list(groups))
        numbers = np.full(self.channel_count + 1, FROZEN, dtype=np.int64)
        numbers[:-1][stays] = np.arange(int(stays.sum()))
        return numbers

    def without_groups(self, reasons: Mapping[int, str], *, lines: Mapping[int, str] | None = None) -> "ChannelGraph":
        """The graph in which some groups cannot leave: group index to the reason, which is kept for the user.

        ``lines``: of some of them, the source line at fault, as ``file:line``.
        """
        if not reasons:
            return self
        number = self.numbers_without(reasons)
        held = flops_by_holder(self.cost, [self._kept_by(reasons, width) for width in self.cost.widths])
        frozen = tuple(
            FrozenReason(
                reason=reason,
                operator="",
                place=self._place_of(index, lines or {}),
                axes=tuple(
                    (axis.tensor, axis.dim)
                    for axis in self.axes_with(Role.PRODUCER)
                    if np.isin(axis.channels, self.groups[index].channels).any()
                ),
                flops_by_layer=held.get(index, {}),
            )
            for index, reason in reasons.items()
        )
        axes = (replace(axis, channels=number[axis.channels]) for axis in self.axes)
        kept = [group for group in self.groups if group.index not in reasons]
        groups = tuple(replace(group, index=index, channels=number[group.channels]) for index, group in enumerate(kept))
        count = int((number[:-1] != FROZEN).sum())
        index_after = {group.index: index for index, group in enumerate(kept)}
        branches = tuple(
            replace(branch, groups=tuple(index_after[index] for index in branch.groups))
            for branch in self.branches
            if index_after.keys() >= set(branch.groups)
        )
        return replace(
            self,
            axes=tuple(axis for axis in axes if (axis.channels != FROZEN).any()),
            groups=groups,
            frozen=(*self.frozen, *frozen),
            cost=replace(
                self.cost,
                channel_count=count,
                widths=[number[width] for width in self.cost.widths],
                branches={branch.name: number[self.cost.branches[branch.name]] for branch in branches},
            ),
            channel_count=count,
            branches=branches,
        )

    def _place_of(self, index: int, lines: Mapping[int, str]) -> str:
        name = self.groups[index].name
        return f"{name} ({lines[index]})" if index in lines else name

    def _kept_by(self, groups: Collection[int], width: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which of ``groups`` keeps each index of a width: a group, ``FREE`` or ``HELD_ALREADY``."""
        owner = np.append(self.group_of, HELD_ALREADY)[width]  # the last entry answers for FROZEN = -1
        return np.where((owner == HELD_ALREADY) | np.isin(owner, list(groups)), owner, FREE)

    def without_branches(self, names: Collection[str]) -> "ChannelGraph":
        """The graph in which these branches cannot leave whole. Their channels still can, but for the last."""
        branches = tuple(branch for branch in self.branches if branch.name not in names)
        inside = {branch.name: self.cost.branches[branch.name] for branch in branches}
        return replace(self, branches=branches, cost=replace(self.cost, branches=inside))

    def removed_branches(self, kept: ChannelMask) -> tuple[Branch, ...]:
        """The branches of which a mask, shape (channel_count,), leaves nothing: they leave whole."""
        return tuple(
            branch
            for branch in self.branches
            if not any(kept[self.groups[index].channels].any() for index in branch.groups)
        )

    def kept_widths(self, kept: ChannelMask) -> tuple[int, ...]:
        """Width of each group under a mask, in indices of the producing dimension."""
        return tuple(int(kept[group.channels].sum()) * group.positions for group in self.groups)
