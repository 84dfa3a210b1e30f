"""Fisher: the second-order change of the loss if a channel were switched off."""

import numpy as np
from torch import nn

from prune2deploy.graph.channels import ChannelGraph
from prune2deploy.importance.criterion import UNJUDGED, Batches, Scores
from prune2deploy.importance.gates import readable_channels
from prune2deploy.importance.gradients import scoring_state, squared
from prune2deploy.importance.sample_gates import SampleGates


def fisher(graph: ChannelGraph, model: nn.Module, batches: Batches | None, *, seed: int = 0) -> Scores:
    """Δ_c = 1/(2N) Σ_n (Σ_hw a·g)² over N samples, a the channel where it is read and g its gradient.

    Shape: -> (channel_count,). Unit: that of the loss, squared. The inner sum is sample n's gradient for a gate on
    channel c: it runs over space and over all readers, is squared for each sample, and only then averaged;
    the loss is summed over the batch. The model runs in ``eval`` mode, so that samples are independent.
    Channels that no weight reads are unjudged, and so leave last. Source: Theis et al. 2018, "Faster gaze prediction
    with dense networks and Fisher pruning"; Crowley et al. 2018 take the mean over samples before ranking.

    Raises:
        DataError: a label is no class of the model.
        ModelError: the model does not return class scores, or its gradients are not finite.
    """
    gates = SampleGates(graph, model)
    scores = np.zeros(graph.channel_count)
    samples = 0
    with scoring_state(model):
        for images, labels in batches or ():
            scores += squared(gates.gradients(images, labels)).sum(axis=0)
            samples += len(images)
    scores /= 2 * max(samples, 1)
    scores[~readable_channels(graph)] = UNJUDGED
    return scores
