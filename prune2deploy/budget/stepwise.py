"""One granule after another, the cheapest first: how iterative methods go down between two looks at the scores."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from prune2deploy.budget.alignment import allowed_counts
from prune2deploy.graph.channels import ChannelGraph, ChannelMask

Scores = NDArray[np.float64]


def cheapest_first(
    graph: ChannelGraph,
    scores: Scores,
    *,
    available: ChannelMask,
    granule: int,
    enough: Callable[[ChannelMask], bool],
    ranking: str = "global",
) -> ChannelMask:
    """What is left of ``available`` once the fewest cheapest granules are gone that are ``enough``, at least one.

    ``graph`` is that of the dense model, whose widths say which counts are aligned; ``scores`` and ``available`` have
    shape (channel_count,). The unit is a step from one allowed count of a group to the next, and its price the mean
    score of the channels that leave; with ``ranking`` per-layer the group that kept the largest share steps first.
    ``enough`` must stay true as more leave. Where not even all steps are, all are taken. A channel never comes back.
    """
    steps = sorted(
        _steps(graph, scores, available, granule, per_layer=ranking == "per-layer"), key=lambda step: step[0]
    )
    leaves_at = np.full(graph.channel_count, len(steps))
    for number, (_, channels) in enumerate(steps):
        leaves_at[channels] = number

    def after(taken: int) -> ChannelMask:
        return np.asarray(available & (leaves_at >= taken))

    low, high = min(1, len(steps)), len(steps)
    while low < high:
        middle = (low + high) // 2
        if enough(after(middle)):
            high = middle
        else:
            low = middle + 1
    return after(low)


def _steps(
    graph: ChannelGraph, scores: Scores, available: ChannelMask, granule: int, *, per_layer: bool
) -> Iterator[tuple[tuple[float, int, int], NDArray[np.int64]]]:
    """All steps, as (price, group, minus the count afterwards) to sort by, and the channels that leave."""
    for group in graph.groups:
        left = group.channels[available[group.channels]]
        order = left[np.argsort(-scores[left], kind="stable")]
        counts = [*(count for count in allowed_counts(group, granule) if count < len(left)), len(left)]
        for after, before in itertools.pairwise(counts):
            leaving = order[after:before]
            price = -before / len(group.channels) if per_layer else float(scores[leaving].mean())
            yield (price, group.index, -after), leaving
