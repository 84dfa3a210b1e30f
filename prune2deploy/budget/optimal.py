"""The plan that is worth most within the limits: a greedy one first, then the solver's around it.

The solver is offered, of each group, the widths near the best plan so far and a few of all others; what it finds is the
next best plan, until there is no better one nearby. Where a price is not quite what its table says (sums of widths are
interpolated), limits are drawn in until they hold. If the solver has no answer in time, the greedy plan stays.
"""

import heapq
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prune2deploy.budget.knapsack import Bound, Chosen, least_price, most_worth, worth_at_most
from prune2deploy.budget.ladder import Ladder
from prune2deploy.budget.nodes import Counts
from prune2deploy.budget.priced import Priced
from prune2deploy.budget.running import Move, Running
from prune2deploy.budget.target import Limit
from prune2deploy.graph.channels import ChannelMask

GREEDY = "greedy"
SOLVER_SECONDS = 30.0
SOLVER_GAP = 0.002
_NEAR, _SPREAD = 4, 6
_ATTEMPTS = 6
_WORTH_ASKING_AGAIN = 0.0005
_TOLERANCE = 1e-9
_BOUND_SHARE = 0.25
"""The share of the time that is kept for a bound, where the solver finds nothing in the rest."""


@dataclass(frozen=True, kw_only=True)
class Solution:
    """Counts of all groups (0 where a branch leaves), and how they were found.

    ``status`` is ``optimal`` (within ``SOLVER_GAP``), ``time limit`` (the best that was found by then) or ``greedy``
    (the solver found none). ``gap``: no choice among the widths that the solver was offered keeps more importance by a
    larger share; that of a greedy plan is to the best fractional choice. None where nothing is proven.
    """

    counts: NDArray[np.int64]
    status: str
    gap: float | None
    seconds: float


def best_within(
    ladder: Ladder, limits: Sequence[Limit], *, seconds: float = SOLVER_SECONDS, greedily: bool = False
) -> Solution | None:
    """The counts worth most within all ``limits``, which hold by their own prices; None where nothing reaches them.

    Whole residual branches may leave. ``seconds`` bounds the solver; ``greedily`` does without it.
    """
    begun = time.monotonic()
    best = _greedy_down(ladder, limits)
    if best is not None:
        best = _filled(ladder, limits, best)
    status, gap = GREEDY, None
    drawn_in = [1.0] * len(limits)
    for _ in range(0 if greedily else _ATTEMPTS):
        offered = _offered(ladder, ladder.dense() if best is None else best)
        left = begun + (1 - _BOUND_SHARE) * seconds - time.monotonic()
        found = _ask(ladder, offered, limits, drawn_in, seconds=left)
        if found is None:
            break
        counts = np.array(found.counts)
        mask = ladder.mask(counts)
        used = [limit.total(mask) / limit.most for limit in limits]
        if max(used) > 1 + _TOLERANCE:
            drawn_in = [
                factor * 0.999 / share if share > 1 else factor for factor, share in zip(drawn_in, used, strict=True)
            ]
            continue
        counts = _filled(ladder, limits, counts)
        status, gap = found.status, float(np.expm1(found.gap * abs(ladder.worth_of(counts))))
        gained = np.inf if best is None else ladder.worth_of(counts) - ladder.worth_of(best)
        if gained > 0:
            best = counts
        if gained < _WORTH_ASKING_AGAIN:
            break
    if best is None:
        return None
    if gap is None and not greedily:
        gap = _gap_of_greedy(ladder, best, limits, seconds=max(_BOUND_SHARE * seconds, 1.0))
    return Solution(counts=best, status=status, gap=gap, seconds=time.monotonic() - begun)


def cheapest_worth(
    ladder: Ladder, price: Priced, near: NDArray[np.int64], *, at_least: float, seconds: float = SOLVER_SECONDS
) -> ChannelMask | None:
    """The mask that costs least of ``price`` and keeps a worth (a logarithm) of ``at_least``, or None if there is none.

    ``near``: counts of all groups, around which the most widths are offered.
    """
    offered = _offered(ladder, near)
    worth = [_worth(ladder, group, counts) for group, counts in enumerate(offered)]
    found = least_price(ladder.graph, offered, worth, price, at_least=at_least, seconds=seconds, gap=SOLVER_GAP)
    return None if found is None else ladder.mask(np.array(found.counts))


def _offered(ladder: Ladder, counts: NDArray[np.int64]) -> list[Counts]:
    """Of each group its count, the nearest others and a few of the rest, ascending; 0 where a branch holds it."""
    held = {group for branch in ladder.graph.branches for group in branch.groups}
    found = []
    for group, allowed in enumerate(ladder.allowed):
        place = int(np.searchsorted(allowed, counts[group]))
        near = allowed[max(place - _NEAR, 0) : place + _NEAR + 1]
        spread = np.linspace(0, len(allowed) - 1, _SPREAD).round().astype(int)
        found.append(tuple(sorted({*near, *(allowed[one] for one in spread), *((0,) if group in held else ())})))
    return found


def _ask(
    ladder: Ladder, offered: Sequence[Counts], limits: Sequence[Limit], drawn_in: Sequence[float], *, seconds: float
) -> Chosen | None:
    if seconds <= 0:
        return None
    bounds = [
        Bound(price=price, most=factor * limit.most)
        for limit, factor in zip(limits, drawn_in, strict=True)
        for price in limit.prices
    ]
    worth = [_worth(ladder, group, counts) for group, counts in enumerate(offered)]
    return most_worth(ladder.graph, offered, worth, bounds, seconds=seconds, gap=SOLVER_GAP)


def _gap_of_greedy(
    ladder: Ladder, counts: NDArray[np.int64], limits: Sequence[Limit], *, seconds: float
) -> float | None:
    """How much more importance the best fractional choice keeps, as a share: no plan of these widths keeps more."""
    offered = _offered(ladder, counts)
    worth = [_worth(ladder, group, one) for group, one in enumerate(offered)]
    bounds = [Bound(price=price, most=limit.most) for limit in limits for price in limit.prices]
    most = worth_at_most(ladder.graph, offered, worth, bounds, seconds=seconds)
    return None if most is None else max(float(np.expm1(most - ladder.worth_of(counts))), 0.0)


def _worth(ladder: Ladder, group: int, counts: Counts) -> NDArray[np.float64]:
    return np.array([ladder.worth(group, count) for count in counts])


def _greedy_down(ladder: Ladder, limits: Sequence[Limit]) -> NDArray[np.int64] | None:
    """Step by step the move that loses least for what it saves of the limit that is missed by most."""
    prices = [price for limit in limits for price in limit.prices]
    most = np.array([limit.most for limit in limits for _ in limit.prices])
    running = Running(ladder.graph, prices, ladder.dense())
    heap: list[tuple[float, int, int, Move]] = []
    version = 0

    def rated(move: Move) -> float:
        lost = sum(ladder.worth(g, int(running.counts[g])) - ladder.worth(g, count) for g, count in move.items())
        excess = np.maximum(running.totals / most - 1, 0)
        saved = float((-running.change(move) / most * (excess > 0)).sum())
        return lost / saved if saved > 0 else np.inf

    def offer(move: Move, number: int) -> None:
        heapq.heappush(heap, (rated(move), number, version, move))

    for number, move in enumerate(_first_moves(ladder)):
        offer(move, number)
    while (running.totals > most).any():
        if not heap:
            return None
        rating, number, seen, move = heapq.heappop(heap)
        if any(running.counts[group] <= count for group, count in move.items()):
            continue
        if seen != version:
            again = rated(move)
            if heap and again > heap[0][0]:
                heapq.heappush(heap, (again, number, version, move))
                continue
        elif not np.isfinite(rating) and all(not np.isfinite(one[0]) and one[2] == version for one in heap):
            return None
        running.take(move)
        version += 1
        for group, count in move.items():
            lower = [one for one in ladder.allowed[group] if 0 < one < count]
            if len(move) == 1 and lower:
                offer({group: lower[-1]}, number)
    return running.counts


def _first_moves(ladder: Ladder) -> list[Move]:
    """One step down for each group, and the leaving of each branch."""
    moves: list[Move] = [{group: allowed[-2]} for group, allowed in enumerate(ladder.allowed) if len(allowed) > 1]
    return moves + [dict.fromkeys(branch.groups, 0) for branch in ladder.graph.branches]


def _filled(ladder: Ladder, limits: Sequence[Limit], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Give back, dearest first, what still fits."""
    prices = [price for limit in limits for price in limit.prices]
    most = np.array([limit.most for limit in limits for _ in limit.prices])
    running = Running(ladder.graph, prices, counts)
    blocked: set[int] = set()
    while True:
        steps = []
        for group, allowed in enumerate(ladder.allowed):
            now = int(running.counts[group])
            larger = [count for count in allowed if count > now]
            if now > 0 and larger and group not in blocked:
                steps.append((ladder.worth(group, larger[0]) - ladder.worth(group, now), group, larger[0]))
        if not steps:
            return running.counts
        _, group, count = max(steps)
        move = {group: count}
        if (running.totals + running.change(move) <= most).all():
            running.take(move)
        else:
            blocked.add(group)
