"""Operators that move whole channels to other places: pixel and channel shuffle, windows and columns."""

import numpy as np

from prune2deploy.graph.labels import Block, Labels, Value
from prune2deploy.graph.rules.call import Call, Result, Rule


def pixel_shuffle(call: Call) -> Result:
    """(C r r, H, W) -> (C, H r, W r): the r r channels that make one leave together."""
    data, dim, labels = _channels(call, len(call.shape) - 3)
    if labels is None:
        return call.result(_others(data, dim))
    squares = labels.reshape(call.shape[dim], -1)
    return call.result([*_others(data, dim), Block.of(dim, call.state.unite_along(squares, 1))])


def pixel_unshuffle(call: Call) -> Result:
    """(C, H r, W r) -> (C r r, H, W): each channel gives r r neighbours."""
    data, dim, labels = _channels(call, len(call.shape) - 3)
    if labels is None:
        return call.result(_others(data, dim))
    return call.result([*_others(data, dim), Block.of(dim, np.repeat(labels, call.shape[dim] // len(labels)))])


def channel_shuffle(call: Call) -> Result:
    """(groups, C / groups) transposed: the same positions of all groups leave, so that the groups stay equal."""
    data, dim, labels = _channels(call, 1)
    if labels is None:
        return call.result(_others(data, dim))
    grouped = labels.reshape(int(call.arguments["groups"]), -1)
    call.state.unite(grouped, grouped[:1])
    return call.result([*_others(data, dim), Block.of(dim, grouped.T.ravel())])


def image_to_columns(call: Call) -> Result:
    """``unfold``: (B, C, H, W) -> (B, C k k, L): each channel gives the k k neighbours that a kernel covers."""
    data, dim, labels = _channels(call, 1)
    if labels is None:
        return call.result(_others(data, dim))
    return call.result([*_others(data, dim), Block.of(dim, np.repeat(labels, call.shape[dim] // len(labels)))])


def columns_to_image(call: Call) -> Result:
    """``fold``: (B, C k k, L) -> (B, C, H, W): the k k columns that make one channel leave together."""
    data, dim, labels = _channels(call, 1)
    if labels is None:
        return call.result(_others(data, dim))
    windows = labels.reshape(call.shape[dim], -1)
    return call.result([*_others(data, dim), Block.of(dim, call.state.unite_along(windows, 1))])


def windows(call: Call) -> Result:
    """``Tensor.unfold``: a dimension falls apart into windows, whose positions become a new last dimension."""
    data = call.tensor("self")
    dim = int(call.arguments["dimension"]) % len(data.shape)
    return call.result(call.state.freeze_dim(data, dim, "is cut into windows of a written size", call.node).blocks)


def _channels(call: Call, dim: int) -> tuple[Value, int, Labels | None]:
    """The argument with its other dimensions beyond the batch fixed, its channel dimension, and the labels there."""
    data = call.values[0]
    for other in range(dim + 1, len(data.shape)):
        data = call.state.freeze_dim(data, other, "is rearranged with its channels", call.node)
    block = data.block_of(dim)
    if block is not None and len(block.dims) > 1:
        data = call.state.freeze_dim(data, dim, "is rearranged as a joint dimension", call.node)
    return data, dim, data.labels_of(dim)


def _others(data: Value, dim: int) -> list[Block]:
    return [block for block in data.blocks if dim not in block.dims]


RULES: dict[str, Rule] = {
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle,
    "channel_shuffle": channel_shuffle,
    "native_channel_shuffle": channel_shuffle,
    "im2col": image_to_columns,
    "col2im": columns_to_image,
    "unfold": windows,
}
