"""What prices come to while counts change group by group: only what a change touches is priced again."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from prune2deploy.budget.nodes import expressions
from prune2deploy.budget.priced import Priced
from prune2deploy.graph.channels import ChannelGraph

Move = Mapping[int, int]
"""New counts, by group."""


class Running:
    """The totals of several prices at the counts of all groups; a count of 0 is that of a branch that has left."""

    def __init__(self, graph: ChannelGraph, prices: Sequence[Priced], counts: NDArray[np.int64]) -> None:
        self.counts = counts.astype(np.int64)
        self._graph = graph
        self._sums = [_RunningPrice(graph, price, self.counts) for price in prices]

    @property
    def totals(self) -> NDArray[np.float64]:
        """What each price comes to. Shape: (prices,)."""
        return np.array([one.total for one in self._sums])

    def change(self, move: Move) -> NDArray[np.float64]:
        """What a move would add to each price. Shape: (prices,)."""
        after = self._after(move)
        return np.array([one.changed(after, move)[0] for one in self._sums])

    def take(self, move: Move) -> None:
        """Make a move."""
        after = self._after(move)
        for one in self._sums:
            one.take(after, move)
        self.counts = after

    def _after(self, move: Move) -> NDArray[np.int64]:
        after = self.counts.copy()
        after[list(move)] = list(move.values())
        return after


class _RunningPrice:
    def __init__(self, graph: ChannelGraph, price: Priced, counts: NDArray[np.int64]) -> None:
        self._price = price
        self._widths = expressions(graph, price)
        inside = {branch.name: np.array(branch.groups) for branch in graph.branches}
        self._gates = [[inside[name] for name in term.branches if name in inside] for term in price.terms]
        touched: dict[int, set[int]] = {}
        for number, term in enumerate(price.terms):
            owners = {group for width in term.widths for group, _ in self._widths[width].parts}
            owners |= {int(group) for gate in self._gates[number] for group in gate}
            for group in owners:
                touched.setdefault(group, set()).add(number)
        self._touched = touched
        self._values = np.array([self._value(number, counts) for number in range(len(price.terms))])

    @property
    def total(self) -> float:
        return self._price.fixed + float(self._values.sum())

    def changed(self, counts: NDArray[np.int64], groups: Move) -> tuple[float, dict[int, float]]:
        """The difference of the total, and the new values of the terms that are touched."""
        terms = set().union(*(self._touched.get(group, set()) for group in groups)) if groups else set()
        values = {number: self._value(number, counts) for number in terms}
        return sum(value - float(self._values[number]) for number, value in values.items()), values

    def take(self, counts: NDArray[np.int64], groups: Move) -> None:
        for number, value in self.changed(counts, groups)[1].items():
            self._values[number] = value

    def _value(self, number: int, counts: NDArray[np.int64]) -> float:
        if any(not counts[groups].any() for groups in self._gates[number]):
            return 0.0
        term = self._price.terms[number]
        sizes = []
        for width in term.widths:
            one = self._widths[width]
            sizes.append(one.fixed + sum(owned * float(counts[group]) for group, owned in one.parts))
        return float(term.price(*sizes))
