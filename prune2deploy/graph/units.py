"""A traced network as the units that it runs: which, at which widths, and what they leave unpriced.

Views (permutations, reshapes, slices) and what engines leave out (dropout) are no units: who reads them reads their
shape. Operators that no unit holds are counted by name.
"""

from collections import Counter
from collections.abc import Iterable

from torch.fx import Node

from prune2deploy.graph.branches import branches_around
from prune2deploy.graph.channels import ChannelGraph
from prune2deploy.graph.dataflow import Dataflow
from prune2deploy.graph.labelling import module_path_of
from prune2deploy.graph.liveness import moments_of
from prune2deploy.graph.steps import Step, steps_of
from prune2deploy.graph.trace import Trace
from prune2deploy.graph.unit import Operator, Shape, Unit, UnitModel, UnitTerm
from prune2deploy.graph.unit_operators import Described
from prune2deploy.graph.value_widths import ValueWidths

MOST_AXES = 2


def unit_model(traced: Trace) -> UnitModel:
    """The units of a network in the order of execution, and the moments at which its memory may be fullest.

    ``traced`` is the trace of the dense model at a batch of 1, or a part of it (``Trace.without_groups``); channels are
    numbered as ``traced.graph`` numbers them.
    """
    flow, widths = Dataflow.of(traced.program), ValueWidths(traced)
    steps = steps_of(flow, widths)
    terms = tuple(_term(step, widths, traced.graph) for step in steps if step.operators)
    unpriced = Counter(step.anchor.name for step in steps if not step.operators)
    moments = moments_of(steps, flow, widths, traced.graph.branches)
    return UnitModel(
        channel_count=traced.graph.channel_count,
        widths=tuple(widths.arrays),
        terms=terms,
        moments=moments,
        unpriced=dict(unpriced),
    )


class _Axes:
    """The widths of one unit, numbered in order: what is summed over, what is made, then as they appear.

    A width that is both summed over and made is two axes, as it is where a layer of the same kind stands between two
    different widths. A third width is held at its dense size.
    """

    def __init__(self, anchor: Described, widths: ValueWidths) -> None:
        self._arrays = widths.arrays
        self._tied = dict([anchor.tied]) if anchor.tied is not None else {}
        self._reduced = anchor.reduces
        self._found: list[tuple[int, bool]] = []
        for size, reduced in ((anchor.reduces, True), (anchor.produces, False)):
            if size is not None:
                self._size(size, reduced=reduced)

    @property
    def widths(self) -> tuple[int, ...]:
        """The number of each axis' width."""
        return tuple(-1 - size for size, _ in self._found)

    def shape(self, shape: Shape, *, reduced: bool = False) -> Shape:
        """A shape in the axes of the unit. ``reduced``: of the value that its first operator sums over."""
        return tuple(self._size(size, reduced=reduced and size == self._reduced) for size in shape)

    def _size(self, size: int, *, reduced: bool) -> int:
        if size >= 0:
            return size
        axis = (self._tied.get(size, size), reduced)
        if axis not in self._found:
            if len(self._found) == MOST_AXES:
                return len(self._arrays[-1 - size])
            self._found.append(axis)
        return -1 - self._found.index(axis)


def _term(step: Step, widths: ValueWidths, graph: ChannelGraph) -> UnitTerm:
    axes = _Axes(step.operators[0], widths)
    inputs: dict[tuple[Node, bool], Shape] = {}
    reads: list[list[tuple[Node, bool] | int]] = []
    for number, operator in enumerate(step.operators):
        reduced = number == 0 and operator.reduces is not None
        reads.append([])
        for node in operator.reads:
            if step.made_by.get(node, number) < number:
                reads[-1].append(step.made_by[node])
            else:
                inputs.setdefault((node, reduced), axes.shape(widths.shape(node), reduced=reduced))
                reads[-1].append((node, reduced))
    position = {value: number for number, value in enumerate(inputs)}
    operators = []
    for operator, read in zip(step.operators, reads, strict=True):
        attributes = dict(operator.attributes)
        if operator.operand is not None:
            attributes["operand"] = axes.shape(widths.shape(operator.operand))
        operators.append(
            Operator(
                name=operator.name,
                reads=_in_order(operator, (len(inputs) + o if isinstance(o, int) else position[o] for o in read)),
                shape=axes.shape(widths.shape(operator.result)),
                attributes=tuple(sorted(attributes.items())),
            )
        )
    name = module_path_of(step.anchor.node)
    return UnitTerm(
        name=name,
        unit=Unit(inputs=tuple(inputs.values()), operators=tuple(operators), axes=len(axes.widths)),
        widths=axes.widths,
        branches=branches_around(name, graph.branches),
    )


def _in_order(operator: Described, reads: Iterable[int]) -> tuple[int, ...]:
    """The numbers of the values read, the latest first where their order does not matter."""
    return tuple(sorted(reads, reverse=True) if operator.name in ("add", "mul") else reads)
