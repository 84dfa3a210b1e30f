"""Element-wise operators: operands are aligned by broadcasting, and what stands at one position leaves together."""

import numpy as np
import torch

from prune2deploy.graph.labels import AxisKey, Block, Labels, Value
from prune2deploy.graph.rules.call import Call, Result, Rule

_ADDITIONS = frozenset({"add", "sub", "rsub", "add_relu"})


def is_elementwise(call: Call) -> bool:
    """Whether PyTorch itself tags the operator as pointwise."""
    target = call.node.target
    return isinstance(target, torch._ops.OpOverload) and torch.Tag.pointwise in target.tags


def elementwise(call: Call) -> Result:
    """Unite the operands' labels position by position.

    An operand that has a size but no labels along a dimension is constant data there, and freezes that dimension.
    """
    state, shape = call.state, call.shape
    operands = [_aligned(value, len(shape)) for value in call.values]
    activations = sum(value.tensor is None and bool(value.blocks) for value in call.values)
    blocks = []
    for dims in _clusters(operands):
        if len(dims) > 1:
            operands = [_prepared(call, operand, dims) for operand in operands]
    for dims in _clusters(operands):
        block = _united(call, operands, dims)
        if block is None:
            continue
        blocks.append(block)
        if call.name in _ADDITIONS and activations > 1:
            state.streams.append(block.labels.ravel())
    return call.result(blocks)


def passes_through(call: Call) -> Result:
    """The first tensor, unchanged in shape and labels (dropout, contiguous, type changes)."""
    return call.result(call.values[0].blocks)


def parametric_relu(call: Call) -> Result:
    """A slope for all, or one for each index of dimension 1, which leaves with it."""
    data, slope = call.tensor("self"), call.tensor("weight")
    if slope.shape and slope.shape[0] > 1:
        if data.labels_of(1) is None:
            data = call.state.freeze_dim(data, 1, "is scaled as a joint dimension", call.node)
        call.ride(slope, data.labels_of(1))
    return call.result(data.blocks)


def takes_size(call: Call) -> Result:
    """A constant of the size of a tensor: what leaves the tensor leaves the constant."""
    return call.result(call.values[0].blocks)


def makes_constant(call: Call) -> Result:
    """One number everywhere, in a size written in the code: each index has labels of its own."""
    return call.result(call.fresh(range(len(call.shape))))


def makes_data(call: Call) -> Result:
    """Fresh data of fixed size. Nothing is read of its arguments but numbers and types."""
    return call.unlabelled()


def _aligned(value: Value, rank: int) -> Value:
    """The operand with leading dimensions of size 1, as broadcasting adds them."""
    offset = rank - len(value.shape)
    if offset <= 0:
        return value
    blocks = tuple(Block(tuple(dim + offset for dim in block.dims), block.labels, block.keys) for block in value.blocks)
    return Value((1,) * offset + value.shape, blocks, value.tensor)


def _clusters(operands: list[Value]) -> list[tuple[int, ...]]:
    """Sets of dimensions that some operand's block ties together, sorted, disjoint."""
    clusters: list[set[int]] = []
    for operand in operands:
        for block in operand.blocks:
            touching = [cluster for cluster in clusters if cluster & set(block.dims)]
            clusters = [cluster for cluster in clusters if cluster not in touching]
            clusters.append(set(block.dims).union(*touching))
    return sorted(tuple(sorted(cluster)) for cluster in clusters)


def _prepared(call: Call, operand: Value, dims: tuple[int, ...]) -> Value:
    """Resolve what a joint cluster cannot hold: of an operand with two blocks in it neither stays.

    Labels that belong to no tensor (of repeated or constant data) give way to those that do.
    """
    inside = [block for block in operand.blocks if set(block.dims) & set(dims)]
    if len(inside) <= 1:
        return operand
    own = [block for block in inside if call.state.is_of_tensors(block)]
    inside = [block for block in inside if len(own) != 1 or block is not own[0]]
    for block in inside:
        call.state.freeze(block.labels, "two prunable dimensions meet one that joins them", call.node)
    return Value(operand.shape, tuple(block for block in operand.blocks if block not in inside), operand.tensor)


def _united(call: Call, operands: list[Value], dims: tuple[int, ...]) -> Block | None:
    state = call.state
    joint: Labels | None = None
    keys: tuple[AxisKey | None, ...] = ()
    for operand in operands:
        block = next((block for block in operand.blocks if set(block.dims) <= set(dims)), None)
        if block is None:
            continue
        labels = _spread(block, dims)
        if joint is None:
            joint, keys = labels, _keys(block, dims)
        else:
            state.unite(joint, labels)
            joint = np.where(joint != 0, joint, labels) if joint.shape == labels.shape else joint + 0 * labels
    if joint is None:
        return None
    sizes = tuple(call.shape[dim] for dim in dims)
    result = Block(dims, np.broadcast_to(joint, sizes), keys)
    holder = Value(call.shape, (result,))
    for operand in operands:
        covered = {dim for block in operand.blocks for dim in block.dims}
        for dim in dims:
            if dim not in covered and operand.shape and operand.shape[dim] > 1 and holder.block_of(dim) is not None:
                holder = state.freeze_dim(holder, dim, "meets data of fixed size, element by element", call.node)
    return holder.blocks[0] if holder.blocks else None


def _spread(block: Block, dims: tuple[int, ...]) -> Labels:
    """The block's labels with an axis of size 1 for each of ``dims`` that it does not cover."""
    shape = [block.labels.shape[block.along(dim)] if dim in block.dims else 1 for dim in dims]
    return block.labels.reshape(shape)


def _keys(block: Block, dims: tuple[int, ...]) -> tuple[AxisKey | None, ...]:
    return tuple(block.keys[block.along(dim)] if dim in block.dims else None for dim in dims)


_PASS_THROUGH = (
    "dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "native_dropout", "contiguous", "clone",
    "alias", "detach", "to", "_to_copy", "type_as", "lift_fresh_copy", "lift_fresh", "hardswish", "log_sigmoid",
    "float", "half", "double", "bfloat16", "view_as_real", "real", "imag", "conj", "resolve_conj", "resolve_neg",
)  # fmt: skip
_BY_POSITION = ("masked_fill", "where", "rsub", "complex", "polar")
_CONSTANTS = ("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty")
_OF_A_SIZE = ("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "bernoulli")
_DATA = ("arange", "linspace", "scalar_tensor", "eye", "rand", "randn")

RULES: dict[str, Rule] = {
    **dict.fromkeys(_PASS_THROUGH, passes_through),
    **dict.fromkeys(_BY_POSITION, elementwise),
    **dict.fromkeys(_CONSTANTS, makes_constant),
    **dict.fromkeys(_OF_A_SIZE, takes_size),
    **dict.fromkeys(_DATA, makes_data),
    "copy": elementwise,
    "prelu": parametric_relu,
    "fill": passes_through,
    "zero": passes_through,
}
