"""L1 and L2: the size of the weights that produce a channel. No data."""

from collections.abc import Callable

import numpy as np
from torch import Tensor, nn

from prune2deploy.graph.channels import ChannelGraph, Role
from prune2deploy.importance.criterion import Batches, Scores
from prune2deploy.importance.parameters import parameters_of, sum_per_index


def l1(graph: ChannelGraph, model: nn.Module, batches: Batches | None = None, *, seed: int = 0) -> Scores:
    """Sum of |w| over all weights that produce a channel. Shape: -> (channel_count,). Unit: that of the weights.

    Source: Li et al. 2017, "Pruning filters for efficient ConvNets"; over the whole model as in Crowley et al.
    2018. Departure: where a residual addition joins several producers, all of them count.
    """
    return _summed(graph, model, Tensor.abs)


def l2(graph: ChannelGraph, model: nn.Module, batches: Batches | None = None, *, seed: int = 0) -> Scores:
    """Euclidean norm of all weights that produce a channel. Shape: -> (channel_count,). Unit: that of the weights.

    The squares of all producers are summed before the one root. Source: Li et al. 2017, in its L2 form.
    """
    return np.sqrt(_summed(graph, model, Tensor.square))


def _summed(graph: ChannelGraph, model: nn.Module, size: Callable[[Tensor], Tensor]) -> Scores:
    axes = graph.axes_with(Role.PRODUCER)
    parameters = parameters_of(model, axes)
    scores = np.zeros(graph.channel_count)
    for axis in axes:
        weight = parameters[axis.tensor].detach().cpu().double()
        scores += graph.sum_over_slices(axis, sum_per_index(size(weight), axis.dim))
    return scores
