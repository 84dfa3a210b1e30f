"""Batch norms folded into the layers before them, in an exported program and in double precision.

Torch's ONNX exporter folds them too, but computes in float32 and, for bfloat16, leaves float32 kernels behind. Here the
folded weights are computed in float64 from the float32 originals and rounded once.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind

_ATEN = torch.ops.aten
_BATCH_NORM = _ATEN.batch_norm.default
_LINEAR = _ATEN.linear.default
_CONVOLUTIONS = frozenset(
    {
        _ATEN.conv1d.default, _ATEN.conv2d.default, _ATEN.conv3d.default,
        _ATEN.conv1d.padding, _ATEN.conv2d.padding, _ATEN.conv3d.padding,
    }
)  # fmt: skip
_TRANSPOSED = frozenset({_ATEN.conv_transpose1d.default, _ATEN.conv_transpose2d.input, _ATEN.conv_transpose3d.input})
_GROUPS_ARGUMENT_OF_TRANSPOSED = 6


def fold_batch_norms(program: torch.export.ExportedProgram, originals: Mapping[str, Tensor]) -> int:
    """Leave no batch norm with fixed statistics in ``program``, which is changed in place; returns how many there were.

    One that alone reads a convolution or a linear layer is folded into its weight and bias. Any other becomes a
    multiplication and an addition by channel, whose constants have the range of the activations: running variances may
    not, in float16. ``originals`` are the parameters and buffers in float32 by name (those of the program may be of
    half precision); what is computed of them in float64 is rounded to the type of the program's own tensors.

    A layer or a batch norm that is used in several places keeps its tensors: then its batch norms become
    multiplications and additions as well.
    """
    fold = _Fold(program, originals)
    norms: dict[tuple[object, ...], list[fx.Node]] = defaultdict(list)
    for node in program.graph.nodes:
        if node.op == "call_function" and node.target is _BATCH_NORM and fold.has_fixed_statistics(node):
            norms[(*node.args[1:5], node.args[7])].append(node)
    folded = 0
    for nodes in norms.values():
        # The running statistics are overwritten, so whatever reads them must be among these nodes.
        if all(set(one.users) <= set(nodes) for one in _arguments(nodes[0])[3:5]):
            fold.replace(nodes)
            folded += len(nodes)
    program.graph.eliminate_dead_code()
    program.graph.lint()
    program.graph_module.recompile()
    return folded


class _Fold:
    """Which tensor each placeholder of a program stands for, and how to give it another value."""

    def __init__(self, program: torch.export.ExportedProgram, originals: Mapping[str, Tensor]) -> None:
        self._program = program
        self._graph = program.graph
        kinds = (InputKind.PARAMETER, InputKind.BUFFER)
        names = {
            spec.arg.name: spec.target
            for spec in program.graph_signature.input_specs
            if spec.kind in kinds and spec.target in originals
        }
        self._names: dict[fx.Node, str] = {
            node: names[node.name] for node in self._graph.nodes if node.op == "placeholder" and node.name in names
        }
        self._originals = originals

    def has_fixed_statistics(self, norm: fx.Node) -> bool:
        """Whether the norm is in evaluation mode, and all it reads but its input are tensors of the model."""
        weight, bias, mean, variance, training = _arguments(norm)[1:6]
        if training or mean is None or variance is None:
            return False
        return all(one is None or one in self._names for one in (weight, bias, mean, variance))

    def replace(self, norms: list[fx.Node]) -> None:
        """Fold norms that share all their tensors."""
        scale, shift = self._scale_and_shift(norms[0])
        layer, _, _, mean, variance, *_ = _arguments(norms[0])
        if len(norms) == 1 and self._takes_up(layer):
            self._into_layer(norms[0], layer, scale, shift)
            return
        self._assign(variance, scale)
        self._assign(mean, shift)
        for norm in norms:
            self._as_product(norm, variance, mean)

    def _scale_and_shift(self, norm: fx.Node) -> tuple[Tensor, Tensor]:
        weight, bias, mean, variance, epsilon = (*_arguments(norm)[1:5], _arguments(norm)[7])
        scale = torch.rsqrt(self._value(variance) + epsilon)
        if weight is not None:
            scale = scale * self._value(weight)
        shift = -self._value(mean) * scale
        return scale, shift if bias is None else shift + self._value(bias)

    def _takes_up(self, layer: fx.Node) -> bool:
        """Whether a batch norm can be folded into ``layer``: it alone reads it, and its weights are its own."""
        if layer.target not in _CONVOLUTIONS | _TRANSPOSED | {_LINEAR} or len(layer.users) != 1:
            return False
        if layer.target is _LINEAR and layer.meta["val"].dim() != 2:
            return False
        weight, bias = _weight_and_bias(layer)
        return all(one in self._names and len(one.users) == 1 for one in (weight, bias) if one is not None)

    def _into_layer(self, norm: fx.Node, layer: fx.Node, scale: Tensor, shift: Tensor) -> None:
        weight, bias = _weight_and_bias(layer)
        value = self._value(weight)
        if layer.target in _TRANSPOSED:
            arguments = _arguments(layer)
            groups = arguments[_GROUPS_ARGUMENT_OF_TRANSPOSED] if len(arguments) > _GROUPS_ARGUMENT_OF_TRANSPOSED else 1
            by_group = scale.view(groups, 1, -1, *[1] * (value.dim() - 2))
            folded = (value.view(groups, -1, *value.shape[1:]) * by_group).view_as(value)
        else:
            folded = value * scale.view(-1, *[1] * (value.dim() - 1))
        self._assign(weight, folded)
        # The placeholder of the running mean has the shape of a bias and is read by nothing else.
        mean = _arguments(norm)[3]
        self._assign(mean, shift if bias is None else shift + self._value(bias) * scale)
        layer.args = (*layer.args[:2], mean, *layer.args[3:])
        layer.kwargs = {name: value for name, value in layer.kwargs.items() if name != "bias"}
        norm.replace_all_uses_with(layer)
        self._graph.erase_node(norm)

    def _as_product(self, norm: fx.Node, scale: fx.Node, shift: fx.Node) -> None:
        image = _arguments(norm)[0]
        columns = [-1, *[1] * (image.meta["val"].dim() - 2)]
        with self._graph.inserting_before(norm):
            factor = self._graph.call_function(_ATEN.view.default, (scale, columns))
            product = self._graph.call_function(_ATEN.mul.Tensor, (image, factor))
            summand = self._graph.call_function(_ATEN.view.default, (shift, columns))
            total = self._graph.call_function(_ATEN.add.Tensor, (product, summand))
        for node in (factor, product, summand, total):
            node.meta = {name: value for name, value in norm.meta.items() if name != "val"}
        for node in (product, total):
            node.meta["val"] = norm.meta["val"]
        norm.replace_all_uses_with(total)
        self._graph.erase_node(norm)

    def _value(self, node: fx.Node) -> Tensor:
        """The original of a tensor of the model, in float64."""
        return self._originals[self._names[node]].detach().double()

    def _assign(self, node: fx.Node, value: Tensor) -> None:
        name = self._names[node]
        state = self._program.state_dict if name in self._program.state_dict else self._program.constants
        rounded = value.to(state[name].dtype)
        is_parameter = isinstance(state[name], nn.Parameter)
        state[name] = nn.Parameter(rounded, requires_grad=False) if is_parameter else rounded


def _arguments(node: fx.Node) -> tuple[Any, ...]:
    """Its positional arguments, whose types the schema of its operator fixes."""
    return node.args


def _weight_and_bias(layer: fx.Node) -> tuple[Any, Any]:
    arguments = _arguments(layer)
    return arguments[1], arguments[2] if len(arguments) > 2 else layer.kwargs.get("bias")
