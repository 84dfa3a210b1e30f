"""Units in words, for tables that people read: "conv 3x3/2 + relu, 56x56"."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from prune2deploy.graph.unit import Operator, Unit

_NAMES = {
    "adaptive_avg_pool": "average pool",
    "avg_pool": "average pool",
    "cat": "concatenation",
    "conv": "conv",
    "conv_transpose": "transposed conv",
    "max_pool": "max pool",
    "scaled_dot_product_attention": "attention",
}


def words(unit: Unit) -> str:
    """What a unit does, and at which resolution its largest input comes; fixed widths are told, others are not."""
    steps = " + ".join(_operator(operator) for operator in unit.operators)
    place = _place(max(unit.inputs, key=_fixed_size, default=()))
    return f"{steps}, {place}" if place else steps


def _operator(operator: Operator) -> str:
    attributes = dict(operator.attributes)
    name = operator.name.removesuffix("1d").removesuffix("2d").removesuffix("3d")
    text = _NAMES.get(name, name.replace("_", " "))
    if "kernel" in attributes:
        text += f" {_by(attributes['kernel'])}{_stride(attributes)}{_dilation(attributes)}"
    if "output_size" in attributes:
        text += f" to {_by(attributes['output_size'])}"
    if attributes.get("channels_per_group") == 1:
        return f"depthwise {text}"
    if "channels_per_group" in attributes:
        return f"{text} in groups of {attributes['channels_per_group']}"
    if attributes.get("groups", 1) > 1:
        return f"{text} in {attributes['groups']} groups"
    if operator.name == "linear" and operator.shape[-1] >= 0:
        return f"{text} to {operator.shape[-1]}"
    return text


def _place(shape: Sequence[int]) -> str:
    """The fixed sizes of a value beside its batch."""
    fixed = [size for size in shape[1:] if size >= 0]
    if len(fixed) == 1 and len(shape) == 3:
        return f"{fixed[0]} positions"
    return _by(fixed)


def _fixed_size(shape: Sequence[int]) -> int:
    return math.prod(size for size in shape if size >= 0)


def _by(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))


def _stride(attributes: Mapping[str, Any]) -> str:
    stride = attributes.get("stride", ())
    if all(step == 1 for step in stride):
        return ""
    return f"/{stride[0] if len(set(stride)) == 1 else _by(stride)}"


def _dilation(attributes: Mapping[str, Any]) -> str:
    dilation = attributes.get("dilation", ())
    return "" if all(step == 1 for step in dilation) else f" dilated {_by(dilation)}"
