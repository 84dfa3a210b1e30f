"""Where a model rectifies: its activation functions in the order of execution, and the channels that they see."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prune2deploy.graph.channels import FROZEN
from prune2deploy.graph.labelling import place_of
from prune2deploy.graph.labels import Value
from prune2deploy.graph.sizes import shape_of
from prune2deploy.graph.trace import Trace

_RECTIFIERS = frozenset({"relu", "hardtanh", "clamp", "clamp_min", "threshold"})
_SMOOTH = frozenset(
    {"gelu", "silu", "mish", "hardswish", "leaky_relu", "elu", "celu", "softplus", "_prelu_kernel", "rrelu"}
)
# What an export keeps as one operator and a running model computes by another one.
_RUNS_AS = {"relu6": "hardtanh", "selu": "elu", "prelu": "_prelu_kernel"}
# The arguments that must be 0 for an operator to cut at zero.
_CUTS_AT = {"hardtanh": ("min_val",), "clamp": ("min",), "clamp_min": ("min",), "threshold": ("threshold", "value")}


@dataclass(frozen=True, slots=True, kw_only=True)
class RectifiedDimension:
    """A dimension of an activation, and the channel of each of its positions, -1 where it stays. Shape: (size,)."""

    dim: int
    channels: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Activation:
    """One call of an activation function.

    ``operator`` is the ATen name as a running model calls it (``relu6`` runs as ``hardtanh``). ``rectifies``: it gives
    exact zeros, where GELU, SiLU and their like come close at best. ``place`` is the module path and source line;
    ``dimensions`` those along which channels can leave, with the channel numbers of the graph.
    """

    operator: str
    rectifies: bool
    place: str
    rank: int
    dimensions: tuple[RectifiedDimension, ...]


def activations_of(traced: Trace) -> tuple[Activation, ...]:
    """All activation functions of a traced model in the order of execution, those of fixed width too."""
    found = []
    for node in traced.program.graph.nodes:
        operator = activation_name(node.target, node.args, node.kwargs) if node.op == "call_function" else None
        if operator is None:
            continue
        value = traced.interpretation.values[node.name]
        assert isinstance(value, Value)
        channels = ((block.dims[0], traced.channel_of_label[block.labels]) for block in value.blocks)
        found.append(
            Activation(
                operator=operator,
                rectifies=operator in _RECTIFIERS,
                place=place_of(node) or node.name,
                rank=len(shape_of(node)),
                dimensions=tuple(
                    RectifiedDimension(dim=dim, channels=numbers)
                    for dim, numbers in channels
                    if (numbers != FROZEN).any()
                ),
            )
        )
    return tuple(found)


def activation_name(operator: Any, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> str | None:
    """The name of an activation function, in place or not, as a running model calls it; None for all other operators.

    ``hardtanh``, ``clamp`` and ``threshold`` are activation functions where they cut at zero.
    """
    if not isinstance(operator, torch._ops.OpOverload):
        return None
    name = operator._schema.name.removeprefix("aten::")
    name = name[:-1] if name.endswith("_") else name
    cuts_at = _CUTS_AT.get(name, ())  # of relu6 itself: none
    name = _RUNS_AS.get(name, name)
    if name not in _RECTIFIERS and name not in _SMOOTH:
        return None
    given = {
        parameter.name: arguments[position] if position < len(arguments) else keywords.get(parameter.name)
        for position, parameter in enumerate(operator._schema.arguments)
        if parameter.name in cuts_at
    }
    return name if all(isinstance(value, int | float) and value == 0 for value in given.values()) else None
