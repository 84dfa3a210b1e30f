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
    data = call.values[0]
    if "dtype" in call.arguments:
        return _as_type(call, data)
    segments = _segments(data.shape, call.shape)
    blocks: list[Block] = []
    for block in _apart(call, data, segments):
        touched = [(inputs, outputs) for inputs, outputs in segments if set(inputs) & set(block.dims)]
        inputs = [dim for segment, _ in touched for dim in segment]
        if math.prod(data.shape[dim] for dim in inputs) > MAXIMUM_LABELS_OF_A_VALUE:
            call.state.freeze(block.labels, "a reshape merges it into a very large dimension", call.node)
            continue
        outputs = [dim for _, segment in touched for dim in segment]
        keys = tuple(key for segment in touched for key in _keys(call, block, *segment))
        moved = _spread(block, inputs, data.shape).reshape([call.shape[dim] for dim in outputs])
        blocks.append(Block(tuple(outputs), moved, keys))
    value = call.result(blocks)
    return Value(value.shape, tuple(call.state.one_axis(block) for block in value.blocks), value.tensor)


def reshape_as(call: Call) -> Result:
    """As ``reshape``, to the size of another tensor: where that loses some, so must the result."""
    result = reshape(call)
    assert isinstance(result, Value)
    return _sized_as(call, result)


def _sized_as(call: Call, result: Value) -> Result:
    """The result with its labels united with those of the tensor whose size it takes."""
    other = call.tensor("other")
    for dim in range(len(call.shape)):
        labels = other.labels_of(dim)
        if labels is not None and (own := result.labels_of(dim)) is not None:
            call.state.unite(own, labels)
        elif labels is not None:
            call.state.freeze(labels, "gives its size to data of fixed size", call.node)
        elif other.block_of(dim) is None:
            result = call.state.freeze_dim(result, dim, "takes a fixed size", call.node)
    return result


def _as_type(call: Call, data: Value) -> Result:
    """The same memory read as another type, of which more or fewer may fill the last dimension."""
    if call.shape != data.shape:
        data = call.state.freeze_dim(data, len(data.shape) - 1, "is read as a type of another size", call.node)
    return call.result(data.blocks)


def _apart(call: Call, data: Value, segments: Sequence[tuple[list[int], list[int]]]) -> list[Block]:
    """The blocks that have the segments they touch to themselves; where several meet in one, all but one freeze.

    The longest stays, and labels of tensors before those of repeated or constant data.
    """
    meeting: set[int] = set()
    for inputs, _ in segments:
        inside = [number for number, block in enumerate(data.blocks) if set(block.dims) & set(inputs)]
        if len(inside) > 1:
            stays = max(inside, key=lambda number: _weight(call, data.blocks[number]))
            meeting.update(number for number in inside if number != stays)
    for number in meeting:
        call.state.freeze(data.blocks[number].labels, "a reshape merges two prunable dimensions", call.node)
    return [block for number, block in enumerate(data.blocks) if number not in meeting]


def _weight(call: Call, block: Block) -> tuple[bool, int]:
    return call.state.is_of_tensors(block), block.labels.size


def _keys(call: Call, block: Block, inputs: list[int], outputs: list[int]) -> list[AxisKey | None]:
    """Names of the new axes of one segment. What only changes its place keeps its name."""
    covered = [block.keys[block.along(dim)] for dim in inputs if dim in block.dims]
    if len(inputs) == len(outputs) == 1:
        return covered
    keys = [AxisKey(call.node.name, dim) for dim in outputs]
    if len(covered) == 1 and covered[0] is not None:
        call.state.parents.update(dict.fromkeys(keys, covered[0]))
    return list(keys)


def _spread(block: Block, dims: Sequence[int], shape: Sequence[int]) -> Labels:
    """The block's labels over all of ``dims``, repeated along those that it does not cover."""
    own = [shape[dim] if dim in block.dims else 1 for dim in dims]
    return np.broadcast_to(block.labels.reshape(own), [shape[dim] for dim in dims])


def _segments(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Smallest runs of dimensions with equal products.

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


def movedim(call: Call) -> Result:
    """Some dimensions go to other places; the rest keep their order."""
    rank = len(call.shape)
    source, destination = (
        [int(dim) % rank for dim in (given if isinstance(given, list | tuple) else [given])]
        for given in (call.arguments["source"], call.arguments["destination"])
    )
    order = [dim for dim in range(rank) if dim not in source]
    for place, dim in sorted(zip(destination, source, strict=True)):
        order.insert(place, dim)
    return _permuted(call, order)


def _permuted(call: Call, order: Sequence[int]) -> Result:
    data = call.values[0]
    return call.result([block.moved([order.index(dim) for dim in block.dims]) for block in data.blocks])


def expand(call: Call) -> Result:
    """New leading dimensions, and dimensions of size 1 repeated.

    A repeated index has labels of its own: fewer repetitions do where whatever it meets loses some.
    """
    data = call.values[0]
    offset = len(call.shape) - len(data.shape)
    blocks = [Block(tuple(dim + offset for dim in block.dims), block.labels, block.keys) for block in data.blocks]
    before = (1,) * offset + data.shape
    return call.result([*blocks, *call.fresh(dim for dim, size in enumerate(before) if size == 1)])


def expand_as(call: Call) -> Result:
    """As ``expand``, to the size of another tensor, with which the repetitions leave."""
    result = expand(call)
    assert isinstance(result, Value)
    return _sized_as(call, result)


def repeat(call: Call) -> Result:
    """Tiles: labels repeat along a labelled dimension."""
    data = call.values[0]
    offset = len(call.shape) - len(data.shape)
    blocks = []
    for block in data.blocks:
        times = [call.shape[dim + offset] // data.shape[dim] for dim in block.dims]
        blocks.append(Block(tuple(dim + offset for dim in block.dims), np.tile(block.labels, times), block.keys))
    before = (1,) * offset + data.shape
    return call.result([*blocks, *call.fresh(dim for dim, size in enumerate(before) if size == 1)])


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
    repeated = [int(dim) % len(data.shape)]
    return call.result([*blocks, *call.fresh(dim for dim in repeated if data.shape[dim] == 1)])


RULES: dict[str, Rule] = {
    **dict.fromkeys(
        ("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "_unsafe_view"),
        reshape,
    ),
    "view_as": reshape_as,
    "reshape_as": reshape_as,
    "movedim": movedim,
    "moveaxis": movedim,
    "permute": permute,
    "transpose": transpose,
    "swapaxes": transpose,
    "t": transpose_matrix,
    "mT": transpose_matrix,
    "numpy_T": transpose_matrix,
    "adjoint": transpose_matrix,
    "mH": transpose_matrix,
    "matrix_H": transpose_matrix,
    "expand": expand,
    "expand_as": expand_as,
    "broadcast_to": expand,
    "repeat": repeat,
    "tile": repeat,
    "repeat_interleave": repeat_interleave,
}
