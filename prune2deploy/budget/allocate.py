"""From scores and a budget to widths: the largest plan within the target.

A group can keep one of its allowed counts, always its best channels. Going down from one allowed count to the next is a
*step*; allocation decides which steps to take. All functions are pure.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prune2deploy.budget.alignment import allowed_counts
from prune2deploy.budget.target import COST_WORDS, Budget, achieved_fraction
from prune2deploy.errors import InputError, TargetError
from prune2deploy.graph.channels import ChannelGraph, ChannelMask

CLOSE_ENOUGH = 0.97
_UNIFORM_TOLERANCE = 0.02

Scores = NDArray[np.float64]
RANKINGS = ("global", "per-layer")


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """The channels that stay, and how well they meet the budget.

    ``kept`` has shape (channel_count,). ``granule`` is the one that was used; ``notes`` are facts that the user should
    know: a target met only in part, an alignment that had to give way.
    """

    kept: ChannelMask
    flops_fraction: float
    parameters_fraction: float
    granule: int
    notes: tuple[str, ...] = ()


def allocate(
    graph: ChannelGraph,
    scores: Scores,
    budget: Budget,
    *,
    granule: int,
    ranking: str = "global",
    relax_alignment: bool = False,
    available: ChannelMask | None = None,
) -> Allocation:
    """The largest plan within ``budget`` that removes what scores least.

    ``scores`` has shape (channel_count,), higher is more important; an infinite one leaves last. With ranking
    ``global`` the steps with the smallest mean score go first, wherever they are; with ``per-layer`` every group
    keeps the same fraction. With ``relax_alignment`` the granule is halved until the target can be reached.
    ``available``, shape (channel_count,): the channels that are left where some have gone before; the budget still
    counts from the dense model, and widths are aligned as its are.

    Raises:
        InputError: a score is NaN, or the ranking is unknown.
        TargetError: no plan reaches the target; the message says what can be reached.
    """
    if ranking not in RANKINGS:
        raise InputError(f"unknown ranking {ranking!r}", where="--ranking", hint=f"choose from {', '.join(RANKINGS)}")
    if np.isnan(scores).any():
        raise InputError("a score is not a number", hint="check the checkpoint for NaN, or lower the learning rate")
    notes: list[str] = []
    ladder = _Ladder.of(graph, scores, granule, available)
    while not ladder.reaches(budget):
        if granule == 1 or not relax_alignment:
            raise _unreachable(graph, scores, budget, granule)
        granule //= 2
        ladder = _Ladder.of(graph, scores, granule, available)
        notes = [f"alignment lowered to {granule}: the target cannot be reached with wider granules"]
    first = ladder.global_counts(budget) if ranking == "global" else ladder.uniform_counts(budget)
    counts = ladder.filled(first, budget)
    kept = ladder.mask(counts)
    if kept[graph.everything() if available is None else available].all():
        raise TargetError("nothing would be pruned", hint="ask for a smaller fraction, or lower --align")
    used = budget.share_used(graph.cost, kept)
    if used < CLOSE_ENOUGH:
        notes.append(
            f"only {used:.1%} of the target is used: widths in multiples of {granule} allow no larger plan within it"
        )
    return _allocation(graph, kept, granule, tuple(notes))


def allocate_uniform(graph: ChannelGraph, flops: int, *, granule: int) -> Allocation:
    """The plan of a plainly narrower network: all groups keep the same fraction, with FLOPs nearest to ``flops``.

    It keeps the first channels of each group, since its weights are drawn anew. 2% is the aim; where alignment
    allows no closer, the difference is in the notes.
    """
    ladder = _Ladder.of(graph, -np.arange(graph.channel_count, dtype=np.float64), granule)

    def distance(counts: NDArray[np.int64]) -> float:
        return abs(graph.cost.flops(ladder.mask(counts)) / flops - 1)

    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        if graph.cost.flops(ladder.mask(ladder.proportional(middle))) <= flops:
            low = middle
        else:
            high = middle
    counts = min((ladder.proportional(low), ladder.proportional(high)), key=distance)
    best = distance(counts)
    adjusted: set[int] = set()
    while best > _UNIFORM_TOLERANCE:
        # one step up or down, at most once for each group, so that the network stays uniform to within a granule
        trials = [
            (distance(trial), group, trial)
            for group in range(len(graph.groups))
            if group not in adjusted
            for trial in ladder.neighbours(counts, group)
        ]
        if not trials or min(trials, key=lambda trial: trial[0])[0] >= best:
            break
        best, group, counts = min(trials, key=lambda trial: trial[0])
        adjusted.add(group)
    notes: tuple[str, ...] = ()
    if best > _UNIFORM_TOLERANCE:
        notes = (f"the reduced variant's FLOPs differ from the pruned one's by {best:.1%}: alignment allows no closer",)
    return _allocation(graph, ladder.mask(counts), granule, notes)


def _allocation(graph: ChannelGraph, kept: ChannelMask, granule: int, notes: tuple[str, ...]) -> Allocation:
    return Allocation(
        kept=kept,
        flops_fraction=achieved_fraction(graph.cost, "flops", kept),
        parameters_fraction=achieved_fraction(graph.cost, "parameters", kept),
        granule=granule,
        notes=notes,
    )


def _unreachable(graph: ChannelGraph, scores: Scores, budget: Budget, granule: int) -> TargetError:
    if not graph.groups:
        return TargetError("nothing can be pruned: every channel is frozen", hint="see why with `p2d inspect`")
    smallest = _Ladder.of(graph, scores, granule).smallest()
    reached = ", ".join(
        f"{achieved:.4f} of the {COST_WORDS[name]} (asked: {budget.fractions[name]:.4g})"
        for name, achieved in budget.achieved(graph.cost, smallest).items()
    )
    hint = "ask for no less" if granule == 1 else "ask for no less, or pass a smaller --align"
    return TargetError(f"no plan reaches the target; the smallest one keeps {reached}", hint=hint)


@dataclass(frozen=True, kw_only=True)
class _Ladder:
    """Allowed counts of every group, and each channel's rank in its group (0 for the best)."""

    graph: ChannelGraph
    rank: NDArray[np.int64]
    allowed: tuple[tuple[int, ...], ...]
    sorted_scores: tuple[Scores, ...]

    @classmethod
    def of(cls, graph: ChannelGraph, scores: Scores, granule: int, available: ChannelMask | None = None) -> "_Ladder":
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
        return np.array([allowed[-1] for allowed in self.allowed], dtype=np.int64)

    def smallest(self) -> ChannelMask:
        return self.mask(np.array([allowed[0] for allowed in self.allowed], dtype=np.int64))

    def reaches(self, budget: Budget) -> bool:
        return bool(self.allowed) and budget.share_used(self.graph.cost, self.smallest()) <= 1

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
