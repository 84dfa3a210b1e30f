"""What of an operator an engine's time depends on: its attributes, without its weights. One function a family.

Attributes are JSON values, sizes in order of the dimensions. A constant that an operator takes beside its values
(a scale, a table of positions) is told by its shape, as ``operand``; a number as ``scalar``.

Convolutions hold ``groups`` where their number is fixed. Where whole groups leave, their number follows the width:
then ``channels_per_group`` and ``outputs_per_group`` are given instead, and always equal. A convolution whose groups
give another number of channels than they read is told as one that reads as many as it gives (or the other way round),
with groups of the smaller number: the same FLOPs, and one width instead of two that are tied.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch.fx import Node

from prune2deploy.graph.dataflow import Call, Dataflow
from prune2deploy.graph.labels import Labels
from prune2deploy.graph.sizes import shape_of
from prune2deploy.graph.value_widths import ValueWidths

_RECTIFIERS: Mapping[str, Mapping[str, str]] = {
    "elu": {"alpha": "alpha"},
    "gelu": {"approximate": "approximate"},
    "hardsigmoid": {},
    "hardswish": {},
    "hardtanh": {"min": "min_val", "max": "max_val"},
    "leaky_relu": {"negative_slope": "negative_slope"},
    "relu": {},
    "relu6": {},
    "sigmoid": {},
    "silu": {},
    "tanh": {},
}
"""Operators of one value, entry by entry, with their attributes and how ATen calls these."""
_ARITHMETIC = frozenset({"add", "sub", "mul", "div"})
IN_TAILS = _ARITHMETIC | set(_RECTIFIERS)
"""Operators that run on with the result of another, entry by entry."""
_SQUARE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """An operator as a unit holds it. ``reads`` are its values, ``operand`` a constant that it takes.

    ``reduces`` is the width that it sums over, ``produces`` the one that its weight makes (-1 - n for width n), where
    it has these. ``tied`` are two widths that are told as one, the first by the second.
    """

    name: str
    reads: tuple[Node, ...]
    result: Node
    attributes: Mapping[str, Any] = field(default_factory=dict)
    operand: Node | None = None
    reduces: int | None = None
    produces: int | None = None
    tied: tuple[int, int] | None = None


def described(call: Call, flow: Dataflow, widths: ValueWidths) -> Described | None:
    """The operator of a call; None where units hold no such operator."""
    if call.name in _RECTIFIERS:
        return _rectifier(call)
    family = _FAMILIES.get(call.name)
    return None if family is None else family(call, flow, widths)


def _rectifier(call: Call) -> Described:
    attributes = {name: call.arguments[argument] for name, argument in _RECTIFIERS[call.name].items()}
    numbers = {name: one if isinstance(one, str) else float(one) for name, one in attributes.items()}
    return Described(name=call.name, reads=call.reads, result=call.node, attributes=numbers)


def _arithmetic(call: Call, flow: Dataflow, widths: ValueWidths) -> Described | None:
    first, second = call.arguments["self"], call.arguments["other"]
    if call.arguments.get("rounding_mode") is not None:
        return None
    attributes: dict[str, Any] = {}
    if (alpha := call.arguments.get("alpha", 1)) != 1:
        attributes["alpha"] = float(alpha)
    operand = next((one for one in (first, second) if isinstance(one, Node) and one in flow.constants), None)
    if operand is first and call.name in ("sub", "div"):
        attributes["operand_first"] = True
    if not isinstance(second, Node):
        attributes["scalar"] = float(second)
    reads = tuple(one for one in (first, second) if isinstance(one, Node) and one is not operand)
    return Described(name=call.name, reads=reads, result=call.node, attributes=attributes, operand=operand)


def _convolution(call: Call, flow: Dataflow, widths: ValueWidths) -> Described | None:
    given = call.arguments
    data, weight = given["input"], given["weight"]
    if weight not in flow.constants or len(call.reads) != 1:
        return None
    kernel = shape_of(weight)[2:]
    rank = len(kernel)
    transposed = call.name.startswith("conv_transpose") or bool(given.get("transposed", False))
    attributes: dict[str, Any] = {
        "kernel": kernel,
        "stride": _sizes(given["stride"], rank),
        "padding": _padding(given["padding"], kernel, _sizes(given["dilation"], rank)),
        "dilation": _sizes(given["dilation"], rank),
        "bias": given.get("bias") is not None,
    }
    if transposed:
        attributes["output_padding"] = _sizes(given["output_padding"], rank)
    channel_dim = len(shape_of(data)) - rank - 1
    groups = int(given["groups"])
    incoming, outgoing = widths.shape(data)[channel_dim], widths.shape(call.node)[channel_dim]
    tied = None
    channels = widths.channels(data, channel_dim)
    if groups > 1 and channels is not None and _groups_leave_whole(channels, groups) and outgoing < 0:
        inputs, outputs = (shape_of(one)[channel_dim] // groups for one in (data, call.node))
        attributes["channels_per_group"] = attributes["outputs_per_group"] = math.gcd(inputs, outputs)
        if incoming != outgoing:
            tied = (incoming, outgoing) if outputs > inputs else (outgoing, incoming)
        reduces = produces = None
    else:
        attributes["groups"] = groups
        reduces, produces = incoming, outgoing
    return Described(
        name=f"conv_transpose{rank}d" if transposed else f"conv{rank}d",
        reads=call.reads,
        result=call.node,
        attributes=attributes,
        reduces=reduces,
        produces=produces,
        tied=tied,
    )


def _groups_leave_whole(channels: Labels, groups: int) -> bool:
    """Whether the channels of each group are one, and not the same ones in every group."""
    rows = channels.reshape(groups, -1)
    return bool((rows == rows[:, :1]).all() and (rows[0] != rows).any())


def _linear(call: Call, flow: Dataflow, widths: ValueWidths) -> Described | None:
    given = call.arguments
    data = given["mat1"] if call.name == "addmm" else given.get("input", given.get("self"))
    weight = given["weight"] if call.name == "linear" else given.get("mat2", given.get("other"))
    bias = given["self"] if call.name == "addmm" else given.get("bias")
    if data in flow.constants or len(call.reads) != 1 or len(shape_of(weight)) != _SQUARE:
        return _product(call, flow, widths) if call.name in ("matmul", "mm", "bmm") else None
    return Described(
        name="linear",
        reads=call.reads,
        result=call.node,
        attributes={"bias": bias is not None},
        reduces=widths.shape(data)[-1],
        produces=widths.shape(call.node)[-1],
    )


def _product(call: Call, flow: Dataflow, widths: ValueWidths) -> Described:
    """Of two activations, or of one and a constant that is no matrix (or stands first)."""
    first, second = call.arguments["self"], call.arguments.get("mat2", call.arguments.get("other"))
    operand = next((one for one in (first, second) if one in flow.constants), None)
    attributes = {"operand_first": True} if operand is first and operand is not None else {}
    reads = tuple(one for one in (first, second) if one is not operand)
    return Described(name="matmul", reads=reads, result=call.node, attributes=attributes, operand=operand)


def _pool(call: Call, flow: Dataflow, widths: ValueWidths) -> Described | None:
    given = call.arguments
    rank = int(call.name[-2])
    attributes: dict[str, Any] = {
        "kernel": _sizes(given["kernel_size"], rank),
        "stride": _sizes(given["stride"] or given["kernel_size"], rank),
        "padding": _sizes(given["padding"], rank),
        "ceil_mode": bool(given["ceil_mode"]),
    }
    if "dilation" in given:
        attributes["dilation"] = _sizes(given["dilation"], rank)
    if "count_include_pad" in given:
        attributes["count_include_pad"] = bool(given["count_include_pad"])
    if given.get("divisor_override"):
        return None
    return Described(name=call.name, reads=call.reads, result=call.node, attributes=attributes)


def _adaptive_pool(call: Call, flow: Dataflow, widths: ValueWidths) -> Described:
    sizes = _sizes(call.arguments["output_size"], int(call.name[-2]))
    return Described(name=call.name, reads=call.reads, result=call.node, attributes={"output_size": sizes})


def _mean(call: Call, flow: Dataflow, widths: ValueWidths) -> Described:
    rank = len(shape_of(call.reads[0]))
    given = call.arguments.get("dim")
    dims = given or range(rank)
    attributes = {
        "dims": tuple(sorted(int(dim) % rank for dim in dims)),
        "keepdim": bool(call.arguments.get("keepdim", False)),
    }
    return Described(name="mean", reads=call.reads, result=call.node, attributes=attributes)


def _concatenation(call: Call, flow: Dataflow, widths: ValueWidths) -> Described:
    """A concatenation or a stack, told as if two halves of the result were joined: it reads one value of its shape.

    The time of a concatenation is that of copying what it gives; of how many parts that was, little. So all of one
    resolution are one unit, and none has more than one width.
    """
    dim = int(call.arguments.get("dim", 0)) % len(shape_of(call.node))
    return Described(name="cat", reads=(call.node,), result=call.node, attributes={"dim": dim})


def _einsum(call: Call, flow: Dataflow, widths: ValueWidths) -> Described | None:
    """Of activations alone; the equation is written without spaces."""
    given = call.arguments["tensors"]
    if flow.constants.intersection(given):
        return None
    equation = str(call.arguments["equation"]).replace(" ", "")
    return Described(name="einsum", reads=tuple(given), result=call.node, attributes={"equation": equation})


def _layer_norm(call: Call, flow: Dataflow, widths: ValueWidths) -> Described:
    given = call.arguments
    attributes = {
        "dims": len(given["normalized_shape"]),
        "affine": given["weight"] is not None,
        "bias": given["bias"] is not None,
    }
    return Described(name="layer_norm", reads=call.reads, result=call.node, attributes=attributes)


def _group_norm(call: Call, flow: Dataflow, widths: ValueWidths) -> Described:
    attributes = {"groups": int(call.arguments["num_groups"]), "affine": call.arguments["weight"] is not None}
    return Described(name="group_norm", reads=call.reads, result=call.node, attributes=attributes)


def _batch_norm(call: Call, flow: Dataflow, widths: ValueWidths) -> Described | None:
    if call.arguments["training"]:
        return None
    return Described(name="batch_norm", reads=call.reads, result=call.node)


def _softmax(call: Call, flow: Dataflow, widths: ValueWidths) -> Described:
    dim = int(call.arguments["dim"]) % len(shape_of(call.node))
    return Described(name="softmax", reads=call.reads, result=call.node, attributes={"dim": dim})


def _attention(call: Call, flow: Dataflow, widths: ValueWidths) -> Described | None:
    given = call.arguments
    values = (given["query"], given["key"], given["value"])
    mask = given.get("attn_mask")
    operand = mask if mask in flow.constants else None
    if flow.constants.intersection(values) or given.get("enable_gqa"):
        return None
    attributes: dict[str, Any] = {"is_causal": bool(given.get("is_causal"))}
    if given.get("scale") is not None:
        attributes["scale"] = float(given["scale"])
    reads = values if mask is None or operand is not None else (*values, mask)
    return Described(name=call.name, reads=reads, result=call.node, attributes=attributes, operand=operand)


def _upsample(call: Call, flow: Dataflow, widths: ValueWidths) -> Described:
    given = call.arguments
    attributes = {"align_corners": bool(given["align_corners"])} if "align_corners" in given else {}
    return Described(name=call.name, reads=call.reads, result=call.node, attributes=attributes)


def _sizes(given: Any, rank: int) -> tuple[int, ...]:
    """One size for each dimension, where ATen takes one for all."""
    sizes = [int(one) for one in given] if isinstance(given, list | tuple) else [int(given)]
    return tuple(sizes * rank if len(sizes) == 1 else sizes)


def _padding(given: Any, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[int, ...] | str:
    """In sizes where both ends get the same."""
    if not isinstance(given, str):
        return _sizes(given, len(kernel))
    ends = [0 if given == "valid" else step * (size - 1) for size, step in zip(kernel, dilation, strict=True)]
    return given if any(end % 2 for end in ends) else tuple(end // 2 for end in ends)


_FAMILIES: Mapping[str, Callable[[Call, Dataflow, ValueWidths], Described | None]] = {
    **dict.fromkeys(_ARITHMETIC, _arithmetic),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution"), _convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _convolution),
    **dict.fromkeys(("linear", "addmm", "mm", "bmm", "matmul"), _linear),
    **dict.fromkeys(("max_pool1d", "max_pool2d", "max_pool3d"), _pool),
    **dict.fromkeys(("avg_pool1d", "avg_pool2d", "avg_pool3d"), _pool),
    **dict.fromkeys(("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"), _adaptive_pool),
    "mean": _mean,
    "einsum": _einsum,
    **dict.fromkeys(("cat", "stack"), _concatenation),
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "batch_norm": _batch_norm,
    "softmax": _softmax,
    "scaled_dot_product_attention": _attention,
    **dict.fromkeys(("upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d"), _upsample),
}
