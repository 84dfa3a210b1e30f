"""Normalisation: batch norm rides on its channels; norms over channels are cut inexactly, and are marked so."""

import numpy as np

from prune2deploy.graph.labelling import ChannelNorm
from prune2deploy.graph.labels import Block, Value
from prune2deploy.graph.rules.call import Call, Result, Rule


def batch_norm(call: Call) -> Result:
    """Scale, shift and running statistics leave with their channel (dimension 1)."""
    data = call.tensor("input")
    labels = data.labels_of(1)
    for name in ("weight", "bias", "running_mean", "running_var"):
        _ride(call, call.optional_tensor(name), labels)
    if labels is None:
        data = call.state.freeze_dim(data, 1, "is normalised as a joint dimension", call.node)
    return call.result(data.blocks)


def layer_norm(call: Call) -> Result:
    """Statistics over the trailing dimensions: labels there stay, and cutting them is inexact."""
    data = call.tensor("input")
    count = len(call.arguments["normalized_shape"])
    first = len(data.shape) - count
    affine = [call.optional_tensor(name) for name in ("weight", "bias")]
    for dim in range(first, len(data.shape)):
        data = _normed(call, data, dim)
        for parameter in affine:
            _ride(call, parameter, data.labels_of(dim), dim - first)
        if count > 1 or affine[0] is None:
            data = call.state.freeze_dim(data, dim, "is normalised over a size that is not a parameter's", call.node)
    return call.result(data.blocks)


def group_norm(call: Call) -> Result:
    """Whole norm groups leave, so that the statistics of the others stay; one single group is inexact to cut."""
    data, groups = call.tensor("input"), int(call.arguments["num_groups"])
    labels = data.labels_of(1)
    if labels is None:
        data = call.state.freeze_dim(data, 1, "is normalised as a joint dimension", call.node)
    elif groups == 1:
        data = _normed(call, data, 1)
    else:
        grouped = labels.reshape(groups, -1)
        call.state.unite(grouped, grouped[:, :1])
    for name in ("weight", "bias"):
        _ride(call, call.optional_tensor(name), data.labels_of(1))
    return call.result(data.blocks)


def softmax(call: Call) -> Result:
    """A softmax shares out over its dimension, which must keep its size."""
    data = call.values[0]
    dim = int(call.arguments["dim"]) % max(len(data.shape), 1)
    return call.result(call.state.freeze_dim(data, dim, "is shared out by a softmax", call.node).blocks)


def _normed(call: Call, data: Value, dim: int) -> Value:
    block = data.block_of(dim)
    if block is not None and len(block.dims) > 1:
        chosen = call.state.one_axis(block)
        others = tuple(other for other in data.blocks if other is not block)
        data = Value(data.shape, (*others, chosen) if len(chosen.dims) == 1 else others, data.tensor)
    labels = data.labels_of(dim)
    if labels is not None:
        call.state.norms.append(ChannelNorm(node=call.node.name, dim=dim, labels=labels))
    return data


def _ride(call: Call, parameter: Value | None, labels: object, dim: int = 0) -> None:
    """A norm's parameter leaves with the channels it scales; where those are fixed, it is fixed too."""
    if parameter is None or (own := parameter.labels_of(dim)) is None:
        return
    if isinstance(labels, np.ndarray):
        call.state.unite(labels, own)
    else:
        call.state.freeze(own, "scales a dimension that nothing prunable produces", call.node)


def rms_norm(call: Call) -> Result:
    """As layer norm, without a shift."""
    return layer_norm(call)


def weight_norm(call: Call) -> Result:
    """A weight given as direction and length: both are labelled like the weight itself."""
    direction, length = call.tensor("v"), call.tensor("g")
    blocks: list[Block] = []
    for dim in range(len(direction.shape)):
        labels, scale = direction.labels_of(dim), length.labels_of(dim)
        if labels is not None and scale is not None:
            call.state.unite(labels, scale)
        if labels is not None:
            blocks.append(Block.of(dim, labels))
    return call.result(blocks)


RULES: dict[str, Rule] = {
    "batch_norm": batch_norm,
    "instance_norm": batch_norm,
    "layer_norm": layer_norm,
    "group_norm": group_norm,
    "rms_norm": rms_norm,
    "softmax": softmax,
    "_softmax": softmax,
    "log_softmax": softmax,
    "_weight_norm": weight_norm,
}
