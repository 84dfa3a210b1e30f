"""The penalty that drives whole channels to zero, and how far from zero each of them is."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from prune2deploy.graph.channels import FROZEN, Axis, ChannelGraph, Role
from prune2deploy.importance.parameters import parameters_of

EPSILON = 1e-8


@dataclass(frozen=True, slots=True, kw_only=True)
class _Slices:
    """How the indices of one dimension make slices. Shapes: (owned indices,).

    ``owned`` are the indices that can leave, None for all; ``slice_of`` the slice of each of these, None where each
    is a slice of its own.
    """

    dim: int
    owned: Tensor | None
    slice_of: Tensor | None
    slices: int

    def norms(self, squares: Tensor) -> Tensor:
        """The sum of the norms of all slices. ``squares``, shape (dimension size,), are those of each index."""
        if self.owned is not None:
            squares = squares[self.owned]
        if self.slice_of is not None:
            squares = squares.new_zeros(self.slices).index_add(0, self.slice_of, squares)
        return (squares + EPSILON).sqrt().sum()


class GroupLasso:
    """GL = sum over weights W of [ sum_i sqrt(|W[:, i]|^2 + eps) + sum_o sqrt(|W[o]|^2 + eps) ], eps = 1e-8.

    Each entry of a weight is in the slice of its input channel and in that of its output channel; no slice is weighted
    by its size. Source: Lym et al. 2019, eq. 2 and 3. All weights of dense convolutions and products count (parameters
    with two dimensions or more that make or read channels); not norms, biases, depthwise and grouped kernels. What
    cannot leave is not regularised: the inputs of the first layer, the outputs of the classifier, and whatever else
    ``graph`` holds in place (the paper regularises that too where a layer holds it, to no effect on its width).
    Where a channel takes several indices of a dimension (a head, a flattened map) these are one slice.

    ``graph`` and ``model`` are those of the model as it stands. ``is_empty``: there is nothing to regularise.
    """

    def __init__(self, graph: ChannelGraph, model: nn.Module) -> None:
        self._graph = graph
        grouped = _grouped_kernels(model)
        dense = [
            axis
            for axis in (*graph.axes_with(Role.PRODUCER), *graph.axes_with(Role.CONSUMER))
            if len(graph.shapes[axis.tensor]) > 1
        ]
        self._judged = tuple(dense)
        regularised = [axis for axis in dense if axis.tensor not in grouped and (axis.channels != FROZEN).any()]
        parameters = parameters_of(model, regularised)
        self._slices: dict[str, tuple[_Slices, ...]] = {}
        for axis in regularised:
            found = _slices_of(axis, parameters[axis.tensor].device)
            self._slices[axis.tensor] = (*self._slices.get(axis.tensor, ()), found)

    @property
    def is_empty(self) -> bool:
        """Whether no weight makes or reads channels that can leave."""
        return not self._slices

    def penalty(self, model: nn.Module) -> Tensor:
        """GL of the weights of ``model``, with gradients. Shape: ()."""
        named = dict(model.named_parameters(remove_duplicate=False))
        return torch.stack([_norms(named[name], slices) for name, slices in self._slices.items()]).sum()

    def strengths(self, model: nn.Module) -> NDArray[np.float64]:
        """The largest absolute weight of each channel, over all weights that make or read it. Shape: (channel_count,).

        Grouped kernels count here. What has left, or has no such weight, gets infinity.
        """
        strengths = np.full(self._graph.channel_count, -np.inf)
        parameters: Mapping[str, Tensor] = parameters_of(model, self._judged)
        for axis in self._judged:
            weight = parameters[axis.tensor].detach().abs().movedim(axis.dim, 0).flatten(1)
            largest = weight.amax(dim=1).double().cpu().numpy()
            owned = axis.channels != FROZEN
            np.maximum.at(strengths, axis.channels[owned], largest[owned])
        strengths[np.isneginf(strengths)] = np.inf
        return strengths


def _grouped_kernels(model: nn.Module) -> set[str]:
    return {
        f"{path}.weight" if path else "weight"
        for path, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, _ConvNd) and module.groups > 1
    }


def _slices_of(axis: Axis, device: torch.device) -> _Slices:
    owned = np.flatnonzero(axis.channels != FROZEN)
    channels, slice_of = np.unique(axis.channels[owned], return_inverse=True)
    return _Slices(
        dim=axis.dim,
        owned=None if len(owned) == axis.size else torch.from_numpy(owned).to(device),
        slice_of=None if len(channels) == len(owned) else torch.from_numpy(slice_of).to(device),
        slices=len(channels),
    )


def _norms(weight: Tensor, slices: tuple[_Slices, ...]) -> Tensor:
    """The norms of all slices of one weight: squared once, and summed over what no slice lies along first."""
    along = sorted(one.dim for one in slices)
    rest = [dim for dim in range(weight.ndim) if dim not in along]
    squares = weight.float().square()
    if rest:
        squares = squares.sum(dim=rest)
    norms = []
    for one in slices:
        others = [position for position, dim in enumerate(along) if dim != one.dim]
        norms.append(one.norms(squares.sum(dim=others) if others else squares))
    return torch.stack(norms).sum()
