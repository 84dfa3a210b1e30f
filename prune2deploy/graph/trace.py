"""From a module to its channel graph: export, interpret, resolve."""

import operator
import traceback
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from prune2deploy.errors import ModelError
from prune2deploy.graph.channels import ChannelGraph
from prune2deploy.graph.labelling import Labelling, operator_name, place_of
from prune2deploy.graph.labels import Block, Value
from prune2deploy.graph.resolve import ReadDimension, TensorFacts, resolve
from prune2deploy.graph.rules import Call, rule_for


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A model's channel graph, with what a proof needs beside it.

    ``program`` is the exported dense model. ``reads`` are the places where channels are summed over, ``norms``
    those where statistics are taken over channels.
    """

    graph: ChannelGraph
    program: ExportedProgram
    reads: tuple[ReadDimension, ...]
    norms: tuple[ReadDimension, ...]


def trace(model: nn.Module, example_inputs: torch.Tensor | Sequence[Any]) -> Trace:
    """Trace ``model`` in evaluation mode and find its channels.

    ``example_inputs`` are the positional arguments of ``forward``; with a batch of 1, FLOPs are those of one input.
    The model is left as it was.

    Raises:
        ModelError: ``torch.export`` cannot trace the model; the message names the line.
    """
    inputs = (example_inputs,) if isinstance(example_inputs, torch.Tensor) else tuple(example_inputs)
    return trace_program(model, export_program(model, inputs))


def trace_program(model: nn.Module, program: ExportedProgram) -> Trace:
    """Find the channels of ``model`` in ``program``, its own export.

    Raises:
        ModelError: some size in the program depends on data.
    """
    tensors = _tensor_facts(model)
    _check_sizes(program)
    first = _interpret(program, tensors, Labelling())
    final = _interpret(program, tensors, Labelling(votes=first.votes, collapse=True))
    graph, reads, norms = resolve(final, tensors)
    return Trace(graph=graph, program=program, reads=reads, norms=norms)


def export_program(model: nn.Module, inputs: tuple[Any, ...]) -> ExportedProgram:
    """``torch.export`` in evaluation mode, with its errors translated and its chatter kept quiet."""
    was_training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            return torch.export.export(model, inputs, strict=False)
    except Exception as error:
        raise _untraceable(model, inputs, error) from error
    finally:
        for module, training in was_training.items():
            module.training = training


def _untraceable(model: nn.Module, inputs: tuple[Any, ...], error: Exception) -> ModelError:
    """Why a model was not exported: its code fails by itself on these inputs, or ``torch.export`` cannot follow it."""
    try:
        with torch.no_grad():
            model(*torch.utils._pytree.tree_map_only(torch.Tensor, torch.Tensor.clone, inputs))
    except Exception as own:  # noqa: BLE001  # told to the user, whatever it is
        shapes = [tuple(one.shape) for one in torch.utils._pytree.tree_leaves(inputs) if isinstance(one, torch.Tensor)]
        return ModelError(
            f"the model fails on inputs of shape {', '.join(map(str, shapes))}: {_summary(own)}",
            where=_line_in_user_code(own),
            hint="pass the input size that it expects with --input",
        )
    return ModelError(
        f"the model cannot be exported: {_summary(error)}",
        where=_line_in_user_code(error),
        hint="rewrite that line without control flow on data: what torch.export cannot trace cannot be deployed",
    )


def _summary(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _check_sizes(program: ExportedProgram) -> None:
    """Refuse a program in which some size depends on data: nothing can be said of its cost or its channels."""
    for node in program.graph.nodes:
        for value in torch.utils._pytree.tree_leaves(node.meta.get("val")):
            if isinstance(value, torch.Tensor) and not all(isinstance(size, int) for size in value.shape):
                raise ModelError(
                    f"the result of {operator_name(node)} has a size that depends on data",
                    where=place_of(node) or None,
                    hint="leave what selects by value (masks as indices, nonzero, unique) out of the model",
                )


def _line_in_user_code(error: BaseException) -> str | None:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/torch/" not in frame.filename]
    outside = [frame for frame in frames if frame.filename != __file__]
    return f"{outside[-1].filename}:{outside[-1].lineno}" if outside else None


def _tensor_facts(model: nn.Module) -> dict[str, TensorFacts]:
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


def _interpret(program: ExportedProgram, tensors: Mapping[str, TensorFacts], state: Labelling) -> Labelling:
    """Run the rules over the exported graph once."""
    signature = program.graph_signature
    source = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    labelled: dict[str, Value] = {}
    environment: dict[torch.fx.Node, Value | tuple[Value, ...]] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            environment[node] = _placeholder(node, source.get(node.name), tensors, labelled, state)
        elif node.op == "output":
            for value in _values(node.args, environment):
                state.freeze_value(value, "is an output of the model", node)
        elif node.op == "call_function":
            _note_use(node, source, tensors, state)
            environment[node] = _call(node, environment, state)
        else:
            environment[node] = Value(_shape_of(node))
    return state


def _placeholder(
    node: torch.fx.Node,
    name: str | None,
    tensors: Mapping[str, TensorFacts],
    labelled: dict[str, Value],
    state: Labelling,
) -> Value:
    shape = _shape_of(node)
    if name is None or name not in tensors:
        return Value(shape)
    facts = tensors[name]
    if facts.canonical not in labelled:
        blocks = tuple(
            Block.of(dim, state.new_labels(size)) for dim, size in enumerate(shape) if size > 1 and facts.labelled
        )
        labelled[facts.canonical] = Value(shape, blocks, facts.canonical)
        state.tensors[facts.canonical] = labelled[facts.canonical]
    return labelled[facts.canonical]


def _note_use(
    node: torch.fx.Node, source: Mapping[str, str], tensors: Mapping[str, TensorFacts], state: Labelling
) -> None:
    for argument in node.all_input_nodes:
        name = source.get(argument.name) if argument.op == "placeholder" else None
        if name is not None and name in tensors:
            state.used_tensors.setdefault(tensors[name].canonical)


def _call(
    node: torch.fx.Node, environment: Mapping[torch.fx.Node, Value | tuple[Value, ...]], state: Labelling
) -> Value | tuple[Value, ...]:
    if node.target is operator.getitem:
        source = environment[node.args[0]]  # type: ignore[index]
        return source[int(node.args[1])] if isinstance(source, tuple) else Value(_shape_of(node))  # type: ignore[arg-type]
    if not isinstance(node.target, torch._ops.OpOverload):
        for value in _values([*node.args, *node.kwargs.values()], environment):
            state.freeze_value(value, "passes through an operator of higher order", node)
        result = node.meta.get("val")
        if isinstance(result, list | tuple):
            return tuple(Value(tuple(getattr(one, "shape", ()))) for one in result)
        return Value(_shape_of(node))
    call = Call(node=node, name=_name_of(node.target), arguments=_bind(node, environment), state=state)
    if not isinstance(node.meta.get("val"), torch.Tensor | list | tuple):
        return Value(())
    rule = rule_for(call)
    return rule(call) if rule is not None else call.freeze_all("passes through an operator that has no rule")


def _bind(node: torch.fx.Node, environment: Mapping[torch.fx.Node, Value | tuple[Value, ...]]) -> dict[str, Any]:
    """Arguments by schema name, nodes replaced by their values, defaults filled in."""
    assert isinstance(node.target, torch._ops.OpOverload)
    bound: dict[str, Any] = {}
    for position, parameter in enumerate(node.target._schema.arguments):
        if position < len(node.args):
            argument: Any = node.args[position]
        elif parameter.name in node.kwargs:
            argument = node.kwargs[parameter.name]
        else:
            argument = parameter.default_value if parameter.has_default_value() else None
        bound[parameter.name] = _replaced(argument, environment)
    return bound


def _replaced(argument: Any, environment: Mapping[torch.fx.Node, Value | tuple[Value, ...]]) -> Any:
    if isinstance(argument, torch.fx.Node):
        return environment[argument]
    if isinstance(argument, list | tuple):
        return [_replaced(one, environment) for one in argument]
    return argument


def _values(arguments: Sequence[Any], environment: Mapping[torch.fx.Node, Value | tuple[Value, ...]]) -> list[Value]:
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


def _name_of(target: torch._ops.OpOverload) -> str:
    """``aten::relu_`` and ``aten::relu`` move labels alike."""
    name = target._schema.name.split("::")[-1]
    return name[:-1] if name.endswith("_") and not name.startswith("__") else name


def _shape_of(node: torch.fx.Node) -> tuple[int, ...]:
    result = node.meta.get("val")
    return tuple(int(size) for size in result.shape) if isinstance(result, torch.Tensor) else ()
