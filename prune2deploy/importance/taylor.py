"""Taylor: the first-order change of the loss if a channel's weights were set to zero."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

import numpy as np
from torch import Tensor, nn

from prune2deploy.graph.channels import FROZEN, Axis, ChannelGraph
from prune2deploy.importance.criterion import UNJUDGED, Batches, Scores
from prune2deploy.importance.gradients import loss_gradients, scoring_state, squared, summed_loss
from prune2deploy.importance.norms import norm_axes
from prune2deploy.importance.parameters import parameters_of, products, sum_per_index


def taylor(graph: ChannelGraph, model: nn.Module, batches: Batches | None, *, seed: int = 0) -> Scores:
    """Group Taylor: (sum of gradient x weight over all slices of the channel)², averaged over the batches.

    Shape: -> (channel_count,). Unit: that of the batch-mean loss, squared. The sum is the first-order change of
    the loss if everything that leaves with the channel became zero; it is squared after the sum, never per weight.
    The model runs in ``eval`` mode. Source: Molchanov et al. 2019, "Importance estimation for neural network
    pruning", over whole channels.

    Raises:
        DataError: a label is no class of the model.
        ModelError: the model does not return class scores, or its gradients are not finite.
    """
    axes = tuple(axis for axis in graph.axes if axis.learnable)
    return _accumulated(graph, model, batches, axes)


def taylor_bn(graph: ChannelGraph, model: nn.Module, batches: Batches | None, *, seed: int = 0) -> Scores:
    """Taylor on norms alone: (γ·dL/dγ + β·dL/dβ)², averaged over the batches.

    Shape: -> (channel_count,). Unit: as ``taylor``. The sum is the gradient for a gate right behind the norm.
    Channels that no norm scales are unjudged, and so leave last. Source: Molchanov et al. 2019, the gate form.

    Raises:
        InputError: no channel is scaled by a norm.
        DataError: a label is no class of the model.
        ModelError: the model does not return class scores, or its gradients are not finite.
    """
    norms = norm_axes(graph, model)
    scores = _accumulated(graph, model, batches, (*norms.scales, *norms.shifts))
    scores[~norms.scaled] = UNJUDGED
    return scores


def taylor_sums(
    graph: ChannelGraph, axes: Sequence[Axis], weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]
) -> Scores:
    """Sum of gradient x weight over the slices of each channel in ``axes``, signed. Shape: -> (channel_count,).

    A weight that lies in two slices of one channel (its output and its input are the same channel of a residual
    stream) counts once. Tensors without a gradient count as zero.
    """
    by_tensor: dict[str, list[Axis]] = {}
    for axis in axes:
        if axis.tensor in gradients:
            by_tensor.setdefault(axis.tensor, []).append(axis)
    terms = products(weights, {name: gradients[name] for name in by_tensor})
    sums = np.zeros(graph.channel_count)
    for name, own in by_tensor.items():
        for axis in own:
            sums += graph.sum_over_slices(axis, sum_per_index(terms[name], axis.dim))
        for first, second in combinations(own, 2):
            sums -= _overlap(graph, first, second, terms[name])
    return sums


def _overlap(graph: ChannelGraph, first: Axis, second: Axis, term: Tensor) -> Scores:
    """What ``first`` and ``second``, two dimensions of one tensor, both counted for the same channel."""
    if not np.intersect1d(first.channels, second.channels).max(initial=FROZEN) > FROZEN:
        return np.zeros(graph.channel_count)
    moved = term.movedim((first.dim, second.dim), (0, 1))
    table = moved.reshape(first.size, second.size, -1).sum(dim=2).numpy()
    shared = (first.channels[:, None] == second.channels[None, :]) & (first.channels[:, None] != FROZEN)
    return graph.sum_over_slices(first, np.where(shared, table, 0.0).sum(axis=1))


def _accumulated(
    graph: ChannelGraph, model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]] | None, axes: Sequence[Axis]
) -> Scores:
    parameters = parameters_of(model, axes)
    scores = np.zeros(graph.channel_count)
    batch_count = 0
    with scoring_state(model):
        for images, labels in batches or ():
            loss = summed_loss(model, images, labels) / len(images)
            gradients = loss_gradients(loss, parameters)
            scores += squared(taylor_sums(graph, axes, parameters, gradients))
            batch_count += 1
    return scores / max(batch_count, 1)
