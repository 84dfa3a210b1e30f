"""The graph of a pruned model: that of the dense one, restricted to what a plan kept. Nothing is traced again."""

from collections.abc import Mapping, Set
from dataclasses import replace

import numpy as np

from prune2deploy.graph.channels import ChannelGraph, ChannelMask
from prune2deploy.graph.cost import CostModel
from prune2deploy.graph.fingerprint import fingerprint_of


def restricted_graph(graph: ChannelGraph, kept: ChannelMask) -> ChannelGraph:
    """The graph of the model that keeps the channels of ``kept``, shape (channel_count,), under their dense numbers.

    Its axes, shapes and fingerprint are those of the pruned model, so that scores are taken and plans made on that
    model; masks and scores keep the dense shape (channel_count,), in which channels that left own nothing and score 0.
    Of a branch that left whole nothing remains, but its groups, empty, so that groups keep their numbers.
    """
    if kept.all():
        return graph
    keeps = np.append(kept, True)  # the last entry answers for FROZEN = -1
    gone = graph.removed_branches(kept)
    left = {name for branch in gone for name in branch.tensors}
    axes = tuple(
        replace(axis, channels=axis.channels[keeps[axis.channels]]) for axis in graph.axes if axis.tensor not in left
    )
    after = _shapes_after(graph, {(axis.tensor, axis.dim): axis.size for axis in axes})
    shapes = {name: shape for name, shape in after.items() if name not in left}
    return replace(
        graph,
        fingerprint=fingerprint_of(shapes),
        shapes=shapes,
        axes=axes,
        groups=tuple(replace(group, channels=group.channels[kept[group.channels]]) for group in graph.groups),
        cost=_cost_after(graph.cost, kept, {branch.name for branch in gone}),
        aliases={name: first for name, first in graph.aliases.items() if name not in left},
        branches=tuple(branch for branch in graph.branches if branch not in gone),
    )


def _cost_after(cost: CostModel, kept: ChannelMask, gone: Set[str]) -> CostModel:
    keeps = np.append(kept, True)
    left = cost.without_branches(gone)
    return replace(
        left,
        widths=[width[keeps[width]] for width in left.widths],
        branches={name: inside[kept[inside]] for name, inside in left.branches.items()},
    )


def _shapes_after(graph: ChannelGraph, sizes: Mapping[tuple[str, int], int]) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors once the dimensions in ``sizes``, by canonical name, have those sizes."""
    after = {}
    for name, shape in graph.shapes.items():
        canonical = graph.aliases.get(name, name)
        after[name] = tuple(sizes.get((canonical, dim), size) for dim, size in enumerate(shape))
    return after
