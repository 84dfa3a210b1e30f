"""Operators that join or take parts: concatenation, split, slice, select, padding."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from prune2deploy.graph.labels import Block, Labels, Value
from prune2deploy.graph.rules.call import Call, Result, Rule


def concatenate(call: Call) -> Result:
    """Along the joined dimension labels follow each other; along all others the parts leave together."""
    state, node = call.state, call.node
    parts: Sequence[Value] = call.arguments["tensors"]
    parts = [part for part in parts if part.shape != (0,)]
    dim = int(call.arguments.get("dim", 0)) % len(call.shape)
    return _joined(call, parts, dim, node, state)


def stack(call: Call) -> Result:
    """A new dimension, along which the parts are fixed."""
    parts: Sequence[Value] = call.arguments["tensors"]
    dim = int(call.arguments.get("dim", 0)) % len(call.shape)
    lifted = []
    for part in parts:
        shape = (*part.shape[:dim], 1, *part.shape[dim:])
        blocks = tuple(block.moved([d if d < dim else d + 1 for d in block.dims]) for block in part.blocks)
        lifted.append(Value(shape, blocks))
    return _joined(call, lifted, dim, call.node, call.state)


def _joined(call: Call, parts: Sequence[Value], dim: int, node: Any, state: Any) -> Result:
    single = [_single(call, part) for part in parts]
    blocks = []
    if any(part.labels_of(dim) is not None for part in single):
        pieces = [
            labels if (labels := part.labels_of(dim)) is not None else np.zeros(part.shape[dim], dtype=np.int64)
            for part in single
        ]
        blocks.append(Block.of(dim, np.concatenate(pieces)))
    for other in range(len(call.shape)):
        if other == dim:
            continue
        present = [found for part in single if (found := part.labels_of(other)) is not None]
        if not present:
            continue
        if len(present) < len(single):
            for found in present:
                state.freeze(found, "is joined with data of fixed size", node)
            continue
        for found in present[1:]:
            state.unite(present[0], found)
        blocks.append(Block.of(other, present[0]))
    return call.result(blocks)


def _single(call: Call, value: Value) -> Value:
    """The value with one-axis blocks only; a joint block that is still undecided is left out (first pass)."""
    blocks = (call.state.one_axis(block) for block in value.blocks)
    return Value(value.shape, tuple(block for block in blocks if len(block.dims) == 1), value.tensor)


def split(call: Call) -> Result:
    """``split``, ``chunk``, ``tensor_split``: pieces of hard-coded sizes.

    A module that is sliced splits again by the sizes in its code. So what stands at the same place in each piece
    leaves together, and the pieces stay equal; pieces of unequal sizes are frozen (docs/decisions/0003). Where the
    sizes will be rewritten, each piece may have a width of its own.
    """
    data = call.values[0]
    dim = int(call.arguments.get("dim", 0)) % len(data.shape)
    sizes = [shape[dim] for shape in call.shapes]
    block = data.block_of(dim)
    if block is not None and len(block.dims) == 1:
        pieces = np.split(block.labels, np.cumsum(sizes)[:-1])
        if call.state.sizes_are_free:
            call.state.pieces.extend(pieces)
        elif call.name == "chunk" and len(set(sizes)) == 1:
            for piece in pieces[1:]:
                call.state.unite(pieces[0], piece)
        else:
            data = call.state.freeze_dim(data, dim, "is split by sizes written in the code", call.node)
    starts = [0, *np.cumsum(sizes)[:-1]]
    return tuple(
        _taken(call, data, dim, slice(start, start + size), shape)
        for start, size, shape in zip(starts, sizes, call.shapes, strict=True)
    )


def gated_linear_unit(call: Call) -> Result:
    """One half of a dimension times the sigmoid of the other: what stands at the same place in both leaves together."""
    data = call.tensor("self")
    dim = int(call.arguments.get("dim", -1)) % len(data.shape)
    labels = data.labels_of(dim)
    if labels is None:
        data = call.state.freeze_dim(data, dim, "is split by sizes written in the code", call.node)
    else:
        halves = labels.reshape(2, -1)
        call.state.unite(halves[0], halves[1])
    return _taken(call, data, dim, slice(call.shape[dim]), call.shape)


def slice_(call: Call) -> Result:
    """A slice of a dimension. Whole slices change nothing; the bounds of parts are written in the code, and freeze it.

    Where bounds will be rewritten, a part without steps takes its labels and may have a width of its own.
    """
    data = call.tensor("self")
    dim = int(call.arguments.get("dim", 0)) % len(data.shape)
    if call.shape[dim] == data.shape[dim]:
        return call.result(data.blocks)
    labels, start = data.labels_of(dim), _start(call, data.shape[dim])
    if call.state.sizes_are_free and labels is not None and start is not None:
        taken = slice(start, start + call.shape[dim])
        call.state.pieces.append(labels[taken])
        return _taken(call, data, dim, taken, call.shape)
    data = call.state.freeze_dim(data, dim, "is sliced by bounds written in the code", call.node)
    return call.result([block for block in data.blocks if dim not in block.dims])


def _start(call: Call, size: int) -> int | None:
    """Where a slice without steps and with written bounds starts."""
    start = call.arguments.get("start") or 0
    if int(call.arguments.get("step") or 1) != 1 or not isinstance(start, int):
        return None
    return max(start + size, 0) if start < 0 else min(start, size)


def select(call: Call) -> Result:
    """One index of a dimension: the dimension goes, the labels of a joint block at that index stay.

    The index is written in the code. Where it will be rewritten, only the channel that it names must stay.
    """
    data = call.tensor("self")
    dim = int(call.arguments["dim"]) % len(data.shape)
    index = int(call.arguments["index"]) % data.shape[dim]
    reason = "is selected by an index written in the code"
    labels = data.labels_of(dim)
    if call.state.sizes_are_free and labels is not None:  # the others may leave: the index will be rewritten
        call.state.freeze(labels[index : index + 1], reason, call.node)
    else:
        data = _fixed_alone(call, data, dim, reason)
    return _at(call, data, dim, index, call.shape)


def unbind(call: Call) -> Result:
    """All indices of a dimension, one by one."""
    data = call.values[0]
    dim = int(call.arguments.get("dim", 0)) % len(data.shape)
    data = _fixed_alone(call, data, dim, "is unbound index by index")
    return tuple(_at(call, data, dim, index, shape) for index, shape in enumerate(call.shapes))


def _fixed_alone(call: Call, data: Value, dim: int, reason: str) -> Value:
    block = data.block_of(dim)
    return call.state.freeze_dim(data, dim, reason, call.node) if block is not None and len(block.dims) == 1 else data


def _at(call: Call, data: Value, dim: int, index: int, shape: tuple[int, ...]) -> Value:
    blocks = []
    for block in data.blocks:
        labels, dims, keys = block.labels, block.dims, block.keys
        if dim in dims:
            call.state.vote_against(block, dim)
            axis = block.along(dim)
            labels = np.asarray(labels.take(index, axis=axis))
            dims, keys = dims[:axis] + dims[axis + 1 :], keys[:axis] + keys[axis + 1 :]
        blocks.append(Block(tuple(d if d < dim else d - 1 for d in dims), labels, keys))
    return call.state.value(shape, blocks, call.node)


def _taken(call: Call, data: Value, dim: int, positions: Any, shape: tuple[int, ...]) -> Value:
    blocks = []
    for block in data.blocks:
        labels: Labels = block.labels
        if dim in block.dims:
            call.state.vote_against(block, dim)
            axis = block.along(dim)
            index: list[Any] = [slice(None)] * labels.ndim
            index[axis] = positions
            labels = labels[tuple(index)]
        blocks.append(Block(block.dims, labels, block.keys))
    return call.state.value(shape, blocks, call.node)


def pad(call: Call) -> Result:
    """Padding of unlabelled dimensions; where channels are padded, the number is written in the code.

    Where that number will be rewritten, what is added to the channels gets labels of its own.
    """
    data = call.values[0]
    added = _padding(call, len(data.shape))
    padded: list[Block] = []
    for dim in range(len(data.shape)):
        if call.shape[dim] == data.shape[dim]:
            continue
        labels = data.labels_of(dim)
        if labels is None or not call.state.sizes_are_free or added is None or min(added[dim]) < 0:
            data = call.state.freeze_dim(data, dim, "is padded by a number written in the code", call.node)
            continue
        before, after = (call.state.new_labels(count) for count in added[dim])
        padded.append(Block.of(dim, np.concatenate([before, labels, after])))
    changed = {block.dims for block in padded}
    return call.result([*(block for block in data.blocks if block.dims not in changed), *padded])


def _padding(call: Call, rank: int) -> list[tuple[int, int]] | None:
    """What is added before and after each dimension, where it is written as constants of zero."""
    widths = call.arguments["pad"]
    value = call.arguments.get("value")
    constant = call.arguments.get("mode", "constant") == "constant" and (value is None or value == 0)
    if not constant or not all(isinstance(width, int) for width in widths):
        return None
    pairs = [(widths[place], widths[place + 1]) for place in range(0, len(widths), 2)]
    return [*[(0, 0)] * (rank - len(pairs)), *reversed(pairs)]


RULES: dict[str, Rule] = {
    "cat": concatenate,
    "concat": concatenate,
    "stack": stack,
    **dict.fromkeys(("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_chunk", "unsafe_split"), split),
    "glu": gated_linear_unit,
    "slice": slice_,
    "narrow": slice_,
    "select": select,
    "unbind": unbind,
    "pad": pad,
    "constant_pad_nd": pad,
}
