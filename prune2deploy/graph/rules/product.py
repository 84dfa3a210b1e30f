"""Products of matrices and vectors: linear layers, ``matmul`` and its kin."""

import math

from prune2deploy.graph.labelling import Labelling
from prune2deploy.graph.labels import Block, Labels, Value
from prune2deploy.graph.rules.call import Call, Result, Rule
from prune2deploy.graph.rules.contraction import NOT_PRUNABLE, contract, mark, not_followed, widths_of


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
    fixed, widths = widths_of(weight, 0, 1)
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


def _mark_matrix(state: Labelling, weight: Value, *, is_second: bool) -> None:
    rank = len(weight.shape)
    inner, outer = (rank - 2, rank - 1) if is_second else (rank - 1, rank - 2)
    mark(state, weight.labels_of(outer), weight.labels_of(inner))


RULES: dict[str, Rule] = {
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
