"""The dense model with channels gated to zero where they are read: what a pruned model must equal.

The exported program is interpreted node by node. Where an operator sums over channels, those that leave are
multiplied by zero first; where a norm takes statistics over channels, it takes them over those that stay, which
is what the pruned model computes and the dense one does not (such cuts are *inexact*, and reported so). What a residual
branch that leaves whole would add is zero, shifts and biases of its last layers included.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind

from prune2deploy.graph.channels import ChannelMask
from prune2deploy.graph.resolve import ReadDimension
from prune2deploy.graph.trace import Trace

_PER_CHANNEL = ("weight", "bias")
"""Arguments of norms over channels with one number for each channel."""
_NORMS = frozenset({"layer_norm", "group_norm", "rms_norm"})


def gated_outputs(
    trace: Trace, model: nn.Module, kept: ChannelMask, inputs: Sequence[Any], *, double: bool = False
) -> list[Tensor]:
    """Outputs of the dense ``model`` (the traced one, or one of its shapes) with all channels outside ``kept`` gated.

    ``inputs`` are the positional arguments of ``forward``, of the shapes that were traced. ``double``: buffers and
    constants are taken in double precision, as the inputs must be; parameters stay as they are.
    """
    with torch.no_grad():
        outputs = _GatedInterpreter(trace, kept).run(*_program_inputs(trace, model, inputs, double=double))
    return tensors_in(outputs)


def tensors_in(outputs: Any) -> list[Tensor]:
    """All floating-point tensors of nested outputs, in order."""
    leaves, _ = torch.utils._pytree.tree_flatten(outputs)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


class _GatedInterpreter(torch.fx.Interpreter):
    def __init__(self, trace: Trace, kept: ChannelMask) -> None:
        super().__init__(trace.program.graph_module)
        keeps = np.append(kept, True)  # the last entry answers for FROZEN = -1
        self._gates: dict[str, list[tuple[ReadDimension, Tensor]]] = {}
        for read in trace.reads:
            gate = torch.from_numpy(keeps[read.channels])
            if not gate.all():
                self._gates.setdefault(read.node, []).append((read, gate))
        self._removed = {branch.node: branch.argument for branch in trace.graph.removed_branches(kept)}
        self._norms: dict[str, list[tuple[int, Tensor]]] = {}
        for norm in trace.norms:
            keeps_here = torch.from_numpy(keeps[norm.channels])
            if not keeps_here.all() and keeps_here.any():  # without any, it lies in a branch whose result is not used
                self._norms.setdefault(norm.node, []).append((norm.dim, keeps_here.nonzero().flatten()))

    def run_node(self, n: torch.fx.Node) -> Any:
        return self._over_kept(n, self._norms[n.name]) if n.name in self._norms else super().run_node(n)

    def fetch_args_kwargs_from_env(self, n: torch.fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        arguments, options = super().fetch_args_kwargs_from_env(n)
        if n.name in self._removed:
            position = self._removed[n.name]
            zeros = torch.zeros_like(arguments[position])
            arguments = (*arguments[:position], zeros, *arguments[position + 1 :])
        if n.name not in self._gates:
            return arguments, options
        gated = list(arguments)
        for read, gate in self._gates[n.name]:
            argument = gated[read.argument]
            if isinstance(argument, list | tuple):
                elements = list(argument)
                elements[read.element] = _gated(elements[read.element], read.dim, gate)
                gated[read.argument] = elements
            else:
                gated[read.argument] = _gated(argument, read.dim, gate)
        return tuple(gated), options

    def _over_kept(self, node: torch.fx.Node, dimensions: Sequence[tuple[int, Tensor]]) -> Any:
        """The operator on the channels that stay, put back into place where its result still has them.

        Channels that leave are zero there, and are gated where they are read.
        """
        arguments, options = self.fetch_args_kwargs_from_env(node)
        assert isinstance(node.target, torch._ops.OpOverload)
        bound = {
            parameter.name: argument
            for parameter, argument in zip(node.target._schema.arguments, arguments, strict=False)
        } | dict(options)
        first = next(iter(bound))
        data = bound[first]
        shape = list(data.shape)
        for dim, kept in dimensions:
            bound[first] = bound[first].index_select(dim, kept.to(data.device))
        if node.target._schema.name.removeprefix("aten::") in _NORMS:
            [(_, kept)] = dimensions
            for name in _PER_CHANNEL:
                if bound.get(name) is not None:
                    bound[name] = bound[name].index_select(0, kept.to(data.device))
            if "normalized_shape" in bound:
                bound["normalized_shape"] = [len(kept)]
        result = node.target(**bound)
        dense = node.meta["val"]  # of one channel left, the shape of the result cannot tell whether it was reduced
        if not isinstance(dense, Tensor) or list(dense.shape) != shape:
            return result
        for dim, kept in reversed(dimensions):
            spread = result.new_zeros([*result.shape[:dim], shape[dim], *result.shape[dim + 1 :]])
            result = spread.index_copy(dim, kept.to(data.device), result)
        return result


def _gated(data: Tensor, dim: int, gate: Tensor) -> Tensor:
    shape = [1] * data.dim()
    shape[dim] = -1
    return data * gate.to(data).view(shape)


def _program_inputs(trace: Trace, model: nn.Module, inputs: Sequence[Any], *, double: bool = False) -> list[Any]:
    """Arguments of the exported graph: the model's own tensors, constants, then the user's inputs, flattened."""
    own: dict[str, Tensor] = {
        **dict(model.named_buffers(remove_duplicate=False)),
        **dict(model.named_parameters(remove_duplicate=False)),
    }
    users = iter(torch.utils._pytree.tree_leaves(tuple(inputs)))
    clones: dict[int, Tensor] = {}
    wide = double or any(tensor.dtype is torch.float64 for tensor in own.values())
    arguments: list[Any] = []
    for spec in trace.program.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            argument = next(users)
            arguments.append(argument.clone() if isinstance(argument, Tensor) else argument)
        elif spec.kind is InputKind.PARAMETER:
            arguments.append(own[str(spec.target)])
        elif spec.kind is InputKind.BUFFER:  # a forward may write to its buffers
            buffer = own[str(spec.target)]
            widened = double and buffer.is_floating_point()
            arguments.append(clones.setdefault(id(buffer), buffer.double() if widened else buffer.clone()))
        else:
            constant = trace.program.constants[str(spec.target)]
            arguments.append(constant.double() if wide and _is_floating(constant) else constant)
    return arguments


def _is_floating(constant: Any) -> bool:
    return isinstance(constant, Tensor) and constant.is_floating_point()
