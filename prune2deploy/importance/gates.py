"""The gradient of the loss for a gate on each channel, without a gate and without a hook.

A gate c multiplies one channel where it is read; at c = 1 the network is unchanged. Readers are linear in what
they read, so for channel j

    dL/dc_j = sum over the consumer slices of j of <w, dL/dw>

A depthwise convolution or a norm carries a channel and does not read it: the gate acts on the next dense layer.
A gate in front of a batch normalisation that uses batch statistics would have no gradient at all, because the
norm undoes the scale; this one sits behind it.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from prune2deploy.graph.channels import FROZEN, ChannelGraph, Role
from prune2deploy.importance.criterion import Scores
from prune2deploy.importance.parameters import products, sum_per_index


def gate_gradients(graph: ChannelGraph, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> Scores:
    """dL/dc of every channel, signed. Shape: -> (channel_count,). Unit: that of the loss.

    ``weights`` and ``gradients`` hold the consumer tensors by name; a tensor that is missing from ``gradients``
    took no part in the loss. Channels that no weight reads get 0 (see ``readable_channels``).
    """
    sensitivity = np.zeros(graph.channel_count)
    axes = [axis for axis in graph.axes_with(Role.CONSUMER) if axis.tensor in gradients]
    terms = products(weights, {axis.tensor: gradients[axis.tensor] for axis in axes})
    for axis in axes:
        sensitivity += graph.sum_over_slices(axis, sum_per_index(terms[axis.tensor], axis.dim))
    return sensitivity


def readable_channels(graph: ChannelGraph) -> NDArray[np.bool_]:
    """Which channels a learnable weight reads, and a gate can therefore judge. Shape: (channel_count,)."""
    read = np.zeros(graph.channel_count, dtype=bool)
    for axis in graph.axes_with(Role.CONSUMER):
        read[axis.channels[axis.channels != FROZEN]] = True
    return read
