"""LAMP: the size of a channel beside all larger ones of its group. No data."""

import numpy as np
from torch import nn

from prune2deploy.graph.channels import ChannelGraph
from prune2deploy.importance.criterion import Batches, Scores
from prune2deploy.importance.magnitude import l2


def lamp(graph: ChannelGraph, model: nn.Module, batches: Batches | None = None, *, seed: int = 0) -> Scores:
    """‖w_j‖² / Σ ‖w_k‖² over the channels k of the group from j on, sorted by size. Shape: -> (channel_count,).

    No unit; in [0, 1], and 1 for the largest of each group, so that groups compare without more normalising. Of equal
    channels the first counts as smaller. Source: Lee et al. 2021, "Layer-adaptive sparsity for the magnitude-based
    pruning". Departure: of channels, whose size is the L2 norm over all producers, instead of single weights.
    """
    squares = np.square(l2(graph, model))
    scores = np.zeros(graph.channel_count)
    for group in graph.groups:
        ascending = group.channels[np.argsort(squares[group.channels], kind="stable")]
        not_smaller = np.cumsum(squares[ascending][::-1])[::-1]
        scores[ascending] = squares[ascending] / np.where(not_smaller > 0, not_smaller, 1.0)
    return scores
