"""Operators that sum products over a dimension: convolutions, linear layers, matrix products.

They read the channels of the dimension that is summed, produce those of a weight's output dimension, and are the
only operators whose FLOPs count.
"""

import math

import numpy as np

from prune2deploy.graph.labelling import ChannelNorm, Labelling
from prune2deploy.graph.labels import Block, Labels, Value
from prune2deploy.graph.rules.call import Call, Result, Rule

NOT_PRUNABLE = "reads a dimension that nothing prunable produces"


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
    fixed, widths = _widths(weight, output_dim, input_dim)
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
        if incoming is None:
            state.freeze(produced, NOT_PRUNABLE, node)
        else:
            state.unite(incoming.reshape(groups, inputs), incoming.reshape(groups, inputs)[:, :1])
            state.unite(produced.reshape(groups, outputs), incoming.reshape(groups, inputs)[:, :1])
        if consumed is not None:
            state.freeze(consumed, "the inputs of one convolution group stay together", node)
        if incoming is None:
            return produced
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


def linear(call: Call) -> Result:
    """``x @ weight.T + bias``: reads the last dimension."""
    data, weight = call.tensor("input"), call.tensor("weight")
    if len(weight.shape) != 2:
        return call.freeze_all("is multiplied as a vector")
    last = len(data.shape) - 1
    produced, consumed = weight.labels_of(0), weight.labels_of(1)
    mark(call.state, produced, consumed)
    data = contract(call, data, last, consumed, argument="input")
    call.ride(call.optional_tensor("bias"), produced)
    rows = [data.labels_of(dim) for dim in range(last)]
    unlabelled = math.prod(size for size, labels in zip(data.shape[:last], rows, strict=True) if labels is None)
    fixed, widths = _widths(weight, 0, 1)
    call.state.count(call.node, 2 * unlabelled * fixed, [*rows, *widths], produced=produced)
    blocks = [block for block in data.blocks if last not in block.dims]
    if produced is not None:
        blocks.append(Block.of(last, produced))
    return call.result(blocks)


def matmul(call: Call) -> Result:
    """``matmul``, ``mm`` and ``bmm``: sums over the last dimension of the first and the last but one of the second.

    A vector is a matrix of one row or one column, which the result lacks.
    """
    first_name, second_name = list(call.arguments)[:2]
    first, second = call.tensor(first_name), call.tensor(second_name)
    if len(first.shape) > 1 and len(second.shape) > 1:
        return _product(call, first, second, None)
    return _vector_product(call, first, second)


def _vector_product(call: Call, first: Value, second: Value) -> Result:
    """Vectors sum as matrices do, but are not counted: FLOPs are those of matrix products and convolutions."""
    state = call.state
    inner_first, inner_second = len(first.shape) - 1, max(len(second.shape) - 2, 0)
    first, second = (_decided(state, value) for value in (first, second))
    left, right = first.labels_of(inner_first), second.labels_of(inner_second)
    for value, is_second in ((first, False), (second, True)):
        if value.tensor is not None and len(value.shape) > 1:
            _mark_matrix(state, value, is_second=is_second)
    if left is not None and right is not None:
        state.unite(left, right)
        state.read(call.node, 0, inner_first, left)
    else:
        first = state.freeze_dim(first, inner_first, NOT_PRUNABLE, call.node)
        second = state.freeze_dim(second, inner_second, NOT_PRUNABLE, call.node)
    matrix, inner = (first, inner_first) if len(first.shape) > 1 else (second, inner_second)
    if len(matrix.shape) == 1:
        return call.result([])
    kept = [block for block in matrix.blocks if inner not in block.dims]
    return call.result([block.moved([dim - (dim > inner) for dim in block.dims]) for block in kept])


def outer(call: Call) -> Result:
    """All products of two vectors' elements."""
    first, second = (value.labels_of(0) for value in call.values)
    return call.result([Block.of(dim, one) for dim, one in enumerate((first, second)) if one is not None])


def _decided(state: Labelling, value: Value) -> Value:
    """The value with one-axis blocks only; the first pass leaves out what is undecided."""
    blocks = (state.one_axis(block) for block in value.blocks)
    return Value(value.shape, tuple(block for block in blocks if len(block.dims) == 1), value.tensor)


def addmm(call: Call) -> Result:
    """``addmm`` and ``baddbmm``: a matrix product added to a matrix or a row."""
    names = list(call.arguments)
    return _product(call, call.tensor(names[1]), call.tensor(names[2]), call.tensor(names[0]))


def _product(call: Call, first: Value, second: Value, added: Value | None) -> Result:
    state, node, rank = call.state, call.node, len(call.shape)
    if len(first.shape) < 2 or len(second.shape) < 2:
        return call.freeze_all("is multiplied as a vector")
    names = list(call.arguments)
    offset = 1 if added is not None else 0
    for value in (first, second):
        if value.tensor is not None:
            _mark_matrix(state, value, is_second=value is second)
    inner_first, inner_second = len(first.shape) - 1, len(second.shape) - 2
    first, second = (_voted_batch(call, value) for value in (first, second))
    left, right = first.labels_of(inner_first), second.labels_of(inner_second)
    if left is not None and right is not None:
        state.unite(left, right)
        state.read(node, call.position(names[offset]), inner_first, left)
    else:
        first = state.freeze_dim(first, inner_first, NOT_PRUNABLE, node)
        second = state.freeze_dim(second, inner_second, NOT_PRUNABLE, node)

    blocks: list[Block] = []
    first_batch = _batch_blocks(first, inner_first - 1, rank)
    second_batch = _batch_blocks(second, inner_second, rank)
    widths: list[Labels | None] = [left if right is not None else None]
    for dim in range(rank - 2):
        one, other = first_batch.get(dim), second_batch.get(dim)
        if one is not None and other is not None:
            state.unite(one, other)
        elif one is not None and _size(second, dim, rank) > 1:
            state.freeze(one, "meets data of fixed size, element by element", node)
            one = None
        elif other is not None and _size(first, dim, rank) > 1:
            state.freeze(other, "meets data of fixed size, element by element", node)
            other = None
        labels = one if one is not None else other
        widths.append(labels)
        if labels is not None:
            blocks.append(Block.of(dim, labels))
    rows, columns = first.labels_of(inner_first - 1), second.labels_of(inner_second + 1)
    shared = (dim for dim in first_batch if rank > 3 and _size(second, dim, rank) == 1)
    if columns is not None and second.tensor is None and any(shared):
        state.freeze(columns, "is shared by all heads, which leave instead", node)
        columns = None
    for labels, dim in ((rows, rank - 2), (columns, rank - 1)):
        widths.append(labels)
        if labels is not None:
            blocks.append(Block.of(dim, labels))
    if added is not None:
        blocks = _with_bias(call, blocks, added)
    sizes = [first.shape[inner_first], *call.shape]
    unlabelled = math.prod(size for size, labels in zip(sizes, widths, strict=True) if labels is None)
    made = rows if first.tensor is not None else columns if second.tensor is not None else None
    state.count(node, 2 * unlabelled, widths, produced=made)
    return call.result(blocks)


def _voted_batch(call: Call, value: Value) -> Value:
    """Vote for the batch dimensions of a product (attention heads) where a joint block covers one."""
    state, blocks = call.state, []
    for block in value.blocks:
        block = state.attended(block, range(len(value.shape) - 2))
        if len(block.dims) == 1:  # the first pass only votes
            blocks.append(block)
    return Value(value.shape, tuple(blocks), value.tensor)


def _batch_blocks(value: Value, batch_rank: int, rank: int) -> dict[int, Labels]:
    offset = rank - len(value.shape)
    found = {}
    for dim in range(batch_rank):
        labels = value.labels_of(dim)
        if labels is not None:
            found[dim + offset] = labels
    return found


def _size(value: Value, dim: int, rank: int) -> int:
    own = dim - (rank - len(value.shape))
    return value.shape[own] if own >= 0 else 1


def _with_bias(call: Call, blocks: list[Block], bias: Value) -> list[Block]:
    rank = len(call.shape)
    offset = rank - len(bias.shape)
    kept = []
    for block in blocks:
        own = block.dims[0] - offset
        labels = bias.labels_of(own) if own >= 0 else None
        if labels is not None:
            call.state.unite(block.labels, labels)
        elif own >= 0 and bias.shape[own] > 1:
            call.state.freeze(block.labels, "meets data of fixed size, element by element", call.node)
            continue
        kept.append(block)
    for block in bias.blocks:
        if not any(block.dims[0] + offset in other.dims for other in blocks):
            call.state.freeze(block.labels, NOT_PRUNABLE, call.node)
    return kept


def _without_spatial_blocks(call: Call, data: Value, weight: Value, channel_dim: int) -> Value:
    """One-axis blocks only. A kernel of one position keeps those of a spatial dimension, a longer one freezes it."""
    steps = any(step != 1 for step in call.arguments.get("stride") or ())
    for dim in range(channel_dim + 1, len(data.shape)):
        if steps or weight.shape[dim - channel_dim + 1] > 1 or call.shape[dim] != data.shape[dim]:
            data = call.state.freeze_dim(data, dim, "slides over this dimension", call.node)
    # Heads within the batch leave rather than the channels of each, over which kernels are shared.
    blocks = tuple(call.state.attended(block, range(channel_dim)) for block in data.blocks)
    return Value(data.shape, tuple(block for block in blocks if len(block.dims) == 1), data.tensor)


def contract(call: Call, data: Value, dim: int, consumed: Labels | None, *, argument: str) -> Value:
    """Unite the data's labels along ``dim`` with the weight's input labels, and note who reads them."""
    state = call.state
    block = data.block_of(dim)
    if block is not None and len(block.dims) > 1:
        block = state.one_axis(block)
        blocks = tuple(other if dim not in other.dims else block for other in data.blocks)
        data = Value(data.shape, blocks, data.tensor)
    labels = data.labels_of(dim)
    if labels is not None and consumed is not None:
        state.unite(labels, consumed)
        state.read(call.node, call.position(argument), dim, labels)
    else:
        if consumed is not None:
            state.freeze(consumed, NOT_PRUNABLE, call.node)
        data = state.freeze_dim(data, dim, "is read by a weight of fixed size", call.node)
    return data


def mark(state: Labelling, produced: Labels | None, consumed: Labels | None) -> None:
    """Note the labels of a weight's output dimension and of its input dimension."""
    if produced is not None:
        state.producers.append(produced)
    if consumed is not None:
        state.consumers.append(consumed)


def _mark_matrix(state: Labelling, weight: Value, *, is_second: bool) -> None:
    rank = len(weight.shape)
    inner, outer = (rank - 2, rank - 1) if is_second else (rank - 1, rank - 2)
    mark(state, weight.labels_of(outer), weight.labels_of(inner))


def _widths(weight: Value, *dims: int) -> tuple[int, list[Labels | None]]:
    """The product of the weight's sizes without labels along ``dims``, and the labels of the others."""
    labels = [weight.labels_of(dim) for dim in dims]
    fixed = math.prod(weight.shape[dim] for dim, found in zip(dims, labels, strict=True) if found is None)
    return fixed, labels


def not_followed(what: str) -> Rule:
    """A rule that freezes everything that meets ``what``."""

    def rule(call: Call) -> Result:
        return call.freeze_all(f"passes through {what}, which is not followed")

    return rule


_CONVOLUTIONS = (
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "convolution",
)

RULES: dict[str, Rule] = {
    **dict.fromkeys(_CONVOLUTIONS, convolution),
    "linear": linear,
    "matmul": matmul,
    "mm": matmul,
    "bmm": matmul,
    "mv": matmul,
    "dot": matmul,
    "vdot": matmul,
    "outer": outer,
    "addmm": addmm,
    "baddbmm": addmm,
    "bilinear": not_followed("a bilinear layer"),
}
