"""Residual branches that can leave whole: found in the exported program, as data for masks and plans.

Where ``y = x + f(x)``, the branch f can leave and the shortcut stays; y is x then. The modules of f are replaced: those
that read x give zeros of its shape, the others pass on what they get, and code between them runs on zeros. That is
exact at any batch and width, in training and evaluation, if

- nothing else reads what the branch computes, and nothing else uses its weights;
- whatever it reads has the shape and the channels of what is added to, so that zeros of that shape can be added (a
  branch that changes the stride or the width has no such input, and stays);
- code between its modules neither names sizes nor writes to what it did not make;
- the other operand of the addition is not such a branch itself.

A branch must have groups of its own, since a mask says that it leaves by emptying these. Source: Lym et al. 2019
(PruneTrain), which removes a branch with an empty layer.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.fx import Node

from prune2deploy.graph.becomes import Becomes
from prune2deploy.graph.channels import FROZEN, Branch, ChannelGraph
from prune2deploy.graph.cost import CostTerm
from prune2deploy.graph.interpret import Interpretation
from prune2deploy.graph.labels import Labels, Value

_ADDITIONS = frozenset({"add"})
_KEEP_ZERO = frozenset(
    {
        "alpha_dropout",
        "celu",
        "clone",
        "contiguous",
        "dropout",
        "elu",
        "feature_dropout",
        "gelu",
        "hardswish",
        "hardtanh",
    }
    | {"leaky_relu", "mish", "relu", "relu6", "rrelu", "selu", "silu", "tanh"}
)
"""Operators of one value that give zero for zero, entry by entry."""
_OTHERS = frozenset({"hardsigmoid", "sigmoid", "softplus"})
"""Operators of one value that do not."""
_PRODUCTS = frozenset({"mul", "div"})
_TURNS = frozenset({"permute", "transpose"})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """A module that runs once, wholly inside a branch, from one value to another."""

    path: str
    nodes: frozenset[Node]
    reads: Node
    gives: Node


@dataclass(frozen=True, slots=True, kw_only=True)
class _Flow:
    """A value inside a branch once its modules are replaced.

    ``dims`` are the dimensions of the addition that its own are; ``zero`` says that it is zero everywhere.
    """

    dims: tuple[int, ...]
    zero: bool


class _NotRemovableError(Exception):
    """The branch computes in a way that zeros cannot be sent through."""


def with_branches(
    graph: ChannelGraph, program: ExportedProgram, interpretation: Interpretation, channel_of_label: Labels
) -> ChannelGraph:
    """``graph``, of ``program``, with its residual branches. ``channel_of_label`` has shape (label count,)."""
    found = _Finder(graph, program, interpretation, channel_of_label).branches()
    if not found:
        return graph
    inside = {
        branch.name: np.concatenate([graph.groups[index].channels for index in branch.groups]) for branch in found
    }
    cost = replace(
        graph.cost,
        branches=inside,
        flop_terms=tuple(
            replace(term, branches=_branches_of(term, found, of_tensor=False)) for term in graph.cost.flop_terms
        ),
        parameter_terms=tuple(
            replace(term, branches=_branches_of(term, found, of_tensor=True)) for term in graph.cost.parameter_terms
        ),
    )
    return replace(graph, branches=found, cost=cost)


def branches_around(path: str, branches: Iterable[Branch]) -> tuple[str, ...]:
    """The residual branches with which the operators of a module leave, by name."""
    return tuple(branch.name for branch in branches if any(_is_within(path, inside) for inside in branch.modules))


def _branches_of(term: CostTerm, branches: Iterable[Branch], *, of_tensor: bool) -> tuple[str, ...]:
    if of_tensor:
        return tuple(branch.name for branch in branches if term.layer in branch.tensors)
    return branches_around(term.layer, branches)


def _is_within(name: str, path: str) -> bool:
    return name == path or name.startswith(f"{path}.")


class _Finder:
    """Looks for branches in one program."""

    def __init__(
        self,
        graph: ChannelGraph,
        program: ExportedProgram,
        interpretation: Interpretation,
        channel_of_label: Labels,
    ) -> None:
        signature = program.graph_signature
        self._graph = graph
        self._values = interpretation.values
        self._channel_of_label = channel_of_label
        self._state: Mapping[str, str] = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        constants = {*self._state, *signature.inputs_to_lifted_tensor_constants}
        self._nodes = list(program.graph.nodes)
        self._order = {node: number for number, node in enumerate(self._nodes)}
        self._constant = {node for node in self._nodes if node.op == "get_attr" or node.name in constants}
        for node in self._nodes:
            inputs = node.all_input_nodes
            if inputs and node.op == "call_function" and self._constant.issuperset(inputs) and not _written_by(node):
                self._constant.add(node)
        self._nodes_of: dict[str, set[Node]] = {}
        for node in self._nodes:
            for path in _paths_of(node):
                self._nodes_of.setdefault(path, set()).add(node)

    def branches(self) -> tuple[Branch, ...]:
        """All of them, in the order of execution, each with a name of its own."""
        found = [branch for node in self._nodes if node.op == "call_function" for branch in self._at(node)]
        names = [branch.name for branch in found]
        return tuple(
            replace(branch, name=f"{next(iter(branch.modules))} to {branch.name}")
            if names.count(branch.name) > 1
            else branch
            for branch in found
        )

    def _at(self, node: Node) -> Iterator[Branch]:
        if _name_of(node) not in _ADDITIONS or len(node.args) < 2:
            return
        operands = node.args[:2]
        if any(not isinstance(one, Node) or one in self._constant for one in operands) or operands[0] is operands[1]:
            return
        branches = [
            branch
            for argument, operand in enumerate(operands)
            if isinstance(operand, Node) and (branch := self._branch(node, argument, operand)) is not None
        ]
        if len(branches) == 1:  # without a shortcut, nothing would be left of the addition
            yield branches[0]

    def _branch(self, addition: Node, argument: int, result: Node) -> Branch | None:
        shape = _shape(result)
        if shape is None or shape != _shape(addition) or set(result.users) != {addition}:
            return None
        inside = self._leading_to(result)
        calls = self._calls_within(inside)
        for zeros_everywhere in (False, True):
            try:
                becomes = self._replaced(calls, inside, result, zeros_everywhere=zeros_everywhere)
            except _NotRemovableError:
                return None
            if becomes is not None:
                return self._record(addition, argument, becomes)
        return None

    def _leading_to(self, result: Node) -> set[Node]:
        """The operators whose results have no effect but through ``result``."""
        outside: set[Node] = set()
        while True:
            inside = self._leading_only_to(result, outside)
            writing = {node for node in inside if any(one not in inside for one in _written_by(node))}
            if not writing:
                return inside
            outside |= writing

    def _leading_only_to(self, result: Node, outside: Set[Node]) -> set[Node]:
        inside: set[Node] = set()
        pending = [-self._order[result]]
        seen = set(pending)
        while pending:  # latest first, so that all users of a node were looked at before it
            node = self._nodes[-heapq.heappop(pending)]
            leads_there = node is result or inside.issuperset(node.users)
            if node.op == "call_function" and leads_there and node not in outside:
                inside.add(node)
                for number in {-self._order[one] for one in node.all_input_nodes} - seen:
                    seen.add(number)
                    heapq.heappush(pending, number)
        return inside

    def _calls_within(self, inside: Set[Node]) -> tuple[_Call, ...]:
        """The outermost modules that can be replaced, in the order of execution."""
        paths = {path for node in inside for path in _paths_of(node) if path}
        found: list[_Call] = []
        for path in sorted(paths, key=lambda one: (one.count("."), one)):
            if any(_is_within(path, call.path) for call in found):
                continue
            if (call := self._call(path, inside)) is not None:
                found.append(call)
        return tuple(sorted(found, key=lambda call: self._order[call.gives]))

    def _call(self, path: str, inside: Set[Node]) -> _Call | None:
        nodes = self._nodes_of[path]
        if not nodes <= inside:
            return None
        read = {one for node in nodes for one in node.all_input_nodes if one not in nodes}
        own = {
            node
            for node in self._constant
            if _is_within(self._state.get(node.name, ""), path) and nodes >= set(node.users)
        }
        named = {node for node in self._constant if _is_within(self._state.get(node.name, ""), path)}
        foreign = {one for one in read if self._state.get(one.name, "") and one not in own}
        data = {one for one in read if one not in self._constant}
        results = [node for node in nodes if any(user not in nodes for user in node.users)]
        if named != own or foreign or len(data) != 1 or len(results) != 1 or _shape(results[0]) is None:
            return None
        return _Call(path=path, nodes=frozenset(nodes), reads=data.pop(), gives=results[0])

    def _replaced(
        self, calls: tuple[_Call, ...], inside: Set[Node], result: Node, *, zeros_everywhere: bool
    ) -> dict[str, Becomes] | None:
        """What each module becomes, so that ``result`` is zero and of its shape; None where it would not be zero.

        Raises:
            _NotRemovableError: what lies between the modules cannot work on zeros of this shape.
        """
        becomes: dict[str, Becomes] = {}
        flows: dict[Node, _Flow] = {}
        hidden = {node for call in calls for node in call.nodes}
        whole = tuple(range(len(_shape(result) or ())))

        def flow_of(node: Node) -> _Flow:
            if node in inside:
                if node not in flows:  # a module that gives no single value
                    raise _NotRemovableError
                return flows[node]
            if not self._is_like(node, result):
                raise _NotRemovableError
            return _Flow(dims=whole, zero=False)

        starts = {min(call.nodes, key=self._order.__getitem__): call for call in calls}
        for node in sorted(inside, key=self._order.__getitem__):
            call = starts.get(node)
            if call is not None:
                flow = flow_of(call.reads)
                zeros = zeros_everywhere or call.reads not in inside
                becomes[call.path] = Becomes.ZEROS if zeros else Becomes.INPUT
                flows[call.gives] = _Flow(dims=flow.dims, zero=flow.zero or zeros)
            elif node not in hidden and node not in self._constant:
                flows[node] = self._between(node, flow_of, result)
        if result not in flows or flows[result].dims != whole:
            raise _NotRemovableError
        return becomes if flows[result].zero else None

    def _between(self, node: Node, flow_of: Callable[[Node], _Flow], result: Node) -> _Flow:
        """The flow of an operator of the code between the modules."""
        name = _name_of(node)
        arguments = [one for one in node.all_input_nodes if one not in self._constant]
        flows = [flow_of(one) for one in arguments]
        if name in _KEEP_ZERO | _OTHERS and len(flows) == 1 and node.all_input_nodes == arguments:
            return _Flow(dims=flows[0].dims, zero=flows[0].zero and name in _KEEP_ZERO)
        if name in _PRODUCTS | _ADDITIONS and self._is_entrywise(node, flows, result):
            zeros = [flow.zero for flow in flows]
            if name == "div":
                zero = len(flows) == 1 and zeros[0] and node.args[0] is arguments[0]
            else:
                zero = any(zeros) if name == "mul" else all(zeros) and len(flows) == 2
            return _Flow(dims=flows[0].dims, zero=zero)
        if name in _TURNS and len(flows) == 1:
            return replace(flows[0], dims=_turned(node, flows[0].dims))
        raise _NotRemovableError

    def _is_entrywise(self, node: Node, flows: list[_Flow], result: Node) -> bool:
        """Whether an operator of two arguments has the shape of those that flow, now and whatever leaves."""
        if not 1 <= len(flows) <= 2 or len({flow.dims for flow in flows}) != 1:
            return False
        constants = [one for one in node.all_input_nodes if one in self._constant]
        return all(self._broadcasts_to(one, flows[0].dims, result) for one in constants)

    def _broadcasts_to(self, constant: Node, dims: tuple[int, ...], result: Node) -> bool:
        """Whether a constant has, along each dimension, one entry or the channels of ``result`` there."""
        shape, value, whole = _shape(constant), self._values.get(constant.name), self._values.get(result.name)
        if shape is None or not isinstance(value, Value) or not isinstance(whole, Value) or len(shape) > len(dims):
            return False
        return all(
            size == 1 or np.array_equal(self._channels(value, dim), self._channels(whole, along))
            for dim, (size, along) in enumerate(zip(shape, dims[len(dims) - len(shape) :], strict=True))
        )

    def _is_like(self, node: Node, result: Node) -> bool:
        """Whether a value from outside has the shape of the addition, now and whatever leaves."""
        if _shape(node) is None or _shape(node) != _shape(result) or _type(node) != _type(result):
            return False
        first, second = self._values.get(node.name), self._values.get(result.name)
        if not isinstance(first, Value) or not isinstance(second, Value):
            return False
        return all(
            np.array_equal(self._channels(first, dim), self._channels(second, dim)) for dim in range(len(first.shape))
        )

    def _channels(self, value: Value, dim: int) -> Labels:
        labels = value.labels_of(dim)
        return np.full(value.shape[dim], FROZEN) if labels is None else self._channel_of_label[labels]

    def _record(self, addition: Node, argument: int, becomes: Mapping[str, Becomes]) -> Branch | None:
        """The branch, if it has groups of its own and shares no tensor."""
        names = {name for name in self._graph.shapes if any(_is_within(name, path) for path in becomes)}
        first_names = {self._graph.aliases.get(name, name) for name in names}
        shared = {name for name, first in self._graph.aliases.items() if first in first_names} - names
        if shared or not first_names <= names:
            return None
        touched: dict[int, bool] = {}
        for axis in self._graph.axes:
            for index in np.unique(self._graph.group_of[axis.channels[axis.channels != FROZEN]]).tolist():
                touched[index] = touched.get(index, True) and axis.tensor in names
        groups = tuple(sorted(index for index, inside in touched.items() if inside))
        if not groups:
            return None
        return Branch(
            name=list(becomes)[-1],
            modules=dict(becomes),
            groups=groups,
            tensors=tuple(name for name in self._graph.shapes if name in names),
            node=addition.name,
            argument=argument,
        )


def _paths_of(node: Node) -> list[str]:
    """Paths of the modules that were running, outermost first, without the model itself."""
    stack = node.meta.get("nn_module_stack") or {}
    return [str(entry[0] if isinstance(entry, tuple) else entry) for entry in stack.values()][1:]


def _name_of(node: Node) -> str:
    if not isinstance(node.target, torch._ops.OpOverload):
        return ""
    return node.target._schema.name.removeprefix("aten::").removesuffix("_")


def _written_by(node: Node) -> list[Node]:
    """The arguments that an operator writes to."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return list(node.all_input_nodes)
    return [
        value
        for argument, value in zip(node.target._schema.arguments, node.args, strict=False)
        if argument.alias_info is not None and argument.alias_info.is_write and isinstance(value, Node)
    ]


def _shape(node: Node) -> tuple[int, ...] | None:
    value = node.meta.get("val")
    return tuple(int(size) for size in value.shape) if isinstance(value, torch.Tensor) else None


def _type(node: Node) -> torch.dtype:
    dtype: torch.dtype = node.meta["val"].dtype
    return dtype


def _turned(node: Node, dims: tuple[int, ...]) -> tuple[int, ...]:
    turned = list(dims)
    if _name_of(node) == "permute":
        order = node.args[1]
        assert isinstance(order, list | tuple)
        return tuple(dims[int(one)] for one in order)  # type: ignore[arg-type]
    first, second = int(node.args[1]), int(node.args[2])  # type: ignore[arg-type]
    turned[first], turned[second] = dims[second], dims[first]
    return tuple(turned)
