"""Which affine tensors of a graph are the scales and shifts of norm layers."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from prune2deploy.errors import InputError
from prune2deploy.graph.channels import FROZEN, Axis, ChannelGraph, Role

_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


@dataclass(frozen=True, slots=True, kw_only=True)
class NormAxes:
    """The axes of norm scales and of norm shifts, and which channels have a scale: shape (channel_count,)."""

    scales: tuple[Axis, ...]
    shifts: tuple[Axis, ...]
    scaled: NDArray[np.bool_]


def norm_axes(graph: ChannelGraph, model: nn.Module) -> NormAxes:
    """Find them by the type of the module that owns each tensor.

    Raises:
        InputError: no channel of the graph is scaled by a norm.
    """
    norms = {name: module for name, module in model.named_modules(remove_duplicate=False) if isinstance(module, _NORMS)}
    scale_names = {f"{name}.weight" for name in norms}
    shift_names = {f"{name}.bias" for name in norms}
    affine = graph.axes_with(Role.AFFINE)
    scales = tuple(axis for axis in affine if axis.tensor in scale_names)
    shifts = tuple(axis for axis in affine if axis.tensor in shift_names)
    scaled = np.zeros(graph.channel_count, dtype=bool)
    for axis in scales:
        scaled[axis.channels[axis.channels != FROZEN]] = True
    if not scaled.any():
        raise InputError(
            "no channel of this model is scaled by a norm layer, so norm scales cannot rank them",
            hint="choose another criterion, such as l2",
        )
    return NormAxes(scales=scales, shifts=shifts, scaled=scaled)
