"""Operators that rearrange dimensions: reshape and its kin, permute, squeeze, expand."""

import math
from collections.abc import Sequence

import numpy as np

from prune2deploy.graph.labelling import MAXIMUM_LABELS_OF_A_VALUE
from prune2deploy.graph.labels import AxisKey, Block, Labels, Value
from prune2deploy.graph.rules.call import Call, Result, Rule


def reshape(call: Call) -> Result:
    """``view`` and everything that only splits and merges neighbouring dimensions.

    Input and output shapes fall apart into segments of equal products. Where a segment merges a labelled dimension
    with others, each label repeats for every position; where it splits one, the labels become a joint block, of which
    only one axis can be cut.
    """
    data, shape = call.values[0], call.shape
    pairs = _segments(data.shape, shape, data.blocks)
    blocks: list[Block] = []
    for inputs, outputs in pairs:
        inside = [block for block in data.blocks if set(block.dims) <= set(inputs)]
        if not inside:
            continue
        if len(inside) > 1:
            for block in inside:
                call.state.freeze(block.labels, "a reshape merges two prunable dimensions", call.node)
            continue
        block = inside[0]
        if len(inputs) == len(outputs) == len(block.dims) == 1:
            blocks.append(Block((outputs[0],), block.labels, block.keys))
            continue
        if math.prod(data.shape[dim] for dim in inputs) > MAXIMUM_LABELS_OF_A_VALUE:
            call.state.freeze(block.labels, "a reshape merges it into a very large dimension", call.node)
            continue
        moved = _spread(block, inputs, data.shape).reshape([shape[dim] for dim in outputs])
        keys = tuple(AxisKey(call.node.name, dim) for dim in outputs)
        blocks.append(Block(tuple(outputs), moved, keys))
    value = call.result(blocks)
    return _collapsed(call, value)


def _collapsed(call: Call, value: Value) -> Value:
    return Value(value.shape, tuple(call.state.one_axis(block) for block in value.blocks), value.tensor)


def _spread(block: Block, dims: Sequence[int], shape: Sequence[int]) -> Labels:
    """The block's labels over all of ``dims``, repeated along those that it does not cover."""
    own = [shape[dim] if dim in block.dims else 1 for dim in dims]
    return np.broadcast_to(block.labels.reshape(own), [shape[dim] for dim in dims])


def _segments(
    before: Sequence[int], after: Sequence[int], blocks: Sequence[Block]
) -> list[tuple[list[int], list[int]]]:
    """Smallest runs of dimensions with equal products, runs that a joint block ties together merged into one.

    Dimensions of size 1 belong to no run: they have no labels.
    """
    sources = [dim for dim, size in enumerate(before) if size != 1]
    targets = [dim for dim, size in enumerate(after) if size != 1]
    pairs: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(sources):
        start, stop = i, j
        left, right = before[sources[i]], after[targets[j]]
        i, j = i + 1, j + 1
        while left != right:
            if left < right:
                left *= before[sources[i]]
                i += 1
            else:
                right *= after[targets[j]]
                j += 1
        pairs.append((sources[start:i], targets[stop:j]))
    for block in blocks:
        touched = [index for index, (inputs, _) in enumerate(pairs) if set(inputs) & set(block.dims)]
        first, last = touched[0], touched[-1]
        if first != last:
            merged = pairs[first : last + 1]
            pairs[first : last + 1] = [
                ([dim for inputs, _ in merged for dim in inputs], [dim for _, outputs in merged for dim in outputs])
            ]
    return pairs


def permute(call: Call) -> Result:
    """Dimensions change places, and their labels with them."""
    order = [int(dim) % len(call.shape) for dim in call.arguments["dims"]]
    return _permuted(call, order)


def transpose(call: Call) -> Result:
    """Two dimensions change places."""
    rank = len(call.shape)
    names = list(call.arguments)
    first, second = (int(call.arguments[name]) % rank for name in names[1:3])
    order = list(range(rank))
    order[first], order[second] = second, first
    return _permuted(call, order)


def transpose_matrix(call: Call) -> Result:
    """``t``, ``mT``, ``adjoint``: the last two dimensions change places."""
    rank = len(call.shape)
    order = list(range(rank))
    if rank >= 2:
        order[-2:] = [rank - 1, rank - 2]
    return _permuted(call, order)


def _permuted(call: Call, order: Sequence[int]) -> Result:
    data = call.values[0]
    return call.result([block.moved([order.index(dim) for dim in block.dims]) for block in data.blocks])


def expand(call: Call) -> Result:
    """New leading dimensions, and dimensions of size 1 repeated: neither has labels."""
    data = call.values[0]
    offset = len(call.shape) - len(data.shape)
    return call.result(
        [Block(tuple(dim + offset for dim in block.dims), block.labels, block.keys) for block in data.blocks]
    )


def repeat(call: Call) -> Result:
    """Tiles: labels repeat along a labelled dimension."""
    data = call.values[0]
    offset = len(call.shape) - len(data.shape)
    blocks = []
    for block in data.blocks:
        times = [call.shape[dim + offset] // data.shape[dim] for dim in block.dims]
        blocks.append(Block(tuple(dim + offset for dim in block.dims), np.tile(block.labels, times), block.keys))
    return call.result(blocks)


def repeat_interleave(call: Call) -> Result:
    """Each index several times in a row: its label with it."""
    data, dim = call.values[0], call.arguments.get("dim")
    if dim is None or not isinstance(call.arguments["repeats"], int):
        return call.freeze_all("is repeated by a table, or flat")
    blocks = []
    for block in data.blocks:
        labels = block.labels
        if int(dim) % len(data.shape) in block.dims:
            labels = np.repeat(labels, call.arguments["repeats"], axis=block.along(int(dim) % len(data.shape)))
        blocks.append(Block(block.dims, labels, block.keys))
    return call.result(blocks)


RULES: dict[str, Rule] = {
    **dict.fromkeys(
        ("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "_unsafe_view", "view_as", "reshape_as"),
        reshape,
    ),
    "permute": permute,
    "transpose": transpose,
    "swapaxes": transpose,
    "t": transpose_matrix,
    "mT": transpose_matrix,
    "numpy_T": transpose_matrix,
    "adjoint": transpose_matrix,
    "expand": expand,
    "expand_as": expand,
    "broadcast_to": expand,
    "repeat": repeat,
    "repeat_interleave": repeat_interleave,
}
