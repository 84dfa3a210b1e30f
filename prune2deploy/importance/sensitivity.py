"""Sensitivity: what the loss of one or a few batches says of every channel, at initialisation or anywhere else."""

from collections.abc import Iterable

import numpy as np
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from prune2deploy.graph.channels import ChannelGraph, Role
from prune2deploy.importance.criterion import UNJUDGED, Scores
from prune2deploy.importance.gates import gate_gradients
from prune2deploy.importance.gradients import loss_gradients, scoring_state, summed_loss
from prune2deploy.importance.parameters import parameters_of


def summed_gate_gradients(
    graph: ChannelGraph, model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]
) -> tuple[Scores, int]:
    """dL/dc of every channel, signed, for the loss summed over all images; and how many images there were.

    Shape: -> (channel_count,). Unit: nat. Batch norms use the statistics of the batch, as in training, since running
    ones mean nothing at initialisation; dropout is off. A batch of one image, which has no statistics, is passed over
    where the model has batch norms. The sign is kept, so that batches and processes can be added up before the absolute
    value is taken. Weights, buffers, flags and ``.grad`` are left as they were.

    Raises:
        DataError: a label is no class of the model.
        ModelError: the model does not return class scores.
    """
    parameters = parameters_of(model, graph.axes_with(Role.CONSUMER))
    enough = 2 if any(isinstance(module, _BatchNorm) for module in model.modules()) else 1
    total, count = np.zeros(graph.channel_count), 0
    with scoring_state(model, batch_statistics=True):
        for images, labels in batches:
            if len(images) < enough:
                continue  # also the empty share of a process in a short last batch
            gradients = loss_gradients(summed_loss(model, images, labels), parameters)
            total += gate_gradients(graph, parameters, gradients)
            count += len(images)
    return total, count


def per_flop(scores: Scores, flops: Scores) -> Scores:
    """Importance for each FLOP that is saved: ``scores / flops``. Shapes: all (channel_count,).

    A channel that saves no FLOPs, and one that could not be judged, are ``UNJUDGED``, and so leave last.
    """
    saves = flops > 0
    return np.where(saves & np.isfinite(scores), scores / np.where(saves, flops, 1.0), UNJUDGED)
