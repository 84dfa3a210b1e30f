"""Normalisation: batch norm rides on its channels; norms over channels are cut inexactly, and are marked so."""

from prune2deploy.graph.labelling import ChannelNorm
from prune2deploy.graph.labels import Block, Labels, Value
from prune2deploy.graph.rules.call import Call, Result, Rule


def batch_norm(call: Call) -> Result:
    """Scale, shift and running statistics leave with their channel (dimension 1).

    Statistics of the data itself (no running ones, or a weight that is standardised) are taken over all others.
    """
    data = call.tensor("input")
    if call.arguments.get("training"):
        for dim in (0, *range(2, len(data.shape))):
            data = _normed(call, data, dim)
    data, labels = _one_channel_dimension(call, data)
    for name in ("weight", "bias", "running_mean", "running_var"):
        call.ride(call.optional_tensor(name), labels)
    return call.result(data.blocks)


def instance_norm(call: Call) -> Result:
    """As batch norm, with statistics over the spatial dimensions, which must keep their size."""
    data = _fixed_beyond_channels(call, call.tensor("input"))
    data, labels = _one_channel_dimension(call, data)
    for name in ("weight", "bias", "running_mean", "running_var"):
        call.ride(call.optional_tensor(name), labels)
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
            call.ride(parameter, data.labels_of(dim), dim - first)
        if count > 1 or (affine[0] is None and not call.state.sizes_are_free):
            data = call.state.freeze_dim(data, dim, "is normalised over a size that is not a parameter's", call.node)
    return call.result(data.blocks)


def group_norm(call: Call) -> Result:
    """Whole norm groups leave, so that the statistics of the others stay; one single group is inexact to cut."""
    groups = int(call.arguments["num_groups"])
    data = _fixed_beyond_channels(call, call.tensor("input"))
    data, labels = _one_channel_dimension(call, data)
    affine = [call.optional_tensor(name) for name in ("weight", "bias")]
    if affine[0] is None and groups > 1 and not call.state.sizes_are_free:
        data = call.state.freeze_dim(data, 1, "is normalised in groups of a size that is not a parameter's", call.node)
        return call.result(data.blocks)
    if labels is not None and groups == 1:
        data = _normed(call, data, 1)
    elif labels is not None:
        grouped = labels.reshape(groups, -1)
        call.state.unite(grouped, grouped[:, :1])
    for parameter in affine:
        call.ride(parameter, labels)
    return call.result(data.blocks)


def softmax(call: Call) -> Result:
    """A softmax shares out over its dimension, which must keep its size."""
    data = call.values[0]
    dim = int(call.arguments["dim"]) % max(len(data.shape), 1)
    return call.result(call.state.freeze_dim(data, dim, "is shared out by a softmax", call.node).blocks)


def _normed(call: Call, data: Value, dim: int) -> Value:
    block = data.block_of(dim)
    if block is not None and len(block.dims) > 1:  # within a head, or within one of several groups
        return call.state.freeze_dim(data, dim, "is normalised as a part of a dimension", call.node)
    labels = data.labels_of(dim)
    if labels is not None:
        call.state.norms.append(ChannelNorm(node=call.node.name, dim=dim, labels=labels))
    return data


def _one_channel_dimension(call: Call, data: Value) -> tuple[Value, Labels | None]:
    """The value with dimension 1 on its own, and the labels there."""
    labels = data.labels_of(1)
    if labels is None:
        data = call.state.freeze_dim(data, 1, "is normalised as a joint dimension", call.node)
    return data, labels


def _fixed_beyond_channels(call: Call, data: Value) -> Value:
    for dim in range(2, len(data.shape)):
        data = call.state.freeze_dim(data, dim, "is normalised over this dimension", call.node)
    return data


def rms_norm(call: Call) -> Result:
    """As layer norm, without a shift."""
    return layer_norm(call)


def weight_norm(call: Call) -> Result:
    """A weight given as direction and length, one for each index of ``dim``; the length is taken over all others.

    Those that are inputs may leave, inexactly: the direction is then scaled to the same length without them.
    """
    direction, length = call.tensor("v"), call.tensor("g")
    own = int(call.arguments["dim"]) % len(direction.shape)
    blocks: list[Block] = []
    for dim in range(len(direction.shape)):
        labels = direction.labels_of(dim)
        if labels is None:
            continue
        if dim == own:
            call.ride(length, labels, dim)
        else:
            call.state.norms.append(ChannelNorm(node=call.node.name, dim=dim, labels=labels))
        blocks.append(Block.of(dim, labels))
    return call.result(blocks)


RULES: dict[str, Rule] = {
    "batch_norm": batch_norm,
    "instance_norm": instance_norm,
    "layer_norm": layer_norm,
    "group_norm": group_norm,
    "rms_norm": rms_norm,
    "softmax": softmax,
    "_softmax": softmax,
    "_safe_softmax": softmax,
    "log_softmax": softmax,
    "_weight_norm": weight_norm,
}
