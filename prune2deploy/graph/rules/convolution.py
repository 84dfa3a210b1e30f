"""Convolutions: of any rank, grouped or not, transposed or not."""

import math

import numpy as np

from prune2deploy.graph.labelling import ChannelNorm
from prune2deploy.graph.labels import Block, Labels, Value
from prune2deploy.graph.rules.call import Call, Result, Rule
from prune2deploy.graph.rules.contraction import NOT_PRUNABLE, contract, mark, widths_of


def convolution(call: Call) -> Result:
    """Convolutions of any rank, transposed or not, with any grouping.

    With groups, a channel is a whole group, or the same position in every group, whichever leaves more to choose from:
    both keep equal counts in each group by construction (docs/decisions/0002).
    """
    arguments = call.arguments
    transposed = call.name.startswith("conv_transpose") or bool(arguments.get("transposed", False))
    data, weight = call.tensor("input"), call.tensor("weight")
    groups = int(arguments.get("groups", 1))
    output_dim, input_dim = (1, 0) if transposed else (0, 1)
    spatial = len(weight.shape) - 2
    if _slides_over_channels(data, weight, call.shape):
        return _sliding(call, data, weight)
    channel_dim = len(data.shape) - spatial - 1
    data = _without_spatial_blocks(call, data, weight, channel_dim)
    for dim in range(2, len(weight.shape)):
        weight = call.state.freeze_dim(weight, dim, "is the size of a kernel", call.node)

    produced, consumed = weight.labels_of(output_dim), weight.labels_of(input_dim)
    if groups == 1 or not _rides(weight, groups, transposed=transposed):
        mark(call.state, produced, consumed)
    if groups == 1:
        data = contract(call, data, channel_dim, consumed, argument="input")
        out = produced
    elif transposed:
        out = _grouped_transposed(call, data.labels_of(channel_dim), weight, groups)
    else:
        out = _grouped(call, data, weight, channel_dim, groups)
    call.ride(call.optional_tensor("bias"), out)

    positions = data.shape[channel_dim + 1 :] if transposed else call.shape[channel_dim + 1 :]
    around = {dim: data.labels_of(dim) for dim in range(len(data.shape)) if dim != channel_dim}
    sizes = {**dict(enumerate(data.shape[:channel_dim])), **dict(enumerate(positions, channel_dim + 1))}
    unlabelled = math.prod(size for dim, size in sizes.items() if around[dim] is None)
    fixed, widths = widths_of(weight, output_dim, input_dim)
    coefficient = 2 * unlabelled * math.prod(weight.shape[2:]) * fixed
    call.state.count(call.node, coefficient, [*around.values(), *widths], produced=produced)
    blocks = [Block.of(dim, labels) for dim, labels in around.items() if labels is not None]
    return call.result([*blocks, Block.of(channel_dim, out)] if out is not None else blocks)


def _rides(weight: Value, groups: int, *, transposed: bool) -> bool:
    """Whether the kernels of a group leave with what they read: those of one input, or all of a transposed group."""
    if not transposed:
        return weight.shape[1] == 1
    return _leaves_whole(groups, weight.shape[0] // groups, weight.shape[1])


def _leaves_whole(groups: int, inputs: int, outputs: int) -> bool:
    return inputs == 1 or groups >= max(inputs, outputs)


def _slides_over_channels(data: Value, weight: Value, shape: tuple[int, ...]) -> bool:
    last = len(data.shape) - 1
    single = len(weight.shape) == 3 and weight.shape[:2] == (1, 1)
    return single and data.labels_of(last) is not None and shape[last] == data.shape[last]


def _sliding(call: Call, data: Value, weight: Value) -> Result:
    """One kernel along the channels themselves (efficient channel attention): the neighbours of those that stay change.

    So each channel keeps its labels, and cutting them is inexact.
    """
    last = len(data.shape) - 1
    call.state.freeze_dim(weight, 2, "is the size of a kernel", call.node)
    labels = data.labels_of(last)
    assert labels is not None
    call.state.norms.append(ChannelNorm(node=call.node.name, dim=last, labels=labels))
    rows = [data.labels_of(dim) for dim in range(last)]
    unlabelled = math.prod(size for size, found in zip(data.shape[:last], rows, strict=True) if found is None)
    call.state.count(call.node, 2 * weight.shape[2] * unlabelled, [*rows, labels])
    return call.result(data.blocks)


def _grouped(call: Call, data: Value, weight: Value, channel_dim: int, groups: int) -> Labels | None:
    state, node = call.state, call.node
    outputs, inputs = weight.shape[0] // groups, weight.shape[1]
    produced, consumed = weight.labels_of(0), weight.labels_of(1)
    incoming = data.labels_of(channel_dim)
    if produced is None:
        state.freeze_value(data, NOT_PRUNABLE, node)
        return None
    if _leaves_whole(groups, inputs, outputs):
        if consumed is not None:
            state.freeze(consumed, "the inputs of one convolution group stay together", node)
        if incoming is None:  # a fixed size from here on: another dimension that meets this one may yet be cut
            state.freeze(produced, NOT_PRUNABLE, node)
            return None
        state.unite(incoming.reshape(groups, inputs), incoming.reshape(groups, inputs)[:, :1])
        state.unite(produced.reshape(groups, outputs), incoming.reshape(groups, inputs)[:, :1])
        # the same channels as those produced, but what was one channel before is still seen to be one
        return np.repeat(incoming.reshape(groups, inputs)[:, 0], outputs)
    state.unite(produced.reshape(groups, outputs), produced.reshape(groups, outputs)[:1])
    if incoming is None:
        if consumed is not None:
            state.freeze(consumed, NOT_PRUNABLE, node)
    elif consumed is None:
        state.freeze(incoming, "is read by a weight of fixed size", node)
    else:
        state.unite(incoming.reshape(groups, inputs), consumed[None, :])
        state.read(node, call.position("input"), channel_dim, incoming)
    return produced


def _grouped_transposed(call: Call, incoming: Labels | None, weight: Value, groups: int) -> Labels | None:
    """Weights of transposed convolutions are (in, out / groups, ...): dimension 0 holds all inputs, 1 is every group's.

    Whole groups leave, or the same positions of all, as of other convolutions.
    """
    state, node = call.state, call.node
    inputs, outputs = weight.shape[0] // groups, weight.shape[1]
    consumed, produced = weight.labels_of(0), weight.labels_of(1)
    if consumed is None or incoming is None:
        for labels in (incoming, consumed, produced):
            if labels is not None:
                state.freeze(labels, NOT_PRUNABLE, node)
        return None
    state.unite(incoming, consumed)
    grouped = consumed.reshape(groups, inputs)
    if _leaves_whole(groups, inputs, outputs):
        state.unite(grouped, grouped[:, :1])
        if produced is not None:
            state.freeze(produced, "the outputs of one convolution group stay together", node)
        return np.repeat(grouped[:, 0], outputs)
    state.unite(grouped, grouped[:1])
    state.read(node, call.position("input"), len(call.shape) - len(weight.shape) + 1, incoming)
    return None if produced is None else np.tile(produced, groups)


def _without_spatial_blocks(call: Call, data: Value, weight: Value, channel_dim: int) -> Value:
    """One-axis blocks only. A kernel of one position keeps those of a spatial dimension, a longer one freezes it."""
    steps = any(step != 1 for step in call.arguments.get("stride") or ())
    for dim in range(channel_dim + 1, len(data.shape)):
        if steps or weight.shape[dim - channel_dim + 1] > 1 or call.shape[dim] != data.shape[dim]:
            data = call.state.freeze_dim(data, dim, "slides over this dimension", call.node)
    # Heads within the batch leave rather than the channels of each, over which kernels are shared.
    blocks = tuple(call.state.attended(block, range(channel_dim)) for block in data.blocks)
    return Value(data.shape, tuple(block for block in blocks if len(block.dims) == 1), data.tensor)


_CONVOLUTIONS = (
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "convolution",
)

RULES: dict[str, Rule] = dict.fromkeys(_CONVOLUTIONS, convolution)
