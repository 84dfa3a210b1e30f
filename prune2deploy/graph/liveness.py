"""What lies in memory while a network runs in the order of its graph: the moments at which that may be most.

A value lives from the step that makes it to the last one that reads it, or a view of it; the inputs of the model from
the start, its outputs to the end. The operators of a step after its first run in place. Weights are not counted here.
Sizes are linear in the widths: of a value with two dimensions that can be cut, the smaller one counts as dense.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.fx import Node

from prune2deploy.graph.branches import branches_around
from prune2deploy.graph.channels import Branch
from prune2deploy.graph.dataflow import Dataflow
from prune2deploy.graph.labelling import module_path_of
from prune2deploy.graph.sizes import shape_of_tensor
from prune2deploy.graph.steps import Step
from prune2deploy.graph.unit import LiveValues
from prune2deploy.graph.value_widths import ValueWidths

MANY_MOMENTS = 40
_NEAR_THE_PEAK = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class _Extent:
    """The size of a value: ``each`` elements for each index of the width, or in all where it has none."""

    width: int | None
    each: int


def moments_of(
    steps: Sequence[Step], flow: Dataflow, widths: ValueWidths, branches: Iterable[Branch]
) -> tuple[LiveValues, ...]:
    """The moments, one a step, at which memory may be fullest, in the order of execution.

    Left out is a moment at which nothing is more than at another one, whatever leaves. Of the others those stay that
    are at least half as full as the fullest in the dense model, and the 40 fullest anyway.
    """
    branches = tuple(branches)
    moments = [
        _moment(step, extents, branches) for step, extents in zip(steps, _live(steps, flow, widths), strict=True)
    ]
    sizes = np.array([len(array) for array in widths.arrays], dtype=np.int64)
    table = np.array([_row(moment, len(sizes)) for moment in moments], dtype=np.int64).reshape(len(moments), -1)
    dense = table @ np.array([1, *sizes], dtype=np.int64)
    free = [number for number in range(len(moments)) if not _is_dominated(number, table, moments)]
    fullest = sorted(free, key=lambda number: -int(dense[number]))
    near = [number for number in free if dense[number] >= _NEAR_THE_PEAK * dense.max()]
    return tuple(moments[number] for number in sorted({*fullest[:MANY_MOMENTS], *near}))


def _live(steps: Sequence[Step], flow: Dataflow, widths: ValueWidths) -> list[list[_Extent]]:
    """The sizes of all values that are in memory while each step runs, its own result among them."""
    holder = {node: step.result for step in steps for node in (call.node for call in step.calls)}

    def data_of(node: Node) -> Node:
        base = flow.data_of(node)
        return holder.get(base, base)

    last: dict[Node, int] = {}
    for number, step in enumerate(steps):
        last[step.result] = number
        last.update((data_of(node), number) for node in step.reads())
    last.update((data_of(node), len(steps)) for node in flow.outputs)
    extents = {node: _extent(node, widths) for node in last}
    alive = {node for node in flow.inputs if node in last}
    found = []
    for number, step in enumerate(steps):
        alive.add(step.result)
        found.append([extents[node] for node in alive])
        alive = {node for node in alive if last[node] > number}
    return found


def _extent(node: Node, widths: ValueWidths) -> _Extent:
    result = node.meta["val"]
    if not isinstance(result, torch.Tensor):
        tensors = (one for one in torch.utils._pytree.tree_leaves(result) if isinstance(one, torch.Tensor))
        return _Extent(width=None, each=sum(math.prod(shape_of_tensor(one)) for one in tensors))
    shape = widths.shape(node)
    dense = [size if size >= 0 else len(widths.arrays[-1 - size]) for size in shape]
    cut = [dim for dim, size in enumerate(shape) if size < 0]
    if not cut:
        return _Extent(width=None, each=math.prod(dense))
    longest = max(cut, key=lambda dim: dense[dim])
    return _Extent(width=-1 - shape[longest], each=math.prod(dense) // dense[longest])


def _moment(step: Step, extents: Iterable[_Extent], branches: tuple[Branch, ...]) -> LiveValues:
    elements: Counter[int] = Counter()
    fixed = 0
    for one in extents:
        if one.width is None:
            fixed += one.each
        else:
            elements[one.width] += one.each
    name = module_path_of(step.anchor.node)
    return LiveValues(
        name=name, fixed=fixed, elements=dict(sorted(elements.items())), branches=branches_around(name, branches)
    )


def _row(moment: LiveValues, count: int) -> list[int]:
    return [moment.fixed, *(moment.elements.get(width, 0) for width in range(count))]


def _is_dominated(number: int, table: NDArray[np.int64], moments: Sequence[LiveValues]) -> bool:
    """Whether another moment, that comes whenever this one does, is at least as full at any widths.

    Of equal moments the first one stays.
    """
    above = (table >= table[number]).all(axis=1)
    same = (table == table[number]).all(axis=1)
    branches = set(moments[number].branches)
    return any(
        other != number
        and branches.issuperset(moments[other].branches)
        and not (same[other] and branches == set(moments[other].branches) and other > number)
        for other in np.flatnonzero(above).tolist()
    )
