"""FPGM: how far the weights of a channel are from those of the others, so that what is redundant leaves. No data."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prune2deploy.graph.channels import Axis, ChannelGraph, Group, Role
from prune2deploy.importance.criterion import Batches, Scores
from prune2deploy.importance.parameters import parameters_of


def fpgm(graph: ChannelGraph, model: nn.Module, batches: Batches | None = None, *, seed: int = 0) -> Scores:
    """Sum of the Euclidean distances from a channel's weights to those of each other channel of its group.

    Shape: -> (channel_count,). Unit: that of the weights. The weights are all that produce the channel. The one with
    the smallest sum is nearest to the geometric median: the others can stand for it best. Where a producer makes
    some channels of a group only, the others count as zero there. Source: He et al. 2019, "Filter pruning via
    geometric median for deep convolutional neural networks acceleration". Departure: where a residual addition joins
    several producers, the distance is over all of them together.
    """
    axes = graph.axes_with(Role.PRODUCER)
    parameters = parameters_of(model, axes)
    scores = np.zeros(graph.channel_count)
    with torch.no_grad():
        for group in graph.groups:
            count = len(group.channels)
            squares = torch.zeros(count, count, dtype=torch.float64)
            for axis in axes:
                if np.isin(axis.channels, group.channels).any():
                    squares += _squared_distances(_slices(parameters[axis.tensor], axis, group))
            scores[group.channels] = squares.sqrt().sum(dim=1).numpy()
    return scores


def _slices(weight: Tensor, axis: Axis, group: Group) -> Tensor:
    """The weights of each channel along one axis, in one row. Shape: -> (channels of the group, weights of one)."""
    row_of = np.full(int(max(group.channels.max(), axis.channels.max())) + 1, -1, dtype=np.int64)
    row_of[group.channels] = np.arange(len(group.channels))
    rows = np.where(axis.channels >= 0, row_of[axis.channels], -1)
    indices = np.flatnonzero(rows >= 0)
    places = _rank_within(rows[indices])
    moved = weight.detach().cpu().double().movedim(axis.dim, 0).reshape(axis.size, -1)
    table = torch.zeros(len(group.channels), int(places.max()) + 1, moved.shape[1], dtype=torch.float64)
    table[torch.from_numpy(rows[indices]), torch.from_numpy(places)] = moved[torch.from_numpy(indices)]
    return table.flatten(1)


def _rank_within(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many earlier entries equal each entry. Shape: (count,) -> (count,)."""
    order = np.argsort(rows, kind="stable")
    starts = np.searchsorted(rows[order], rows[order])
    ranks = np.zeros(len(rows), dtype=np.int64)
    ranks[order] = np.arange(len(rows)) - starts
    return ranks


def _squared_distances(rows: Tensor) -> Tensor:
    """Between all pairs of rows, by products, about their mean so that little cancels. Shape: (n, m) -> (n, n)."""
    centred = rows - rows.mean(dim=0)
    products = centred @ centred.T
    squares = products.diagonal()
    distances = (squares[:, None] + squares[None, :] - 2 * products).clamp(min=0)
    return distances.fill_diagonal_(0)
