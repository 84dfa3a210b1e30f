"""Random: the control that every criterion has to beat. No data."""

import numpy as np
from torch import nn

from prune2deploy.graph.channels import ChannelGraph
from prune2deploy.importance.criterion import Batches, Scores


def random_scores(graph: ChannelGraph, model: nn.Module, batches: Batches | None = None, *, seed: int = 0) -> Scores:
    """Uniform in [0, 1), the same for the same seed. Shape: -> (channel_count,). No unit.

    Draws from its own generator and leaves all global ones alone.
    """
    return np.random.default_rng(seed).random(graph.channel_count)
