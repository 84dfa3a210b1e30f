"""From densities to widths: when a round is over, and what its cut leaves. All functions are pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prune2deploy.budget.target import Budget
from prune2deploy.graph.channels import ChannelGraph, ChannelMask, Group
from prune2deploy.policies.widths import counts_from

_RESOLUTION = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """``kept``, shape (channel_count,), and the ``share`` of every group's cut that was taken, below 1 for a budget."""

    kept: ChannelMask
    share: float = 1.0


def plateaued(densities: Sequence[Sequence[float]], *, window: int, epsilon: float) -> bool:
    """Whether no density moves any more: the mean of the last ``window`` epochs is that of the ``window`` before.

    ``densities`` has a row for each epoch and a column for each layer, fractions; ``epsilon`` is the largest difference
    that counts as none.
    """
    if len(densities) < 2 * window:
        return False
    rows = np.asarray(densities, dtype=np.float64)
    return not moved(rows[-2 * window : -window].mean(axis=0), rows[-window:].mean(axis=0), epsilon=epsilon)


def moved(before: Sequence[float] | NDArray[np.float64], after: NDArray[np.float64], *, epsilon: float) -> bool:
    """Whether some density moved by ``epsilon`` or more."""
    return bool((np.abs(np.asarray(after) - np.asarray(before)) >= epsilon).any())


def cut_by_density(
    graph: ChannelGraph,
    kept: ChannelMask,
    densities: Mapping[int, float],
    *,
    channel_densities: NDArray[np.float64],
    granule: int,
    budget: Budget | None,
) -> Cut:
    """Every group of ``densities`` keeps max(1, round(width * density)) of its channels, the densest.

    ``densities`` maps group indices to fractions; ``kept`` and ``channel_densities`` have shape (channel_count,), and
    ``graph`` is the dense one. Widths are the allowed ones nearest to that, the wider one of two. Where this goes
    below ``budget``, every group takes the same share of its cut, the smallest that meets the budget, and then gives
    back what still fits, beginning with the densest group.
    """
    left = {index: graph.groups[index].channels[kept[graph.groups[index].channels]] for index in densities}
    order = {
        index: channels[np.argsort(-channel_densities[channels], kind="stable")] for index, channels in left.items()
    }

    def count_at(group: Group, share: float) -> int:
        width = len(left[group.index])
        wanted = width - share * (width - max(1, _rounded(width * densities[group.index])))
        return min(counts_from(group, granule, left=width), key=lambda count: (abs(count - wanted), -count))

    def mask(counts: Mapping[int, int]) -> ChannelMask:
        stays = kept.copy()
        for index, count in counts.items():
            stays[order[index][count:]] = False
        return stays

    def counts_at(share: float) -> dict[int, int]:
        return {index: count_at(graph.groups[index], share) for index in densities}

    whole = counts_at(1.0)
    if budget is None or budget.share_used(graph.cost, mask(whole)) > 1:
        return Cut(kept=mask(whole))
    low, high = 0, _RESOLUTION
    while low < high:
        middle = (low + high) // 2
        if budget.share_used(graph.cost, mask(counts_at(middle / _RESOLUTION))) <= 1:
            high = middle
        else:
            low = middle + 1
    counts = counts_at(high / _RESOLUTION)
    for index in sorted(densities, key=lambda index: -densities[index]):
        for count in counts_from(graph.groups[index], granule, left=len(left[index])):
            wider = {**counts, index: count}
            if count > counts[index] and budget.share_used(graph.cost, mask(wider)) <= 1:
                counts = wider
    return Cut(kept=mask(counts), share=high / _RESOLUTION)


def _rounded(value: float) -> int:
    """To the nearest whole number, halves up."""
    return int(np.floor(value + 0.5))
