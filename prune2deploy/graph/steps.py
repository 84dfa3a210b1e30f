"""The steps of a forward pass: an operator with its tail, the operators that run on with its result in place."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from torch.fx import Node

from prune2deploy.graph.dataflow import Call, Dataflow
from prune2deploy.graph.sizes import shape_of
from prune2deploy.graph.unit_operators import IN_TAILS, Described, described
from prune2deploy.graph.value_widths import ValueWidths


@dataclass(slots=True, kw_only=True)
class Step:
    """What runs as one: ``calls`` in order, with what each is, and the value that it ends with.

    ``operators`` is empty for an operator that units do not hold. A batch norm that is folded into the weights before
    it is not among them. ``made_by`` is the position in ``operators`` of what makes each of its values.
    """

    calls: list[Call]
    operators: list[Described] = field(default_factory=list)
    made_by: dict[Node, int] = field(default_factory=dict)

    @property
    def result(self) -> Node:
        """The value that it ends with."""
        return self.calls[-1].node

    @property
    def anchor(self) -> Call:
        """The operator that it begins with."""
        return self.calls[0]

    def reads(self) -> Iterator[Node]:
        """The values from outside that its operators read."""
        own = {call.node for call in self.calls}
        return (node for call in self.calls for node in call.reads if node not in own)

    def extend(self, call: Call, operator: Described | None) -> None:
        """Add an operator at its end; a batch norm goes into the weights of the one before."""
        if self.calls and call.name == "batch_norm":
            [weighted] = self.operators
            self.operators = [replace(weighted, attributes={**weighted.attributes, "bias": True})]
        elif operator is not None:
            self.operators.append(operator)
        self.calls.append(call)
        self.made_by[call.node] = len(self.operators) - 1


def steps_of(flow: Dataflow, widths: ValueWidths) -> tuple[Step, ...]:
    """All steps, in the order of execution.

    An operator joins the step whose result it reads, if nothing else reads that and the shape stays. Of two values
    that are added, the later one takes the addition into its step: the other is there by then.
    """
    steps: list[Step] = []
    made_at: dict[Node, int] = {}
    for call in flow.calls:
        operator = described(call, flow, widths)
        number = _joins(call, operator, steps, made_at, flow, widths)
        if number is None:
            number = len(steps)
            steps.append(Step(calls=[]))
        steps[number].extend(call, operator)
        made_at[call.node] = number
    return tuple(steps)


def _joins(
    call: Call,
    operator: Described | None,
    steps: list[Step],
    made_at: dict[Node, int],
    flow: Dataflow,
    widths: ValueWidths,
) -> int | None:
    """The number of the step that a call runs on with, None where it begins one of its own."""
    if operator is None or not (call.name in IN_TAILS or call.name == "batch_norm"):
        return None
    number, last = max(((made_at.get(flow.data_of(one), -1), one) for one in call.reads), key=lambda made: made[0])
    if number < 0 or steps[number].result is not last or flow.readers[last] != [call.node]:
        return None
    step = steps[number]
    if call.name == "batch_norm":
        return number if len(step.calls) == 1 and _takes_norms(step) else None
    shape = widths.shape(call.node)
    alike = all(widths.shape(one) == shape for one in call.reads)
    joins = step.operators and alike and (len(operator.reads) == 1 or call.name == "add")
    return number if joins else None


def _takes_norms(step: Step) -> bool:
    """Whether a batch norm after the step goes into the weights of its operator, as exporters fold it."""
    name = step.operators[0].name if step.operators else ""
    return name.startswith("conv") or (name == "linear" and len(shape_of(step.result)) == len(("batch", "features")))
