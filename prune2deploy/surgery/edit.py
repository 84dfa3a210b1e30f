"""Pruning by editing the exported graph: from a dense module and a plan to an ``EditedModule``."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import ExportedProgram

from prune2deploy.budget.from_mask import mask_from_plan
from prune2deploy.budget.plan import PrunePlan
from prune2deploy.errors import InputError, ModelError
from prune2deploy.graph.labels import AttentionAxis, Value
from prune2deploy.graph.trace import Trace, export_program, trace
from prune2deploy.surgery.apply import as_parameter_like, sliced_tensors
from prune2deploy.surgery.edited import EditedModule
from prune2deploy.surgery.rewrite import KeptLabels, Values, rewrite_sizes
from prune2deploy.surgery.shapes import Known, check_predicted_shapes

_BATCH = 2
_GUARDS = "_guards_fn"
_CONSTANTS = "p2d_constants"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Exported:
    """The model in one mode: its program, that as a graph, the labels of its values, and the channel of each label.

    The graph reads parameters, buffers and constants as attributes; cuts are made in copies of it.
    """

    program: ExportedProgram
    graph: torch.fx.Graph
    values: Values
    channel_of_label: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Editor:
    """A model exported in both modes with a free batch size, ready for any number of cuts.

    ``trace`` is its trace with free sizes, to whose channels the plans belong. ``inputs`` have a batch of 2.
    """

    trace: Trace
    inputs: tuple[Any, ...]
    modes: Mapping[bool, _Exported]

    @classmethod
    def of(cls, model: nn.Module, traced: Trace, inputs: Sequence[Any]) -> "Editor":
        """Export ``model``. ``inputs`` are what it was traced with, a batch of 1.

        Raises:
            ModelError: the model cannot be exported in both modes with a free batch size.
        """
        doubled = _doubled(inputs)
        modes = {}
        for training in (False, True):
            program = export_program(model, doubled, training=training, dynamic_batch=True)
            interpretation, channels = traced.interpreted_again(model, program)
            modes[training] = _Exported(
                program=program, graph=_as_graph(program), values=interpretation.values, channel_of_label=channels
            )
        return cls(trace=traced, inputs=doubled, modes=modes)

    def edited_copy(self, model: nn.Module, plan: PrunePlan) -> EditedModule:
        """``model`` without what ``plan`` removes. ``model``, the exported one or one with other weights, stays whole.

        Raises:
            InputError: the plan belongs to another model.
            ModelError: some part of the graph cannot be edited.
            ProofError: a value of the edited graph would not have the shape that the labels predict.
        """
        kept = mask_from_plan(self.trace.graph, plan)
        stored = set(model.state_dict())
        tensors = _pruned_tensors(model, plan)
        graphs = {}
        known: Known = {}
        for training, exported in self.modes.items():
            labels = KeptLabels(np.append(kept, True)[exported.channel_of_label])
            own = _data_beside_state(exported, labels, tensors, stored, training=training)
            graphs[training] = _edited_graph(
                exported, labels, {**tensors, **own}, self.inputs, known, training=training
            )
            tensors |= own
        edited = EditedModule(
            evaluation=graphs[False],
            training=graphs[True],
            parameters={name: one for name, one in tensors.items() if isinstance(one, nn.Parameter)},
            buffers={name: one for name, one in tensors.items() if not isinstance(one, nn.Parameter)},
            persistent=frozenset(stored),
        )
        return edited.train(model.training)


def edited_copy(model: nn.Module, traced: Trace, plan: PrunePlan, inputs: Sequence[Any]) -> EditedModule:
    """``model`` without what ``plan`` removes, as a graph. ``model`` stays whole.

    ``traced`` is its trace with free sizes; ``inputs`` are what it was traced with, a batch of 1.

    Raises:
        ModelError: the model cannot be exported in both modes with a free batch size.
        ProofError: a value of the edited graph would not have the shape that the labels predict.
    """
    return Editor.of(model, traced, inputs).edited_copy(model, plan)


def rebuilt_copy(model: nn.Module, plan: PrunePlan, inputs: Sequence[Any]) -> EditedModule:
    """``edited_copy`` of a model that is traced anew: a plan made by graph editing, applied where nothing else is left.

    What leaves attentions is what the plan's provenance says, heads where it says nothing.

    Raises:
        InputError: the plan belongs to another model, or removes residual branches, which takes modules.
        ModelError: the model cannot be exported in both modes with a free batch size.
        ProofError: a value of the edited graph would not have the shape that the labels predict.
    """
    attention = AttentionAxis(plan.provenance.get("attention", AttentionAxis.HEADS))
    return edited_copy(model, trace(model, inputs, sizes_are_free=True, attention=attention), plan, inputs)


def _pruned_tensors(model: nn.Module, plan: PrunePlan) -> dict[str, Tensor]:
    """Parameters and buffers after the plan by name, copied; those of several names stay shared."""
    if plan.removed:
        raise InputError(
            "a residual branch leaves only by replacing modules, which an edited graph does not have",
            where=plan.removed[0].name,
            hint="slice the model's modules instead (--backend module)",
        )
    dense = {
        **dict(model.named_buffers(remove_duplicate=False)),
        **dict(model.named_parameters(remove_duplicate=False)),
    }
    pruned = sliced_tensors(model, plan)
    for tensor in dense.values():
        if id(tensor) not in pruned:
            pruned[id(tensor)] = as_parameter_like(tensor, tensor.detach().clone())
    return {name: pruned[id(tensor)] for name, tensor in dense.items()}


def _data_beside_state(
    exported: _Exported, kept: KeptLabels, tensors: Mapping[str, Tensor], stored: set[str], *, training: bool
) -> dict[str, Tensor]:
    """Buffers outside the ``state_dict`` that become smaller, and the program's constants, each mode's by its name."""
    signature = exported.program.graph_signature
    found = {}
    for node, name in signature.inputs_to_buffers.items():
        value = exported.values.get(node)
        if name not in stored and isinstance(value, Value) and tuple(tensors[name].shape) == value.shape:
            found[name] = _sliced(tensors[name], value, kept)
    for node, name in signature.inputs_to_lifted_tensor_constants.items():
        value = exported.values.get(node)
        constant = exported.program.constants[name]
        data = constant.detach().clone() if isinstance(constant, Tensor) else constant
        found[_constant_name(name, training=training)] = (
            _sliced(data, value, kept) if isinstance(value, Value) and value.shape == tuple(data.shape) else data
        )
    return found


def _sliced(data: Tensor, value: Value, kept: KeptLabels) -> Tensor:
    for dim in range(data.dim()):
        indices = kept.indices(value, dim)
        if len(indices) < data.shape[dim]:
            data = data.index_select(dim, torch.from_numpy(indices).to(data.device))
    return data


def _constant_name(name: str, *, training: bool) -> str:
    return f"{_CONSTANTS}.{'training' if training else 'evaluation'}_{name.replace('.', '_')}"


def _edited_graph(
    exported: _Exported,
    kept: KeptLabels,
    tensors: Mapping[str, Tensor],
    inputs: Sequence[Any],
    known: Known,
    *,
    training: bool,
) -> torch.fx.GraphModule:
    graph = copy.deepcopy(exported.graph)
    of_tensor = _values_of_tensors(exported)
    attributes = {}
    for node in _attributes(graph):
        if (value := of_tensor.get(str(node.target))) is not None:
            attributes[node.name] = value
        name = _constant_name(str(node.target), training=training)
        if str(node.target) not in tensors and name in tensors:
            node.target = name
        if str(node.target) not in tensors:
            raise ModelError(
                f"a part of it runs under a mode of its own ({node.target}), an autocast say, and cannot be edited",
                hint="leave --backend out, or pass --backend module",
            )
    values = {**exported.values, **attributes}
    rewrite_sizes(graph, values, kept)
    check_predicted_shapes(graph, tensors, inputs, values, kept, known=known)
    return torch.fx.GraphModule(dict(tensors), graph)


def _as_graph(program: ExportedProgram) -> torch.fx.Graph:
    module = program.module(check_guards=False)
    assert isinstance(module, torch.fx.GraphModule)
    for node in list(module.graph.nodes):
        if node.op == "call_module" and node.target == _GUARDS:
            module.graph.erase_node(node)
    return module.graph


def _values_of_tensors(exported: _Exported) -> dict[str, Value | tuple[Value, ...]]:
    """The labels of parameters, buffers and constants by their names, under which the graph's own module reads them."""
    signature = exported.program.graph_signature
    sources = (
        signature.inputs_to_parameters,
        signature.inputs_to_buffers,
        signature.inputs_to_lifted_tensor_constants,
    )
    return {
        target: exported.values[node]
        for inputs in sources
        for node, target in inputs.items()
        if node in exported.values
    }


def _attributes(graph: torch.fx.Graph) -> Iterator[torch.fx.Node]:
    yield from (node for node in graph.nodes if node.op == "get_attr")


def _doubled(inputs: Sequence[Any]) -> tuple[Any, ...]:
    """A batch of 2, since a batch of 1 would be taken for a fixed size."""
    doubled: tuple[Any, ...] = torch.utils._pytree.tree_map(
        lambda one: torch.cat([one] * _BATCH) if isinstance(one, Tensor) and one.dim() and one.shape[0] == 1 else one,
        tuple(inputs),
    )
    return doubled
