"""Run the rules over an exported program: the labels of each value, and what holds them together.

Labels of parameters and buffers are numbered by the model's own order of tensors, before any other label. So two
exports of one model (in another mode, or with a dynamic batch) agree on them.
"""

import operator
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from prune2deploy.errors import ModelError
from prune2deploy.graph.labelling import Labelling, operator_name, place_of
from prune2deploy.graph.labels import AttentionAxis, AxisKey, Block, Value
from prune2deploy.graph.resolve import TensorFacts
from prune2deploy.graph.rules import Call, rule_for
from prune2deploy.graph.sizes import has_known_size, shape_of

Values = Value | tuple[Value, ...]
_DECISIVE = 1_000_000  # votes: more than all operators of a graph have together


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpretation:
    """What interpreting a program established: the record of the rules, and the labels of every node's result.

    ``values`` maps a node's name to its value (a tuple of values where the operator has several results). All blocks
    cover one dimension each.
    """

    labelling: Labelling
    values: Mapping[str, Values]


def interpret(
    program: ExportedProgram,
    tensors: Mapping[str, TensorFacts],
    *,
    sizes_are_free: bool = False,
    attention: AttentionAxis = AttentionAxis.HEADS,
) -> Interpretation:
    """Label all values of ``program``; ``tensors`` are those of the exported model (``tensors_of``).

    ``sizes_are_free``: sizes written in the code are no constraint, because they will be rewritten in the program.
    ``attention``: what is to leave attentions.

    Raises:
        ModelError: some size in the program depends on data.
    """
    _check_sizes(program)
    undecided = _interpreted(program, tensors, Labelling(sizes_are_free=sizes_are_free)).labelling

    def decided(within: Set[AxisKey] = frozenset()) -> Interpretation:
        wanted = Counter(undecided.votes)
        for axis in within:
            for key in undecided.with_parents(axis):
                wanted[key] += _DECISIVE
        state = Labelling(votes=wanted, collapse=True, sizes_are_free=sizes_are_free)
        return _interpreted(program, tensors, state)

    whole_heads = decided()
    if attention is AttentionAxis.HEADS or not (within := _axes_within_heads(whole_heads.labelling, undecided)):
        return whole_heads
    positions = decided(within)
    needed = _axes_frozen(positions.labelling) & within
    return decided(within - needed) if needed else positions


def _axes_within_heads(state: Labelling, undecided: Labelling) -> set[AxisKey]:
    """The axes along which the heads of attentions stay whole.

    Heads that are a part of an axis (of all keys beside all values, say) went through more than one reduction: the
    last one counts.
    """
    divided = {key for one in state.of_heads for key in undecided.with_parents(one.kept) if key != one.kept}
    return {one.kept for one in state.of_heads if one.cut not in divided}


def _axes_frozen(state: Labelling) -> set[AxisKey]:
    """Axes of reshapes that some operator froze, once they had been chosen to be cut."""
    frozen = (label for _, labels in state.freezes for label in labels.tolist())
    return {one.cut for label in frozen for one in state.reductions.get(label, ())}


def _check_sizes(program: ExportedProgram) -> None:
    """Refuse a program in which some size depends on data: nothing can be said of its cost or its channels."""
    for node in program.graph.nodes:
        for value in torch.utils._pytree.tree_leaves(node.meta.get("val")):
            if isinstance(value, torch.Tensor) and not all(map(has_known_size, value.shape)):
                raise ModelError(
                    f"the result of {operator_name(node)} has a size that depends on data",
                    where=place_of(node) or None,
                    hint="leave what selects by value (masks as indices, nonzero, unique) out of the model",
                )


def tensors_of(model: nn.Module) -> dict[str, TensorFacts]:
    """All tensors of the ``state_dict`` and all other buffers, with the first alias of shared ones.

    A buffer outside the ``state_dict`` has no labels: a plan cannot name it, so it is data of fixed size.
    """
    first_name: dict[int, str] = {}
    facts: dict[str, TensorFacts] = {}
    stored = set(model.state_dict(keep_vars=True))
    named = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    for name, tensor in named:
        alias = first_name.setdefault(id(tensor), name)
        facts[name] = TensorFacts(
            name=name,
            canonical=alias,
            shape=tuple(tensor.shape),
            learnable=isinstance(tensor, nn.Parameter),
            labelled=tensor.is_floating_point() and alias in stored,
            stored=name in stored,
        )
    return facts


def _interpreted(program: ExportedProgram, tensors: Mapping[str, TensorFacts], state: Labelling) -> Interpretation:
    """One pass of the rules over the program."""
    signature = program.graph_signature
    source = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    constants = signature.inputs_to_lifted_tensor_constants if state.sizes_are_free else {}
    _label_tensors(tensors, state)
    environment: dict[torch.fx.Node, Values] = {}
    for node in program.graph.nodes:
        state.node = node
        if node.op == "placeholder":
            facts = tensors.get(source.get(node.name, ""))
            if facts is not None and (facts.stored or not state.sizes_are_free):
                environment[node] = state.tensors[facts.canonical]
            elif facts is not None or node.name in constants:
                environment[node] = _constant(node, state)
            else:
                environment[node] = Value(shape_of(node))
        elif node.op == "output":
            for value in _values(node.args, environment):
                state.freeze_value(value, "is an output of the model", node)
        elif node.op == "call_function":
            _note_use(node, source, tensors, state)
            environment[node] = _call(node, environment, state)
        else:
            environment[node] = Value(shape_of(node))
    return Interpretation(labelling=state, values={node.name: value for node, value in environment.items()})


def _constant(node: torch.fx.Node, state: Labelling) -> Value:
    """Data that the program holds beside the ``state_dict``: editing the program can cut it too."""
    shape = shape_of(node)
    return Value(shape, tuple(Block.of(dim, state.new_labels(size)) for dim, size in enumerate(shape) if size > 1))


def _label_tensors(tensors: Mapping[str, TensorFacts], state: Labelling) -> None:
    for facts in tensors.values():
        if facts.name == facts.canonical:
            sizes = enumerate(facts.shape) if facts.labelled else ()
            blocks = tuple(Block.of(dim, state.new_labels(size)) for dim, size in sizes if size > 1)
            state.tensors[facts.name] = Value(facts.shape, blocks, facts.name)
    state.tensor_label_count = state.label_count


def _note_use(
    node: torch.fx.Node, source: Mapping[str, str], tensors: Mapping[str, TensorFacts], state: Labelling
) -> None:
    for argument in node.all_input_nodes:
        name = source.get(argument.name) if argument.op == "placeholder" else None
        if name is not None and name in tensors:
            state.used_tensors.setdefault(tensors[name].canonical)


def _call(node: torch.fx.Node, environment: Mapping[torch.fx.Node, Values], state: Labelling) -> Values:
    if node.target is operator.getitem:
        source = environment[node.args[0]]  # type: ignore[index]
        return source[int(node.args[1])] if isinstance(source, tuple) else Value(shape_of(node))  # type: ignore[arg-type]
    if not isinstance(node.target, torch._ops.OpOverload):
        for value in _values([*node.args, *node.kwargs.values()], environment):
            state.freeze_value(value, "passes through an operator of higher order", node)
        result = node.meta.get("val")
        if isinstance(result, list | tuple):
            return tuple(Value(tuple(getattr(one, "shape", ()))) for one in result)
        return Value(shape_of(node))
    arguments = bound_arguments(node, environment.__getitem__)
    call = Call(node=node, name=name_of(node.target), arguments=arguments, state=state)
    if not isinstance(node.meta.get("val"), torch.Tensor | list | tuple):
        return Value(())
    rule = rule_for(call)
    return rule(call) if rule is not None else call.freeze_all("passes through an operator that has no rule")


def bound_arguments(node: torch.fx.Node, replacement: Callable[[torch.fx.Node], Any]) -> dict[str, Any]:
    """Arguments of an ATen operator by schema name, nodes replaced by what stands for them, defaults filled in."""
    assert isinstance(node.target, torch._ops.OpOverload)
    bound: dict[str, Any] = {}
    for position, parameter in enumerate(node.target._schema.arguments):
        if position < len(node.args):
            argument: Any = node.args[position]
        elif parameter.name in node.kwargs:
            argument = node.kwargs[parameter.name]
        else:
            argument = parameter.default_value if parameter.has_default_value() else None
        bound[parameter.name] = _replaced(argument, replacement)
    return bound


def _replaced(argument: Any, replacement: Callable[[torch.fx.Node], Any]) -> Any:
    if isinstance(argument, torch.fx.Node):
        return replacement(argument)
    if isinstance(argument, list | tuple):
        return [_replaced(one, replacement) for one in argument]
    return argument


def _values(arguments: Sequence[Any], environment: Mapping[torch.fx.Node, Values]) -> list[Value]:
    found: list[Value] = []
    for argument in arguments:
        if isinstance(argument, torch.fx.Node):
            value = environment[argument]
            found.extend(value if isinstance(value, tuple) else [value])
        elif isinstance(argument, Mapping):
            found.extend(_values(list(argument.values()), environment))
        elif isinstance(argument, list | tuple):
            found.extend(_values(argument, environment))
    return found


def name_of(target: torch._ops.OpOverload) -> str:
    """``aten::relu_`` and ``aten::relu`` move labels alike."""
    name = target._schema.name.split("::")[-1]
    return name[:-1] if name.endswith("_") and not name.startswith("__") else name
