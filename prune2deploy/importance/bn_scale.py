"""BN scale: how much a norm lets through. No data."""

import numpy as np
from torch import nn

from prune2deploy.graph.channels import ChannelGraph
from prune2deploy.importance.criterion import UNJUDGED, Batches, Scores
from prune2deploy.importance.norms import norm_axes
from prune2deploy.importance.parameters import parameters_of, sum_per_index


def bn_scale(graph: ChannelGraph, model: nn.Module, batches: Batches | None = None, *, seed: int = 0) -> Scores:
    """Sum of |γ| over the norms that scale a channel. Shape: -> (channel_count,). No unit.

    A channel that no norm scales is unjudged, and so leaves last. Source: Liu et al. 2017, "Learning efficient
    convolutional networks through network slimming". Departure: norms of any kind count, not batch norms alone.

    Raises:
        InputError: no channel is scaled by a norm.
    """
    norms = norm_axes(graph, model)
    parameters = parameters_of(model, norms.scales)
    scores = np.zeros(graph.channel_count)
    for axis in norms.scales:
        scores += graph.sum_over_slices(axis, sum_per_index(parameters[axis.tensor].detach().abs(), axis.dim))
    scores[~norms.scaled] = UNJUDGED
    return scores
