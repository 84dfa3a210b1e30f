"""What a price depends on, as nodes with a few choices each: a group's count, a sum of widths, a branch that stays.

A layer's cost couples what comes in with what goes out, so a price is a table over one node or over two. A width that
one group makes is that group's node. A width that several groups make together (a concatenation) is a sum node: its
choices are breakpoints between which prices are taken to be linear. A layer that leaves with a branch whose groups it
does not touch hangs on a gate, which says whether the branch stays.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prune2deploy.budget.priced import Priced, PricedTerm
from prune2deploy.graph.channels import ChannelGraph

BREAKPOINTS = 9

Counts = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GroupNode:
    """The number of channels that a group keeps."""

    group: int


@dataclass(frozen=True, slots=True)
class SumNode:
    """A width that several groups make: ``fixed`` and, for each (group, indices of a channel) of ``parts``, so many."""

    fixed: int
    parts: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class GateNode:
    """Whether a branch, by its number in the graph, stays (choice 0) or has left (choice 1)."""

    branch: int


Node = GroupNode | SumNode | GateNode


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A price over the choices of ``nodes``: none, one or two of them. ``values`` has a dimension for each."""

    nodes: tuple[Node, ...]
    values: NDArray[np.float64]


def expressions(graph: ChannelGraph, price: Priced) -> list[SumNode]:
    """Each width of a price as what is fixed and what each group adds for one of its channels (in the mean)."""
    incidence = price.incidence.tocsr()
    sizes = np.maximum(np.array([len(group.channels) for group in graph.groups]), 1)
    found = []
    for row, width in enumerate(price.widths):
        inside = slice(incidence.indptr[row], incidence.indptr[row + 1])
        owners = graph.group_of[incidence.indices[inside]]
        owned = np.bincount(owners, weights=incidence.data[inside], minlength=len(sizes)) / sizes
        parts = tuple((int(group), float(owned[group])) for group in np.flatnonzero(owned))
        found.append(SumNode(int((width < 0).sum()), parts))
    return found


class Tabulated:
    """Prices as tables over nodes, for the counts that each group is offered.

    ``offered`` has for each group its counts, ascending; 0 where its branch can leave.
    """

    def __init__(self, graph: ChannelGraph, offered: Sequence[Counts]) -> None:
        self._graph = graph
        self._offered = offered
        self._branch_number = {branch.name: number for number, branch in enumerate(graph.branches)}

    def choices(self, node: Node) -> NDArray[np.float64]:
        """The choices of a node: counts, breakpoints of a sum, or 0 and 1 of a gate."""
        if isinstance(node, GroupNode):
            return np.array(self._offered[node.group], dtype=np.float64)
        if isinstance(node, GateNode):
            return np.array([0.0, 1.0])
        least = node.fixed + sum(owned * min(self._offered[group]) for group, owned in node.parts)
        most = node.fixed + sum(owned * max(self._offered[group]) for group, owned in node.parts)
        return np.linspace(least, most, BREAKPOINTS)

    def tables(self, price: Priced) -> list[Table]:
        """The price as a sum of tables; those over the same nodes are one. What depends on no node comes first."""
        widths = expressions(self._graph, price)
        summed: dict[tuple[Node, ...], NDArray[np.float64]] = {(): np.array(price.fixed)}
        for term in price.terms:
            table = self._table(term, widths)
            before = summed.get(table.nodes)
            summed[table.nodes] = table.values if before is None else before + table.values
        return [Table(nodes=nodes, values=values) for nodes, values in summed.items()]

    def _table(self, term: PricedTerm, widths: Sequence[SumNode]) -> Table:
        expressions = [widths[width] for width in term.widths]
        nodes: list[Node] = []
        for one in expressions:
            node = _node_of(one)
            if node is not None and node not in nodes:
                nodes.append(node)
        gate = self._gate(term, nodes)
        coupled = nodes[: 1 if isinstance(gate, GateNode) else 2]
        order = sorted(coupled, key=_order)
        axes = {node: axis for axis, node in enumerate(order)}
        rank = len(order) + isinstance(gate, GateNode)
        sizes = [self._sizes(one, axes, rank) for one in expressions]
        shape = tuple(len(self.choices(node)) for node in order)
        if isinstance(gate, GateNode):
            values = np.zeros((*shape, 2))
            values[..., 0] = np.broadcast_to(np.asarray(term.price(*sizes)), (*shape, 1))[..., 0]
            return Table(nodes=(*order, gate), values=values)
        values = np.array(np.broadcast_to(np.asarray(term.price(*sizes), dtype=np.float64), shape))
        for axis, node in enumerate(order):
            if isinstance(node, GroupNode) and node.group in gate:
                gone = np.flatnonzero(self.choices(node) == 0)
                values[(slice(None),) * axis + (gone,)] = 0.0
        return Table(nodes=tuple(order), values=values)

    def _gate(self, term: PricedTerm, nodes: Sequence[Node]) -> "GateNode | tuple[int, ...]":
        """What says that the term has left: a gate, or the groups among ``nodes`` that are empty then."""
        branches = [self._graph.branches[self._branch_number[name]] for name in term.branches]
        branches = [one for one in branches if all(self._offered[group][0] == 0 for group in one.groups)]
        if not branches:
            return ()
        innermost = min(branches, key=lambda branch: len(branch.groups))
        touched = tuple(group for group in innermost.groups if GroupNode(group) in nodes[:2])
        return touched or GateNode(self._branch_number[innermost.name])

    def _sizes(self, one: SumNode, axes: dict[Node, int], rank: int) -> NDArray[np.float64]:
        """The sizes of a width over the choices of the nodes; one that is no node is taken at its dense size."""
        node = _node_of(one)
        if node is None or node not in axes:
            most = one.fixed + sum(owned * max(self._offered[group]) for group, owned in one.parts)
            return np.full((1,) * rank, float(most))
        sizes = self.choices(node)
        if isinstance(node, GroupNode):
            sizes = one.fixed + sizes * one.parts[0][1]
        shape = [1] * rank
        shape[axes[node]] = len(sizes)
        return sizes.reshape(shape)


def _node_of(one: SumNode) -> Node | None:
    if not one.parts:
        return None
    return GroupNode(one.parts[0][0]) if len(one.parts) == 1 else one


def _order(node: Node) -> tuple[int, tuple[float, ...]]:
    if isinstance(node, GroupNode):
        return 0, (node.group,)
    if isinstance(node, GateNode):
        return 1, (node.branch,)
    return 2, (node.fixed, *(one for part in node.parts for one in part))
