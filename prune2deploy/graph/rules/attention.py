"""Scaled dot-product attention: heads are the channels, head dimensions keep their size."""

import math

from prune2deploy.graph.labels import Block, Labels, Value
from prune2deploy.graph.rules.call import Call, Result, Rule

_HEAD_DIM = "the size of a head scales the attention"


def scaled_dot_product_attention(call: Call) -> Result:
    """softmax(q k^T) v for q (..., L, E), k (..., S, E), v (..., S, Ev): batch dimensions unite, L, S and E freeze."""
    state, node = call.state, call.node
    query, key, value = (_voted(call, call.tensor(name)) for name in ("query", "key", "value"))
    mask = call.optional_tensor("attn_mask")
    if mask is not None:
        state.freeze_value(mask, "masks an attention", node)
    if call.arguments.get("enable_gqa"):
        return call.freeze_all("grouped-query attention keeps its heads")
    rank = len(query.shape)
    query, key, value = (
        state.freeze_dim(state.freeze_dim(one, rank - 1, _HEAD_DIM, node), rank - 2, "tokens attend to tokens", node)
        for one in (query, key, value)
    )
    blocks = []
    batch_widths: list[Labels | None] = []
    for dim in range(rank - 2):
        labels = [one.labels_of(dim) for one in (query, key, value)]
        present = [found for found in labels if found is not None]
        if len(present) == 3:
            state.unite(present[0], present[1])
            state.unite(present[0], present[2])
            blocks.append(Block.of(dim, present[0]))
            batch_widths.append(present[0])
        else:
            for found in present:
                state.freeze(found, "attends with data of fixed size", node)
            batch_widths.append(None)
    fixed = math.prod(size for size, found in zip(query.shape, batch_widths, strict=False) if found is None)
    tokens = query.shape[-2] * key.shape[-2]
    state.count(node, 2 * fixed * tokens * (query.shape[-1] + value.shape[-1]), batch_widths)
    return call.result(blocks)


def _voted(call: Call, value: Value) -> Value:
    rank = len(value.shape)
    blocks = []
    for block in value.blocks:
        batch = [dim for dim in block.dims if dim < rank - 2]
        if len(block.dims) > 1:
            block = call.state.one_axis(block, vote=batch[-1] if batch else None)
        if len(block.dims) == 1:
            blocks.append(block)
    return Value(value.shape, tuple(blocks), value.tensor)


RULES: dict[str, Rule] = {"scaled_dot_product_attention": scaled_dot_product_attention}
