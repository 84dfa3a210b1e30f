"""The choice of widths as a mixed-integer linear program, for HiGHS.

A multiple-choice knapsack: of each group one count is chosen, worth the scores that it keeps. It differs from the
textbook's in that prices couple two groups (a layer reads one width and makes another). For a pair of nodes that share
a price, a variable for each pair of choices carries it, tied to the choices by its sums over rows and columns (the
local polytope of Schlesinger 1976 and Wainwright & Jordan 2008): exact where the choices are whole numbers, and a
bound where they are not yet. Widths that several groups make together are interpolated between breakpoints.
"""

import ctypes
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, OptimizeResult, milp

from prune2deploy.budget.nodes import Counts, GateNode, GroupNode, Node, SumNode, Tabulated
from prune2deploy.budget.priced import Priced
from prune2deploy.graph.channels import ChannelGraph

OPTIMAL, TIME_LIMIT = "optimal", "time limit"
_WORTH_OF_ALL = 1000.0
_PRICE_OF_ALL = 1000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The counts of each group, and how good they provably are.

    ``gap`` is relative: no choice among those offered is better by more than this share of what it reaches. ``status``
    is ``optimal`` (the gap is at most the one asked for) or ``time limit``.
    """

    counts: tuple[int, ...]
    status: str
    gap: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """At most ``most`` of a price, in its own unit."""

    price: Priced
    most: float


def most_worth(
    graph: ChannelGraph,
    offered: Sequence[Counts],
    worth: Sequence[NDArray[np.float64]],
    bounds: Sequence[Bound],
    *,
    seconds: float,
    gap: float,
) -> Chosen | None:
    """The counts worth most within all ``bounds``; None where none was found in time, or there is none.

    ``offered`` has for each group its counts, ascending, 0 where its branch can leave; ``worth`` what each is worth.
    """
    program = _bounded(graph, offered, worth, bounds)
    return program.solve(program.worth_row(), seconds=seconds, gap=gap)


def worth_at_most(
    graph: ChannelGraph,
    offered: Sequence[Counts],
    worth: Sequence[NDArray[np.float64]],
    bounds: Sequence[Bound],
    *,
    seconds: float,
) -> float | None:
    """What the best fractional choice is worth, and no other more; None where it was not found in time."""
    program = _bounded(graph, offered, worth, bounds)
    return program.relaxed(program.worth_row(), seconds=seconds)


def least_price(
    graph: ChannelGraph,
    offered: Sequence[Counts],
    worth: Sequence[NDArray[np.float64]],
    price: Priced,
    *,
    at_least: float,
    seconds: float,
    gap: float,
) -> Chosen | None:
    """The counts that cost least of ``price`` among those worth ``at_least``; None where none was found in time."""
    program = _Program(graph, offered, worth)
    gained = program.worth_row()
    program.limit({column: -value for column, value in gained.items()}, -at_least)
    row, _ = program.price_row(price)
    return program.solve({column: -value for column, value in row.items()}, seconds=seconds, gap=gap)


def _bounded(
    graph: ChannelGraph, offered: Sequence[Counts], worth: Sequence[NDArray[np.float64]], bounds: Sequence[Bound]
) -> "_Program":
    program = _Program(graph, offered, worth)
    for bound in bounds:
        row, fixed = program.price_row(bound.price)
        program.limit(row, bound.most - fixed)
    return program


class _Program:
    """Variables, each in [0, 1], and rows over them."""

    def __init__(self, graph: ChannelGraph, offered: Sequence[Counts], worth: Sequence[NDArray[np.float64]]) -> None:
        self._graph = graph
        self._offered = offered
        self._worth = worth
        self._tabulated = Tabulated(graph, offered)
        self._size = 0
        self._whole: list[int] = []
        self._rows: list[Mapping[int, float]] = []
        self._lows: list[float] = []
        self._highs: list[float] = []
        self._columns_of: dict[Node, NDArray[np.int64]] = {}
        self._pairs: dict[tuple[Node, Node], NDArray[np.int64]] = {}
        for group in range(len(graph.groups)):
            self._node(GroupNode(group))
        self._tie_branches()

    def worth_row(self) -> dict[int, float]:
        """What each count is worth."""
        return {
            int(column): float(value)
            for group, values in enumerate(self._worth)
            for column, value in zip(self._node(GroupNode(group)), values, strict=True)
        }

    def price_row(self, price: Priced) -> tuple[dict[int, float], float]:
        """What each variable costs, and what is paid in any case."""
        row: dict[int, float] = {}
        fixed = 0.0
        for table in self._tabulated.tables(price):
            if not table.nodes:
                fixed += float(table.values)
                continue
            columns = self._node(table.nodes[0]) if len(table.nodes) == 1 else self._pair(*table.nodes)
            for column, value in zip(columns.ravel(), table.values.ravel(), strict=True):
                row[int(column)] = row.get(int(column), 0.0) + float(value)
        return row, fixed

    def limit(self, row: Mapping[int, float], most: float) -> None:
        """Hold a row at or below ``most``, scaled so that the solver's tolerances mean the same for any unit."""
        scale = _PRICE_OF_ALL / max(abs(most), max(map(abs, row.values()), default=0.0), 1e-300)
        self._add({column: value * scale for column, value in row.items()}, -np.inf, most * scale)

    def solve(self, gained: Mapping[int, float], *, seconds: float, gap: float) -> Chosen | None:
        """The choice that gains most."""
        begun = time.monotonic()
        gains = self._column(gained)
        integrality = np.zeros(self._size)
        integrality[self._whole] = 1
        result = self._solved(gains, integrality, seconds=seconds, gap=gap)
        if result.x is None:
            return None
        counts = tuple(
            self._offered[group][int(np.argmax(result.x[self._node(GroupNode(group))]))]
            for group in range(len(self._graph.groups))
        )
        return Chosen(
            counts=counts,
            status=OPTIMAL if result.status == 0 else TIME_LIMIT,
            gap=float(result.mip_gap),
            seconds=time.monotonic() - begun,
        )

    def relaxed(self, gained: Mapping[int, float], *, seconds: float) -> float | None:
        """What the best choice gains where choices may be fractions; None where it was not found in time."""
        gains = self._column(gained)
        result = self._solved(gains, np.zeros(self._size), seconds=seconds, gap=0.0)
        return float(gains @ result.x) if result.status == 0 else None

    def _column(self, gained: Mapping[int, float]) -> NDArray[np.float64]:
        gains = np.zeros(self._size)
        gains[list(gained)] = list(gained.values())
        return gains

    def _solved(
        self, gains: NDArray[np.float64], integrality: NDArray[np.float64], *, seconds: float, gap: float
    ) -> OptimizeResult:
        with _hushed():
            return milp(
                -gains * (_WORTH_OF_ALL / max(np.abs(gains).max(initial=0.0), 1e-300)),
                integrality=integrality,
                bounds=Bounds(0, 1),
                constraints=LinearConstraint(self._matrix(), self._lows, self._highs),
                options={"time_limit": max(seconds, 0.1), "mip_rel_gap": gap},
            )

    def _node(self, node: Node) -> NDArray[np.int64]:
        """The variables of a node, one a choice, of which one is taken."""
        if node not in self._columns_of:
            choices = self._tabulated.choices(node)
            columns = self._new((len(choices),))
            self._columns_of[node] = columns
            self._add(dict.fromkeys(columns.tolist(), 1.0), 1.0, 1.0)
            if isinstance(node, SumNode):
                self._tie_sum(node, columns, choices)
            elif isinstance(node, GateNode):
                self._tie_gate(node, columns)
            else:
                self._whole += columns.tolist()
        return self._columns_of[node]

    def _pair(self, first: Node, second: Node) -> NDArray[np.int64]:
        """A variable for each pair of choices. Shape: (choices of the first, choices of the second)."""
        if (first, second) not in self._pairs:
            rows, columns = self._node(first), self._node(second)
            pair = self._new((len(rows), len(columns)))
            for choice, variable in enumerate(rows.tolist()):
                self._add({variable: -1.0, **dict.fromkeys(pair[choice].tolist(), 1.0)}, 0.0, 0.0)
            for choice, variable in enumerate(columns.tolist()):
                self._add({variable: -1.0, **dict.fromkeys(pair[:, choice].tolist(), 1.0)}, 0.0, 0.0)
            self._pairs[first, second] = pair
        return self._pairs[first, second]

    def _tie_sum(self, node: SumNode, columns: NDArray[np.int64], breakpoints: NDArray[np.float64]) -> None:
        """The breakpoints, as weighted, add up to what the groups keep."""
        scale = 1.0 / max(float(breakpoints[-1]), 1.0)
        row = {int(column): scale * float(value) for column, value in zip(columns, breakpoints, strict=True)}
        for group, owned in node.parts:
            for column, count in zip(self._node(GroupNode(group)), self._offered[group], strict=True):
                row[int(column)] = -scale * owned * count
        self._add(row, scale * node.fixed, scale * node.fixed)

    def _tie_gate(self, node: GateNode, columns: NDArray[np.int64]) -> None:
        """A branch has left where one of its groups, any of its own, is empty."""
        gone = self._emptied(self._own_group(node.branch))
        self._add({int(columns[1]): 1.0, gone: -1.0}, 0.0, 0.0)

    def _tie_branches(self) -> None:
        """The groups of a branch are empty together, and those of branches within it too."""
        removable = [
            number
            for number, branch in enumerate(self._graph.branches)
            if all(self._offered[group][0] == 0 for group in branch.groups)
        ]
        for number in removable:
            branch = self._graph.branches[number]
            first = self._emptied(self._own_group(number))
            inner = {
                group
                for other in removable
                for group in self._graph.branches[other].groups
                if set(self._graph.branches[other].groups) < set(branch.groups)
            }
            for group in branch.groups:
                other = self._emptied(group)
                if other == first:
                    continue
                # What lies further inside may also leave alone.
                self._add({other: 1.0, first: -1.0}, 0.0, 1.0 if group in inner else 0.0)

    def _own_group(self, number: int) -> int:
        """A group of a branch that lies in no smaller branch, if there is one."""
        groups = self._graph.branches[number].groups
        return min(
            groups,
            key=lambda group: (
                sum(group in other.groups and len(other.groups) < len(groups) for other in self._graph.branches),
                group,
            ),
        )

    def _emptied(self, group: int) -> int:
        return int(self._node(GroupNode(group))[0])

    def _new(self, shape: tuple[int, ...]) -> NDArray[np.int64]:
        count = int(np.prod(shape))
        columns = np.arange(self._size, self._size + count).reshape(shape)
        self._size += count
        return columns

    def _add(self, row: Mapping[int, float], low: float, high: float) -> None:
        self._rows.append(row)
        self._lows.append(low)
        self._highs.append(high)

    def _matrix(self) -> sparse.csr_array:
        rows = np.concatenate([np.full(len(row), number) for number, row in enumerate(self._rows)])
        columns = np.concatenate([np.fromiter(row.keys(), dtype=np.int64, count=len(row)) for row in self._rows])
        values = np.concatenate([np.fromiter(row.values(), dtype=np.float64, count=len(row)) for row in self._rows])
        return sparse.csr_array((values, (rows, columns)), shape=(len(self._rows), self._size))


@contextmanager
def _hushed() -> Iterator[None]:
    """Keep off standard output what HiGHS prints there whatever it is told, from C and so past ``sys.stdout``."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
        with suppress(AttributeError, OSError, TypeError):  # where the C library cannot be had by no name
            ctypes.CDLL(None).fflush(None)
    finally:
        os.dup2(kept, 1)
        os.close(kept)
