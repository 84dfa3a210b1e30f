"""From scores and a budget to widths: the largest plan within the target.

A group can keep one of its allowed counts, always its best channels. Going down from one allowed count to the next is a
*step*; allocation decides which steps to take. All functions are pure.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prune2deploy.budget.ladder import CLOSE_ENOUGH, Ladder, Scores
from prune2deploy.budget.optimal import SOLVER_SECONDS, Solution, best_within
from prune2deploy.budget.target import COST_WORDS, Budget, achieved_fraction
from prune2deploy.errors import InputError, TargetError
from prune2deploy.graph.channels import ChannelGraph, ChannelMask

_UNIFORM_TOLERANCE = 0.02

OPTIMAL = "optimal"
RANKINGS = ("global", "per-layer", OPTIMAL)


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """The channels that stay, and how well they meet the budget.

    ``kept`` has shape (channel_count,). ``granule`` is the one that was used; ``notes`` are facts that the user should
    know: a target met only in part, an alignment that had to give way. ``solution`` tells how an ``optimal`` one was
    found.
    """

    kept: ChannelMask
    flops_fraction: float
    parameters_fraction: float
    granule: int
    notes: tuple[str, ...] = ()
    solution: Solution | None = None


def allocate(
    graph: ChannelGraph,
    scores: Scores,
    budget: Budget,
    *,
    granule: int,
    ranking: str = "global",
    relax_alignment: bool = False,
    available: ChannelMask | None = None,
    solver_seconds: float = SOLVER_SECONDS,
) -> Allocation:
    """The largest plan within ``budget`` that removes what scores least.

    ``scores`` has shape (channel_count,), higher is more important; an infinite one leaves last. With ranking
    ``global`` the steps with the smallest mean score go first, wherever they are; with ``per-layer`` every group
    keeps the same fraction; ``optimal`` finds the plan that is worth most, residual branches included, within
    ``solver_seconds``. With ``relax_alignment`` the granule is halved until the target can be reached.
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
    ladder = Ladder.of(graph, scores, granule, available)
    optimal = ranking == OPTIMAL
    while not ladder.reaches(budget, without_branches=optimal):
        if granule == 1 or not relax_alignment:
            raise _unreachable(graph, scores, budget, granule)
        granule //= 2
        ladder = Ladder.of(graph, scores, granule, available)
        notes = [f"alignment lowered to {granule}: the target cannot be reached with wider granules"]
    solution = None
    if optimal:
        limits = tuple(budget.limits(graph.cost).values())
        solution = best_within(ladder, limits, seconds=solver_seconds)
        if solution is None:
            raise _unreachable(graph, scores, budget, granule)
        counts = solution.counts
    else:
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
    return _allocation(graph, kept, granule, tuple(notes), solution)


def allocate_uniform(graph: ChannelGraph, flops: int, *, granule: int) -> Allocation:
    """The plan of a plainly narrower network: all groups keep the same fraction, with FLOPs nearest to ``flops``.

    It keeps the first channels of each group, since its weights are drawn anew. 2% is the aim; where alignment
    allows no closer, the difference is in the notes.
    """
    ladder = Ladder.of(graph, -np.arange(graph.channel_count, dtype=np.float64), granule)

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


def _allocation(
    graph: ChannelGraph,
    kept: ChannelMask,
    granule: int,
    notes: tuple[str, ...],
    solution: Solution | None = None,
) -> Allocation:
    return Allocation(
        kept=kept,
        flops_fraction=achieved_fraction(graph.cost, "flops", kept),
        parameters_fraction=achieved_fraction(graph.cost, "parameters", kept),
        granule=granule,
        notes=notes,
        solution=solution,
    )


def _unreachable(graph: ChannelGraph, scores: Scores, budget: Budget, granule: int) -> TargetError:
    if not graph.groups:
        return TargetError("nothing can be pruned: every channel is frozen", hint="see why with `p2d inspect`")
    smallest = Ladder.of(graph, scores, granule).smallest()
    reached = ", ".join(
        f"{achieved:.4f} of the {COST_WORDS[name]} (asked: {budget.fractions[name]:.4g})"
        for name, achieved in budget.achieved(graph.cost, smallest).items()
    )
    hint = "ask for no less" if granule == 1 else "ask for no less, or pass a smaller --align"
    return TargetError(f"no plan reaches the target; the smallest one keeps {reached}", hint=hint)
