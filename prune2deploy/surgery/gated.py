"""The dense model with channels gated to zero where they are read: what a pruned model must equal.

The exported program is interpreted node by node. Where an operator sums over channels, those that leave are
multiplied by zero first; where a norm takes statistics over channels, it takes them over those that stay, which
is what the pruned model computes and the dense one does not (such cuts are *inexact*, and reported so).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind

from prune2deploy.graph.channels import ChannelMask
from prune2deploy.graph.trace import Trace

_NORMS: Mapping[Any, str] = {
    torch.ops.aten.layer_norm.default: "layer_norm",
    torch.ops.aten.group_norm.default: "group_norm",
    torch.ops.aten.rms_norm.default: "rms_norm",
}


def gated_outputs(trace: Trace, model: nn.Module, kept: ChannelMask, inputs: Sequence[Any]) -> list[Tensor]:
    """Outputs of the dense ``model`` (the traced one, or one of its shapes) with all channels outside ``kept`` gated.

    ``inputs`` are the positional arguments of ``forward``, of the shapes that were traced.
    """
    with torch.no_grad():
        outputs = _GatedInterpreter(trace, kept).run(*_program_inputs(trace, model, inputs))
    return tensors_in(outputs)


def tensors_in(outputs: Any) -> list[Tensor]:
    """All floating-point tensors of nested outputs, in order."""
    leaves, _ = torch.utils._pytree.tree_flatten(outputs)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


class _GatedInterpreter(torch.fx.Interpreter):
    def __init__(self, trace: Trace, kept: ChannelMask) -> None:
        super().__init__(trace.program.graph_module)
        keeps = np.append(kept, True)  # the last entry answers for FROZEN = -1
        self._gates: dict[str, list[tuple[int, int, Tensor]]] = {}
        for read in trace.reads:
            gate = torch.from_numpy(keeps[read.channels])
            if not gate.all():
                self._gates.setdefault(read.node, []).append((read.argument, read.dim, gate))
        self._norms = {norm.node: (norm.dim, torch.from_numpy(keeps[norm.channels])) for norm in trace.norms}

    def run_node(self, n: torch.fx.Node) -> Any:
        if n.name in self._norms:
            dim, keeps = self._norms[n.name]
            if not keeps.all():
                return self._norm_of_kept(n, dim, keeps)
        return super().run_node(n)

    def fetch_args_kwargs_from_env(self, n: torch.fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        arguments, options = super().fetch_args_kwargs_from_env(n)
        if n.name not in self._gates:
            return arguments, options
        gated = list(arguments)
        for argument, dim, gate in self._gates[n.name]:
            data: Tensor = gated[argument]
            shape = [1] * data.dim()
            shape[dim] = -1
            gated[argument] = data * gate.to(data).view(shape)
        return tuple(gated), options

    def _norm_of_kept(self, node: torch.fx.Node, dim: int, keeps: Tensor) -> Tensor:
        """Normalise over the channels that stay; those that leave are zero, and are gated where they are read."""
        arguments, options = self.fetch_args_kwargs_from_env(node)
        data = arguments[0]
        index = keeps.nonzero().flatten().to(data.device)
        kept = data.index_select(dim, index)
        bound = {
            parameter.name: argument
            for parameter, argument in zip(node.target._schema.arguments, arguments, strict=False)  # type: ignore[union-attr]
        } | dict(options)
        weight, bias = (
            bound[name].index_select(0, index) if bound.get(name) is not None else None for name in ("weight", "bias")
        )
        kind = _NORMS[node.target]
        epsilon = bound.get("eps")
        if kind == "group_norm":
            normed = nn.functional.group_norm(
                kept, bound["num_groups"], weight, bias, 1e-5 if epsilon is None else epsilon
            )
        elif kind == "rms_norm":
            normed = nn.functional.rms_norm(kept, (len(index),), weight, epsilon)
        else:
            normed = nn.functional.layer_norm(kept, (len(index),), weight, bias, 1e-5 if epsilon is None else epsilon)
        return torch.zeros_like(data).index_copy(dim, index, normed)


def _program_inputs(trace: Trace, model: nn.Module, inputs: Sequence[Any]) -> list[Any]:
    """Arguments of the exported graph: the model's own tensors, constants, then the user's inputs, flattened."""
    own: dict[str, Tensor] = {
        **dict(model.named_buffers(remove_duplicate=False)),
        **dict(model.named_parameters(remove_duplicate=False)),
    }
    users = iter(torch.utils._pytree.tree_leaves(tuple(inputs)))
    clones: dict[int, Tensor] = {}
    wide = any(tensor.dtype is torch.float64 for tensor in own.values())
    arguments: list[Any] = []
    for spec in trace.program.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            argument = next(users)
            arguments.append(argument.clone() if isinstance(argument, Tensor) else argument)
        elif spec.kind is InputKind.PARAMETER:
            arguments.append(own[str(spec.target)])
        elif spec.kind is InputKind.BUFFER:  # a forward may write to its buffers
            buffer = own[str(spec.target)]
            arguments.append(clones.setdefault(id(buffer), buffer.clone()))
        else:
            constant = trace.program.constants[str(spec.target)]
            arguments.append(constant.double() if wide and _is_floating(constant) else constant)
    return arguments


def _is_floating(constant: Any) -> bool:
    return isinstance(constant, Tensor) and constant.is_floating_point()
