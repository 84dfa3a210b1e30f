"""Reductions: over unlabelled dimensions they change nothing; over channels only a sum stays exact."""

import operator
from collections.abc import Sequence
from typing import Any, Literal

from prune2deploy.graph.labelling import ChannelNorm
from prune2deploy.graph.labels import Block, Value
from prune2deploy.graph.rules.call import Call, Result, Rule
from prune2deploy.graph.rules.elementwise import elementwise


def reduction(call: Call) -> Result:
    """Mean, maximum, variance and the like, over one dimension of channels: inexact, since they cover fewer channels.

    ``max`` and ``min`` of two tensors are element-wise operators of the same name. Where the place of a maximum is
    asked for beside its value, all channels are needed.
    """
    if call.optional_tensor("other") is not None:
        return elementwise(call)
    if (several := call.optional_tensor("q")) is not None and several.shape:
        return call.freeze_all("is reduced to several numbers")
    return _reduced(call, kind="position" if _asks_for_places(call) else "statistic")


def _asks_for_places(call: Call) -> bool:
    """Whether ``max`` and its kin are read for their second result, which numbers the channels."""
    results = call.node.meta["val"]
    if not isinstance(results, list | tuple) or all(one.is_floating_point() for one in results):
        return False
    return any(user.target is not operator.getitem or user.args[1] == 1 for user in call.node.users if user.users)


def position(call: Call) -> Result:
    """The place of a maximum: a labelled dimension that is reduced must keep its size."""
    return _reduced(call, kind="position")


def summation(call: Call) -> Result:
    """A sum, or the length of a vector, reads the channels that it covers; those that leave add nothing.

    A norm of negative order is led by the smallest: there a zero counts.
    """
    order = call.arguments.get("ord", call.arguments.get("p"))
    return _reduced(call, kind="statistic" if isinstance(order, int | float) and order < 0 else "sum")


def cosine_similarity(call: Call) -> Result:
    """The angle of vectors along a dimension, which both sides read."""
    first, second = (_separate(value) for value in call.values)
    rank = len(first.shape)
    if len(second.shape) != rank:
        return call.freeze_all("is compared with data of another rank")
    along = int(call.arguments.get("dim", 1)) % rank
    blocks = []
    for dim in range(rank):
        one, other = first.labels_of(dim), second.labels_of(dim)
        if one is None or other is None:
            if one is not None and (second.shape[dim] > 1 or dim == along):
                call.state.freeze(one, "is compared with data of fixed size", call.node)
                one = None
            if other is not None and (first.shape[dim] > 1 or dim == along):
                call.state.freeze(other, "is compared with data of fixed size", call.node)
                other = None
        else:
            call.state.unite(one, other)
            if dim == along:
                call.state.read(call.node, 0, dim, one)
                call.state.read(call.node, 1, dim, other)
        found = one if one is not None else other
        if found is not None and dim != along:
            blocks.append(Block.of(dim if dim < along else dim - 1, found))
    return call.result(blocks)


def _separate(value: Value) -> Value:
    """The value with one-axis blocks only (others are undecided, in the first pass)."""
    return Value(value.shape, tuple(block for block in value.blocks if len(block.dims) == 1), value.tensor)


def cumulation(call: Call) -> Result:
    """Cumulative operators and sorting work along a dimension, which must keep its size."""
    data = call.values[0]
    rank = len(data.shape)
    dim = int(call.arguments.get("dim", -1)) % max(rank, 1)
    data = call.state.freeze_dim(data, dim, "is accumulated or sorted along this dimension", call.node)
    results = tuple(call.state.value(shape, data.blocks, call.node) for shape in call.shapes)
    return results if isinstance(call.node.meta["val"], list | tuple) else results[0]


def _reduced(call: Call, *, kind: Literal["sum", "statistic", "position"]) -> Result:
    data = call.values[0]
    rank = len(data.shape)
    named = call.arguments.get("dim")
    dims = _dims(named, rank)
    for dim in dims:
        labels = data.labels_of(dim)
        if labels is not None and kind != "position":
            if kind == "sum":
                call.state.read(call.node, 0, dim, labels)
            else:
                call.state.norms.append(ChannelNorm(node=call.node.name, dim=dim, labels=labels))
            blocks = tuple(block for block in data.blocks if dim not in block.dims)
            data = Value(data.shape, blocks, data.tensor)
        else:
            data = call.state.freeze_dim(data, dim, "is reduced over this dimension", call.node)
    kept = [dim for dim in range(rank) if dim not in dims]
    keeps_dim = bool(call.arguments.get("keepdim", False))
    position = {dim: dim if keeps_dim else kept.index(dim) for dim in kept}
    moved = [block.moved([position[dim] for dim in block.dims]) for block in data.blocks]
    results = tuple(call.state.value(shape, moved, call.node) for shape in call.shapes)
    return results if isinstance(call.node.meta["val"], list | tuple) else results[0]


def _dims(named: Any, rank: int) -> Sequence[int]:
    if named is None or (isinstance(named, list | tuple) and not named):
        return range(rank)
    listed = named if isinstance(named, list | tuple) else [named]
    return sorted(int(dim) % max(rank, 1) for dim in listed)


RULES: dict[str, Rule] = {
    **dict.fromkeys(
        (
            "mean", "amax", "amin", "max", "min", "var", "std", "var_mean", "std_mean", "prod", "any", "all",
            "logsumexp", "median", "nanmedian", "nanmean", "aminmax", "quantile", "nanquantile",
        ),
        reduction,
    ),
    **dict.fromkeys(("argmax", "argmin", "mode", "kthvalue"), position),
    **dict.fromkeys(("sum", "nansum", "count_nonzero", "norm", "linalg_vector_norm"), summation),
    "cosine_similarity": cosine_similarity,
    **dict.fromkeys(("cumsum", "cumprod", "sort", "topk", "argsort", "logcumsumexp"), cumulation),
}  # fmt: skip
