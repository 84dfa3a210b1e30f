"""Which operator of an exported program reads what, once the parts that compute nothing are looked through.

Writing in place is undone: whoever reads a value after an operator wrote to it reads the result of that operator. What
is computed from parameters alone is constant, as engines fold it.
"""

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from prune2deploy.graph.interpret import bound_arguments, name_of
from prune2deploy.graph.labelling import operator_name
from prune2deploy.graph.sizes import shape_of

_GONE = frozenset(
    {"alias", "alpha_dropout", "clone", "contiguous", "detach", "dropout", "feature_dropout", "lift_fresh_copy"}
)
"""Operators that an engine leaves out: their result is their argument."""
_CASTS = frozenset({"_to_copy", "to", "type_as"})
_BLANK = frozenset(
    {"empty_like", "full_like", "new_empty", "new_full", "new_ones", "new_zeros", "ones_like", "zeros_like"}
)
"""Operators that read nothing of their argument but its shape and type."""
_VIEWS = frozenset(
    {
        "chunk",
        "expand",
        "expand_as",
        "flatten",
        "movedim",
        "narrow",
        "permute",
        "reshape",
        "select",
        "slice",
        "split",
        "split_with_sizes",
        "squeeze",
    }
    | {"swapaxes", "t", "tensor_split", "transpose", "unbind", "unflatten", "unsqueeze", "unsafe_split", "view"}
    | {"_unsafe_view", "reshape_as", "view_as"}
)
"""Operators that look at the data of their first argument in another way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """An operator that computes: its arguments by schema name, each value by the node that makes it.

    ``reads`` are the values among them that are no constants, each once.
    """

    node: Node
    name: str
    arguments: Mapping[str, Any]
    reads: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Dataflow:
    """The operators of a program that compute, and the values between them.

    ``readers`` are those that read a value: operators, views, the output of the model. ``base`` maps a view to the
    value whose data it looks at. ``constants`` are parameters, buffers and what is computed from them alone.
    """

    calls: list[Call] = field(default_factory=list)
    inputs: list[Node] = field(default_factory=list)
    outputs: list[Node] = field(default_factory=list)
    readers: dict[Node, list[Node]] = field(default_factory=dict)
    base: dict[Node, Node] = field(default_factory=dict)
    constants: set[Node] = field(default_factory=set)

    @classmethod
    def of(cls, program: ExportedProgram) -> "Dataflow":
        """That of an exported program with one size of every dimension."""
        return _Reading(program).flow

    def data_of(self, node: Node) -> Node:
        """The value that holds the data of ``node``: itself, or what it is a view of."""
        return self.base.get(node, node)


class _Reading:
    """Walks a program once, in order."""

    def __init__(self, program: ExportedProgram) -> None:
        self.flow = Dataflow()
        self._now: dict[Node, Node] = {}
        inputs = set(program.graph_signature.user_inputs)
        for node in program.graph.nodes:
            if node.op == "call_function":
                self._read(node)
            elif node.op == "output":
                self.flow.outputs.extend(self._note_reads(node, node.args))
            elif node.name in inputs:
                self.flow.inputs.append(node)
            else:
                self.flow.constants.add(node)

    def _read(self, node: Node) -> None:
        arguments = self._arguments(node)
        name = name_of(node.target) if isinstance(node.target, torch._ops.OpOverload) else operator_name(node)
        reads = self._activations(arguments)
        if not reads or name in _BLANK or not isinstance(node.meta.get("val"), torch.Tensor | list | tuple):
            self.flow.constants.add(node)
            return
        if _computes_nothing(node, name, arguments):
            self._now[node] = reads[0]
            return
        self._note_reads(node, arguments)
        if name in _VIEWS or node.target is operator.getitem:
            self.flow.base[node] = self.flow.data_of(reads[0])
        else:
            self.flow.calls.append(Call(node=node, name=name, arguments=arguments, reads=reads))
        if isinstance(node.target, torch._ops.OpOverload):
            for parameter in node.target._schema.arguments:
                written = arguments.get(parameter.name)
                if parameter.alias_info is not None and parameter.alias_info.is_write and isinstance(written, Node):
                    self._now[written] = node

    def _arguments(self, node: Node) -> dict[str, Any]:
        if isinstance(node.target, torch._ops.OpOverload):
            return bound_arguments(node, self._resolved)
        return {str(number): self._resolved(one) for number, one in enumerate(node.all_input_nodes)}

    def _resolved(self, node: Node) -> Node:
        while node in self._now:
            node = self._now[node]
        return node

    def _activations(self, arguments: Any) -> tuple[Node, ...]:
        return tuple(dict.fromkeys(one for one in _nodes_in(arguments) if one not in self.flow.constants))

    def _note_reads(self, node: Node, arguments: Any) -> tuple[Node, ...]:
        found = tuple(dict.fromkeys(self._resolved(one) for one in _nodes_in(arguments)))
        reads = tuple(one for one in found if one not in self.flow.constants)
        for one in reads:
            self.flow.readers.setdefault(one, []).append(node)
        return reads


def _computes_nothing(node: Node, name: str, arguments: Mapping[str, Any]) -> bool:
    """Whether the result is the first argument."""
    if name in _CASTS:
        return bool(node.meta["val"].dtype == arguments["self"].meta["val"].dtype)
    if name == "pad":
        return shape_of(node) == shape_of(arguments["self"])
    return name in _GONE or (name == "cat" and len(arguments["tensors"]) == 1)


def _nodes_in(arguments: Any) -> Iterator[Node]:
    if isinstance(arguments, Node):
        yield arguments
    elif isinstance(arguments, Mapping):
        for one in arguments.values():
            yield from _nodes_in(one)
    elif isinstance(arguments, list | tuple):
        for one in arguments:
            yield from _nodes_in(one)
