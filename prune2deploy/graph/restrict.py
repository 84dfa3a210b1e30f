"""The graph of a pruned model: that of the dense one, restricted to what a plan kept. Nothing is traced again."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from prune2deploy.graph.channels import ChannelGraph, ChannelMask
from prune2deploy.graph.fingerprint import fingerprint_of


def restricted_graph(graph: ChannelGraph, kept: ChannelMask) -> ChannelGraph:
    """The graph of the model that keeps the channels of ``kept``, shape (channel_count,), under their dense numbers.

    Its axes, shapes and fingerprint are those of the pruned model, so that scores are taken and plans made on that
    model; masks and scores keep the dense shape (channel_count,), in which channels that left own nothing and score 0.
    """
    if kept.all():
        return graph
    keeps = np.append(kept, True)  # the last entry answers for FROZEN = -1
    axes = tuple(replace(axis, channels=axis.channels[keeps[axis.channels]]) for axis in graph.axes)
    shapes = _shapes_after(graph, {(axis.tensor, axis.dim): axis.size for axis in axes})
    return replace(
        graph,
        fingerprint=fingerprint_of(shapes),
        shapes=shapes,
        axes=axes,
        groups=tuple(replace(group, channels=group.channels[kept[group.channels]]) for group in graph.groups),
        cost=replace(graph.cost, widths=[width[keeps[width]] for width in graph.cost.widths]),
    )


def _shapes_after(graph: ChannelGraph, sizes: Mapping[tuple[str, int], int]) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors once the dimensions in ``sizes``, by canonical name, have those sizes."""
    after = {}
    for name, shape in graph.shapes.items():
        canonical = graph.aliases.get(name, name)
        after[name] = tuple(sizes.get((canonical, dim), size) for dim, size in enumerate(shape))
    return after
