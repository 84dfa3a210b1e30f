"""The allowed counts of every group as a ladder, and ways down it that look at scores alone."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from prune2deploy.budget.alignment import allowed_counts
from prune2deploy.budget.target import Budget
from prune2deploy.budget.worth import group_weights, log_kept
from prune2deploy.graph.channels import ChannelGraph, ChannelMask

CLOSE_ENOUGH = 0.97
"""The share of a target that a plan should use."""

Scores = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """Allowed counts of every group, and each channel's rank in its group (0 for the best)."""

    graph: ChannelGraph
    rank: NDArray[np.int64]
    allowed: tuple[tuple[int, ...], ...]
    sorted_scores: tuple[Scores, ...]

    @classmethod
    def of(cls, graph: ChannelGraph, scores: Scores, granule: int, available: ChannelMask | None = None) -> "Ladder":
        """The ladder of a graph; ``scores`` and ``available``, the channels that are left, are (channel_count,)."""
        left = graph.everything() if available is None else available
        scores = np.where(left, scores, -np.inf)
        rank = np.zeros(graph.channel_count, dtype=np.int64)
        sorted_scores = []
        for group in graph.groups:
            order = np.argsort(-scores[group.channels], kind="stable")
            rank[group.channels[order]] = np.arange(len(order))
            sorted_scores.append(scores[group.channels][order])
        allowed = tuple(
            _at_most(allowed_counts(group, granule), int(left[group.channels].sum())) for group in graph.groups
        )
        return cls(graph=graph, rank=rank, allowed=allowed, sorted_scores=tuple(sorted_scores))

    def mask(self, counts: NDArray[np.int64]) -> ChannelMask:
        """The mask that keeps the best ``counts`` channels of each group."""
        return np.asarray(self.rank < counts[self.graph.group_of]) if len(counts) else self.graph.everything()

    def dense(self) -> NDArray[np.int64]:
        """The largest allowed count of each group."""
        return np.array([allowed[-1] for allowed in self.allowed], dtype=np.int64)

    def smallest(self, *, without_branches: bool = False) -> ChannelMask:
        """The mask that keeps the smallest allowed count of each group, or none of those inside branches."""
        counts = np.array([allowed[0] for allowed in self.allowed], dtype=np.int64)
        if without_branches:
            counts[[group for branch in self.graph.branches for group in branch.groups]] = 0
        return self.mask(counts)

    def reaches(self, budget: Budget, *, without_branches: bool = False) -> bool:
        """Whether the smallest plan meets the budget."""
        if not self.allowed:
            return False
        return budget.share_used(self.graph.cost, self.smallest(without_branches=without_branches)) <= 1

    def worth(self, group: int, count: int) -> float:
        """The logarithm of the share of the model's importance that stays if a group keeps its best ``count``."""
        return float(self._worths[group][count])

    def worth_of(self, counts: NDArray[np.int64]) -> float:
        """The logarithm of the share of the model's importance that counts of all groups keep: at most 0."""
        return sum(self.worth(group, int(count)) for group, count in enumerate(counts))

    @cached_property
    def _worths(self) -> tuple[NDArray[np.float64], ...]:
        weights = group_weights(self.graph)
        return tuple(weight * log_kept(scores) for weight, scores in zip(weights, self.sorted_scores, strict=True))

    def steps(self) -> list[tuple[float, int, int]]:
        """All steps as (mean score of what leaves, group, count afterwards), cheapest first."""
        steps = []
        for group, allowed in enumerate(self.allowed):
            for after, before in itertools.pairwise(allowed):
                steps.append((float(self.sorted_scores[group][after:before].mean()), group, after))
        return sorted(steps, key=lambda step: (step[0], step[1], -step[2]))

    def global_counts(self, budget: Budget) -> NDArray[np.int64]:
        """The fewest cheapest steps that meet the budget."""
        steps = self.steps()

        def counts_after(taken: int) -> NDArray[np.int64]:
            counts = self.dense()
            for _, group, after in steps[:taken]:
                counts[group] = min(counts[group], after)
            return counts

        return counts_after(_first(len(steps), lambda taken: self._fits(counts_after(taken), budget)))

    def uniform_counts(self, budget: Budget) -> NDArray[np.int64]:
        """The largest common fraction that meets the budget."""
        resolution = 4096
        taken = _first(resolution, lambda cut: self._fits(self.proportional(1 - cut / resolution), budget))
        return self.proportional(1 - taken / resolution)

    def proportional(self, fraction: float) -> NDArray[np.int64]:
        """The allowed counts nearest to ``fraction`` of each group."""
        return np.array(
            [min(allowed, key=lambda count: (abs(count - fraction * allowed[-1]), count)) for allowed in self.allowed],
            dtype=np.int64,
        )

    def neighbours(self, counts: NDArray[np.int64], group: int) -> list[NDArray[np.int64]]:
        """The counts with ``group`` one step down or up."""
        allowed = self.allowed[group]
        position = allowed.index(int(counts[group]))
        found = []
        for other in (position - 1, position + 1):
            if 0 <= other < len(allowed):
                moved = counts.copy()
                moved[group] = allowed[other]
                found.append(moved)
        return found

    def filled(self, counts: NDArray[np.int64], budget: Budget) -> NDArray[np.int64]:
        """Give back what still fits; where that leaves much of the budget unused, trade single steps for it."""
        counts = self._given_back(counts, budget)
        share = self._share(counts, budget)
        while share < CLOSE_ENOUGH:
            trades = []
            for group, allowed in enumerate(self.allowed):
                position = allowed.index(int(counts[group]))
                if position > 0:
                    smaller = counts.copy()
                    smaller[group] = allowed[position - 1]
                    traded = self._given_back(smaller, budget, keep_down=group)
                    trades.append((self._share(traded, budget), group, traded))
            best = max(trades, key=lambda trade: trade[0], default=None)
            if best is None or best[0] <= share:
                break
            share, _, counts = best
        return counts

    def _given_back(
        self, counts: NDArray[np.int64], budget: Budget, *, keep_down: int | None = None
    ) -> NDArray[np.int64]:
        counts = counts.copy()
        blocked = {keep_down}
        for _, group, after in reversed(self.steps()):
            if group in blocked or after != counts[group]:
                continue
            allowed = self.allowed[group]
            larger = counts.copy()
            larger[group] = allowed[allowed.index(after) + 1]
            if self._fits(larger, budget):
                counts = larger
            else:
                blocked.add(group)
        return counts

    def _fits(self, counts: NDArray[np.int64], budget: Budget) -> bool:
        return self._share(counts, budget) <= 1

    def _share(self, counts: NDArray[np.int64], budget: Budget) -> float:
        return budget.share_used(self.graph.cost, self.mask(counts))


def _at_most(counts: tuple[int, ...], left: int) -> tuple[int, ...]:
    """The allowed counts of a group that has ``left`` channels, which it may keep."""
    smaller = tuple(count for count in counts if count < left)
    return (*smaller, left)


def _first(count: int, holds: Callable[[int], bool]) -> int:
    """The smallest number in 0..count for which ``holds``, which stays true from there on."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low
