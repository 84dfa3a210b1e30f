"""Reductions: over unlabelled dimensions they change nothing; over channels only a sum stays exact."""

from collections.abc import Sequence
from typing import Any, Literal

from prune2deploy.graph.labelling import ChannelNorm
from prune2deploy.graph.labels import Value
from prune2deploy.graph.rules.call import Call, Result, Rule
from prune2deploy.graph.rules.elementwise import elementwise


def reduction(call: Call) -> Result:
    """Mean, maximum, variance and the like, over one dimension of channels: inexact, since they cover fewer channels.

    ``max`` and ``min`` of two tensors are element-wise operators of the same name.
    """
    if call.optional_tensor("other") is not None:
        return elementwise(call)
    return _reduced(call, kind="statistic")


def position(call: Call) -> Result:
    """The place of a maximum: a labelled dimension that is reduced must keep its size."""
    return _reduced(call, kind="position")


def summation(call: Call) -> Result:
    """A sum, or the length of a vector, reads the channels that it covers; those that leave add nothing."""
    return _reduced(call, kind="sum")


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
            "logsumexp", "median",
        ),
        reduction,
    ),
    **dict.fromkeys(("argmax", "argmin"), position),
    **dict.fromkeys(("sum", "norm", "linalg_vector_norm"), summation),
    **dict.fromkeys(("cumsum", "cumprod", "sort", "topk", "argsort", "logcumsumexp"), cumulation),
}  # fmt: skip
