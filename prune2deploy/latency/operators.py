"""Each operator of a unit as the ONNX nodes that torch's exporter makes of it. A new operator is one entry of `RULES`.

Units name operators as ATen does; ``graph.unit_operators`` says which attributes they have.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from prune2deploy.errors import InputError
from prune2deploy.graph.unit import Operator, Shape
from prune2deploy.latency.scribe import Scribe


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One operator to be written: what it reads, by name and shape, and the shape of its result. Batch included.

    ``operand`` is the shape of a constant that it takes beside its values.
    """

    operator: Operator
    reads: tuple[str, ...]
    read_shapes: tuple[Shape, ...]
    shape: Shape
    operand: Shape | None = None

    def get(self, attribute: str, otherwise: Any = None) -> Any:
        """An attribute of the operator, or ``otherwise``."""
        return dict(self.operator.attributes).get(attribute, otherwise)

    @property
    def spatial(self) -> int:
        """How many dimensions lie behind the channels."""
        return len(self.shape) - 2

    def per_dimension(self, attribute: str, otherwise: int) -> list[int]:
        """An attribute that may be one number for all spatial dimensions."""
        value = self.get(attribute, otherwise)
        values = [value] if isinstance(value, int) else list(value)
        return values * self.spatial if len(values) == 1 else values


Rule = Callable[[Scribe, Call], str]


def write_operator(scribe: Scribe, call: Call) -> str:
    """Write an operator and return the name of its result.

    Raises:
        InputError: there is no rule for an operator of that name.
    """
    rule = RULES.get(call.operator.name)
    if rule is None:
        raise InputError(f"operator {call.operator.name} cannot be timed by itself", hint="time the whole model")
    return rule(scribe, call)


def _convolution(scribe: Scribe, call: Call) -> str:
    inputs, outputs = call.read_shapes[0][1], call.shape[1]
    per_group = call.get("channels_per_group")
    groups = call.get("groups", 1) if per_group is None else max(1, inputs // per_group)
    kernel = call.per_dimension("kernel", 1)
    fan_in = inputs // groups * math.prod(kernel)
    transposed = call.operator.name.startswith("conv_transpose")
    filters = (inputs, outputs // groups) if transposed else (outputs, inputs // groups)
    weights = [scribe.weight((*filters, *kernel), fan_in=fan_in)]
    if call.get("bias", False):
        weights.append(scribe.weight((outputs,)))
    attributes: dict[str, Any] = {
        "group": groups,
        "kernel_shape": kernel,
        "strides": call.per_dimension("stride", 1),
        "dilations": call.per_dimension("dilation", 1),
    }
    padding = call.get("padding", 0)
    if isinstance(padding, str):
        attributes["auto_pad"] = {"same": "SAME_UPPER", "valid": "VALID"}[padding]
    else:
        attributes["pads"] = call.per_dimension("padding", 0) * 2
    if transposed:
        attributes["output_padding"] = call.per_dimension("output_padding", 0)
    return scribe.node("ConvTranspose" if transposed else "Conv", [call.reads[0], *weights], **attributes)


def _linear(scribe: Scribe, call: Call) -> str:
    inputs, outputs = call.read_shapes[0][-1], call.shape[-1]
    bias = call.get("bias", False)
    if len(call.shape) == 2:
        weights = [scribe.weight((outputs, inputs), fan_in=inputs)] + ([scribe.weight((outputs,))] if bias else [])
        return scribe.node("Gemm", [call.reads[0], *weights], transB=1)
    product = scribe.node("MatMul", [call.reads[0], scribe.weight((inputs, outputs), fan_in=inputs)])
    return scribe.node("Add", [product, scribe.weight((outputs,))]) if bias else product


def _of_two(operator: str) -> Rule:
    """Of two values, or of one and a constant: an operand of some shape, or a number."""

    def rule(scribe: Scribe, call: Call) -> str:
        if len(call.reads) > 1:
            return scribe.node(operator, call.reads)
        number = call.get("scalar")
        constant = scribe.weight(call.operand or ()) if number is None else scribe.scalar(number)
        reads = [call.reads[0], constant]
        return scribe.node(operator, reads[::-1] if call.get("operand_first", False) else reads)

    return rule


def _attention(scribe: Scribe, call: Call) -> str:
    """As the exporter: the root of the scale goes to both sides before they are multiplied."""
    query, key, value = call.reads[:3]
    rank, head = len(call.read_shapes[0]), call.read_shapes[0][-1]
    root = scribe.scalar(call.get("scale", 1 / math.sqrt(max(head, 1))) ** 0.5)
    swapped = [*range(rank - 2), rank - 1, rank - 2]
    keys = scribe.node("Mul", [scribe.node("Transpose", [key], perm=swapped), root])
    scores = scribe.node("MatMul", [scribe.node("Mul", [query, root]), keys])
    queries_and_keys = (call.read_shapes[0][-2], call.read_shapes[1][-2])
    if call.get("is_causal", False):
        scores = scribe.node("Add", [scores, scribe.weight(queries_and_keys)])
    if call.operand is not None or len(call.reads) > 3:
        mask = scribe.weight(call.operand) if call.operand is not None else call.reads[3]
        scores = scribe.node("Add", [scores, mask])
    return scribe.node("MatMul", [scribe.node("Softmax", [scores], axis=-1), value])


def _pool(operator: str) -> Rule:
    def rule(scribe: Scribe, call: Call) -> str:
        kernel = call.per_dimension("kernel", 1)
        stride = call.get("stride") or kernel
        attributes: dict[str, Any] = {
            "kernel_shape": kernel,
            "strides": [stride] * call.spatial if isinstance(stride, int) else list(stride),
            "pads": call.per_dimension("padding", 0) * 2,
            "ceil_mode": int(call.get("ceil_mode", False)),
        }
        if operator == "AveragePool":
            attributes["count_include_pad"] = int(call.get("count_include_pad", True))
        else:
            attributes["dilations"] = call.per_dimension("dilation", 1)
        return scribe.node(operator, [call.reads[0]], **attributes)

    return rule


def _adaptive_average(scribe: Scribe, call: Call) -> str:
    """To one pixel as a mean, as torch decomposes it; to more as the pool that gives so many."""
    before, after = call.read_shapes[0][2:], call.shape[2:]
    if all(size == 1 for size in after):
        return scribe.node("ReduceMean", [call.reads[0], scribe.integers(range(2, 2 + len(after)))], keepdims=1)
    strides = [whole // part for whole, part in zip(before, after, strict=True)]
    kernel = [whole - (part - 1) * step for whole, part, step in zip(before, after, strides, strict=True)]
    return scribe.node("AveragePool", [call.reads[0]], kernel_shape=kernel, strides=strides)


def _mean(scribe: Scribe, call: Call) -> str:
    rank = len(call.read_shapes[0])
    dimensions = sorted(dim % rank for dim in call.get("dims", range(2, rank)))
    keep = int(call.get("keepdim", len(call.shape) == rank))
    return scribe.node("ReduceMean", [call.reads[0], scribe.integers(dimensions)], keepdims=keep)


def _concatenation(scribe: Scribe, call: Call) -> str:
    return scribe.node("Concat", call.reads, axis=call.get("dim", 1))


def _layer_norm(scribe: Scribe, call: Call) -> str:
    trailing = call.get("dims", 1)
    shape = call.shape[len(call.shape) - trailing :]
    weights = [scribe.weight(shape)] + ([scribe.weight(shape)] if call.get("bias", True) else [])
    return scribe.node("LayerNormalization", [call.reads[0], *weights], axis=-trailing, epsilon=1e-6)


def _batch_norm(scribe: Scribe, call: Call) -> str:
    channels = (call.shape[1],)
    scale, bias, mean = (scribe.weight(channels) for _ in range(3))
    variance = scribe.constant([1.0] * channels[0])
    return scribe.node("BatchNormalization", [call.reads[0], scale, bias, mean, variance])


def _group_norm(scribe: Scribe, call: Call) -> str:
    """As the exporter below opset 21: an instance norm over the groups, and the scale and bias of each channel."""
    channels, groups = call.shape[1], call.get("groups", 1)
    ones, zeros = scribe.constant([1.0] * groups), scribe.constant([0.0] * groups)
    grouped = scribe.node("Reshape", [call.reads[0], scribe.integers([0, groups, -1])])
    normal = scribe.node("InstanceNormalization", [grouped, ones, zeros], epsilon=1e-5)
    back = scribe.node("Reshape", [normal, scribe.integers(call.shape)])
    if not call.get("affine", True):
        return back
    of_channel = (channels, *[1] * call.spatial)
    scaled = scribe.node("Mul", [back, scribe.weight(of_channel)])
    return scribe.node("Add", [scaled, scribe.weight(of_channel)])


def _einsum(scribe: Scribe, call: Call) -> str:
    return scribe.node("Einsum", call.reads, equation=call.get("equation"))


def _softmax(scribe: Scribe, call: Call) -> str:
    return scribe.node("Softmax", [call.reads[0]], axis=call.get("dim", -1))


def _resize(mode: str) -> Rule:
    def rule(scribe: Scribe, call: Call) -> str:
        how = {"mode": mode, "coordinate_transformation_mode": "half_pixel"}
        if mode == "nearest":
            how |= {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        elif call.get("align_corners", False):
            how["coordinate_transformation_mode"] = "align_corners"
        return scribe.node("Resize", [call.reads[0], "", "", scribe.integers(call.shape)], **how)

    return rule


def _plain(operator: str, **attributes: Any) -> Rule:
    def rule(scribe: Scribe, call: Call) -> str:
        return scribe.node(operator, [call.reads[0]], **attributes)

    return rule


def _clip(scribe: Scribe, call: Call) -> str:
    low, high = call.get("min", 0.0), call.get("max", 6.0)
    return scribe.node("Clip", [call.reads[0], scribe.scalar(low), scribe.scalar(high)])


def _silu(scribe: Scribe, call: Call) -> str:
    return scribe.node("Mul", [call.reads[0], scribe.node("Sigmoid", [call.reads[0]])])


def _gelu(scribe: Scribe, call: Call) -> str:
    return scribe.node("Gelu", [call.reads[0]], approximate=call.get("approximate", "none"))


def _leaky_relu(scribe: Scribe, call: Call) -> str:
    return scribe.node("LeakyRelu", [call.reads[0]], alpha=call.get("negative_slope", 0.01))


def _elu(scribe: Scribe, call: Call) -> str:
    return scribe.node("Elu", [call.reads[0]], alpha=call.get("alpha", 1.0))


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
        **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _convolution),
        "linear": _linear,
        "matmul": _of_two("MatMul"),
        "einsum": _einsum,
        "scaled_dot_product_attention": _attention,
        **dict.fromkeys(("max_pool1d", "max_pool2d", "max_pool3d"), _pool("MaxPool")),
        **dict.fromkeys(("avg_pool1d", "avg_pool2d", "avg_pool3d"), _pool("AveragePool")),
        **dict.fromkeys(("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"), _adaptive_average),
        "mean": _mean,
        "cat": _concatenation,
        "layer_norm": _layer_norm,
        "batch_norm": _batch_norm,
        "group_norm": _group_norm,
        "softmax": _softmax,
        "upsample_nearest2d": _resize("nearest"),
        "upsample_bilinear2d": _resize("linear"),
        "upsample_bicubic2d": _resize("cubic"),
        "add": _of_two("Add"),
        "sub": _of_two("Sub"),
        "mul": _of_two("Mul"),
        "div": _of_two("Div"),
        "relu": _plain("Relu"),
        **dict.fromkeys(("relu6", "hardtanh"), _clip),
        "silu": _silu,
        "hardswish": _plain("HardSwish"),
        "hardsigmoid": _plain("HardSigmoid", alpha=1 / 6, beta=0.5),
        "sigmoid": _plain("Sigmoid"),
        "gelu": _gelu,
        "tanh": _plain("Tanh"),
        "leaky_relu": _leaky_relu,
        "elu": _elu,
    }
)
"""How each operator is written, by the name that units give it."""
