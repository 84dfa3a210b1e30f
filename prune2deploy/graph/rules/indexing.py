"""Operators that reorder or look up positions: roll, flip, gather, index, embedding."""

from collections.abc import Sequence

import numpy as np

from prune2deploy.graph.labels import Block, Value
from prune2deploy.graph.rules.call import Call, Result, Rule


def roll(call: Call) -> Result:
    """Cyclic shifts. Labels are shifted too where the number, which is written in the code, will be rewritten."""
    data = call.values[0]
    rank = len(data.shape)
    dims = [int(dim) % rank for dim in call.arguments.get("dims") or ()]
    shifts = call.arguments["shifts"]
    blocks: list[Block] = []
    for dim in range(rank) if not dims else sorted(set(dims)):
        labels = data.labels_of(dim)
        written = [shift for shift, other in zip(shifts, dims, strict=True) if other == dim] if dims else []
        if labels is None or not call.state.sizes_are_free or not all(isinstance(one, int) for one in written):
            data = call.state.freeze_dim(data, dim, "is rolled by a written number", call.node)
        elif len(written) != 1:
            data = call.state.freeze_dim(data, dim, "is rolled more than once, or flat", call.node)
        else:
            blocks.append(Block.of(dim, np.roll(labels, written[0])))
    rolled = {block.dims for block in blocks}
    return call.result([*(block for block in data.blocks if block.dims not in rolled), *blocks])


def flip(call: Call) -> Result:
    """Reversed dimensions: their labels reversed."""
    data = call.values[0]
    dims = {int(dim) % len(data.shape) for dim in call.arguments["dims"]}
    blocks = []
    for block in data.blocks:
        axes = tuple(axis for axis, dim in enumerate(block.dims) if dim in dims)
        blocks.append(Block(block.dims, np.flip(block.labels, axes), block.keys))
    return call.result(blocks)


def triangle(call: Call) -> Result:
    """``tril`` and ``triu``: which of the last two dimensions' positions are zero is written in the code."""
    data = call.values[0]
    for dim in range(len(data.shape) - 2, len(data.shape)):
        data = call.state.freeze_dim(data, dim, "is masked by its position", call.node)
    return call.result(data.blocks)


def gather(call: Call) -> Result:
    """Positions of one dimension chosen by an index, row by row: that dimension freezes, all others leave together."""
    data, chosen = call.tensor("self"), call.tensor("index")
    if not data.shape:
        return call.freeze_all("is indexed by a table")
    dim = int(call.arguments["dim"]) % len(data.shape)
    data = call.state.freeze_dim(data, dim, "is indexed by a table", call.node)
    chosen = call.state.freeze_dim(chosen, dim, "serves as an index", call.node)
    blocks = []
    for other in range(len(data.shape)):
        one, two = data.labels_of(other), chosen.labels_of(other)
        if other == dim:
            continue
        if one is not None and two is not None and data.shape[other] == chosen.shape[other]:
            call.state.unite(one, two)
            blocks.append(Block.of(other, one))
            continue
        data = call.state.freeze_dim(data, other, "is indexed by a table of fixed size", call.node)
        chosen = call.state.freeze_dim(chosen, other, "indexes data of fixed size", call.node)
    return call.result(blocks)


def index(call: Call) -> Result:
    """Indexing by tensors: indexed dimensions freeze; plain ones keep their labels where their place is clear."""
    data = call.tensor("self")
    indices: Sequence[Value | None] = call.arguments["indices"]
    indexed = [dim for dim, one in enumerate(indices) if one is not None]
    for dim in indexed:
        data = call.state.freeze_dim(data, dim, "is indexed by a table", call.node)
    for value in indices:
        if value is not None:
            call.state.freeze_value(value, "serves as an index", call.node)
    if indexed and indexed == list(range(indexed[0], indexed[-1] + 1)):
        growth = len(call.shape) - (len(data.shape) - len(indexed))
        position = {
            dim: dim if dim < indexed[0] else dim - len(indexed) + growth
            for dim in range(len(data.shape))
            if dim not in indexed
        }
        return call.result([block.moved([position[dim] for dim in block.dims]) for block in data.blocks])
    call.state.freeze_value(data, "is indexed in several dimensions", call.node)
    return call.unlabelled()


def index_select(call: Call) -> Result:
    """Rows by an index tensor: that dimension freezes."""
    data = call.tensor("self")
    dim = int(call.arguments["dim"]) % len(data.shape)
    return call.result(call.state.freeze_dim(data, dim, "is indexed by a table", call.node).blocks)


def embedding(call: Call) -> Result:
    """Rows of a weight by an index: the weight's columns are produced, behind the dimensions of the index."""
    weight, chosen = call.tensor("weight"), call.tensor("indices")
    columns = weight.labels_of(1)
    weight = call.state.freeze_dim(weight, 0, "rows are chosen by an index", call.node)
    if columns is None:
        return call.result(chosen.blocks)
    call.state.producers.append(columns)
    return call.result([*chosen.blocks, Block.of(len(call.shape) - 1, columns)])


RULES: dict[str, Rule] = {
    "roll": roll,
    "flip": flip,
    "tril": triangle,
    "triu": triangle,
    "gather": gather,
    "index": index,
    "index_select": index_select,
    "embedding": embedding,
}
