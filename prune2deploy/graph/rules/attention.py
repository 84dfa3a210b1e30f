"""Scaled dot-product attention: heads are its channels, or the positions within every head."""

import math
from collections.abc import Sequence

from prune2deploy.graph.labels import Block, Labels, Value
from prune2deploy.graph.rules.call import Call, Result, Rule

_TOKENS = "tokens attend to tokens"


def scaled_dot_product_attention(call: Call) -> Result:
    """softmax(q k^T + mask) v for q (..., L, E), k (..., S, E), v (..., S, Ev).

    Batch dimensions (heads) unite, with those of the mask too; L and S freeze. E is read where the scale is given, and
    freezes where it comes from E itself. Ev passes through, unless it is that of one head which all heads of q share:
    then these leave, and it stays. With ``enable_gqa`` a head of k and v leaves with all heads of q that use it.
    """
    state, node = call.state, call.node
    query, key, value = (_voted(call, call.tensor(name)) for name in ("query", "key", "value"))
    rank = len(query.shape)
    query = state.freeze_dim(query, rank - 2, _TOKENS, node)
    key = state.freeze_dim(key, len(key.shape) - 2, _TOKENS, node)
    value = state.freeze_dim(value, len(value.shape) - 2, _TOKENS, node)
    inner = _inner(call, query, key)
    blocks: list[Block] = []
    heads: list[Labels | None] = []
    for dim in range(rank - 2):
        labels = _batch(call, (query, key, value), dim, grouped=bool(call.arguments.get("enable_gqa")))
        heads.append(labels)
        if labels is not None:
            blocks.append(Block.of(dim, labels))
    produced = value.labels_of(len(value.shape) - 1)
    if produced is not None and _is_shared(value, heads):
        state.freeze(produced, "is shared by all heads, which leave instead", node)
        produced = None
    if produced is not None:
        blocks.append(Block.of(rank - 1, produced))
    mask = call.optional_tensor("attn_mask")
    if mask is not None:
        blocks = _masked(call, blocks, mask)
    fixed = math.prod(size for size, found in zip(query.shape, heads, strict=False) if found is None)
    pairs = query.shape[-2] * key.shape[-2]
    state.count(node, 2 * fixed * pairs * (query.shape[-1] if inner is None else 1), [*heads, inner])
    state.count(node, 2 * fixed * pairs * (value.shape[-1] if produced is None else 1), [*heads, produced])
    return call.result(blocks)


def _inner(call: Call, query: Value, key: Value) -> Labels | None:
    """The labels over which queries and keys are multiplied, where they may leave."""
    dim = len(query.shape) - 1
    labels, others = query.labels_of(dim), key.labels_of(len(key.shape) - 1)
    if labels is not None and others is not None and call.arguments.get("scale") is not None:
        call.state.unite(labels, others)
        call.state.read(call.node, call.position("query"), dim, labels)
        return labels
    alone = labels is None or others is None
    reason = "is multiplied within heads, which leave whole" if alone else "the size of a head scales the attention"
    for found in (labels, others):
        if found is not None:
            call.state.freeze(found, reason, call.node)
    return None


def _is_shared(value: Value, heads: Sequence[Labels | None]) -> bool:
    """Whether heads that leave all read one head of ``value``."""
    return any(found is not None and value.shape[dim] == 1 for dim, found in enumerate(heads))


def _batch(call: Call, operands: tuple[Value, ...], dim: int, *, grouped: bool) -> Labels | None:
    """The labels of one batch dimension, united over those operands that are not broadcast along it."""
    state = call.state
    size = max(one.shape[dim] for one in operands)
    present: list[Labels] = []
    fixed = False
    for one in operands:
        labels = one.labels_of(dim)
        if labels is not None and grouped and len(labels) < size:
            labels = labels.repeat(size // len(labels))
        if labels is not None:
            present.append(labels)
        elif one.shape[dim] > 1:
            fixed = True
    for found in present:
        if fixed:
            state.freeze(found, "attends with data of fixed size", call.node)
        else:
            state.unite(present[0], found)
    return present[0] if present and not fixed else None


def _masked(call: Call, blocks: list[Block], mask: Value) -> list[Block]:
    """Unite the mask's heads with the attention's; its tokens keep their number."""
    state, rank = call.state, len(call.shape)
    offset = rank - len(mask.shape)
    for dim in (-2, -1):
        mask = state.freeze_dim(mask, len(mask.shape) + dim, "masks an attention", call.node)
    found = {block.dims[0]: block for block in blocks}
    for dim in range(len(mask.shape) - 2):
        labels = mask.labels_of(dim)
        block = found.get(dim + offset)
        if labels is not None and block is not None:
            state.unite(block.labels, labels)
        elif labels is not None:
            state.freeze(labels, "masks an attention of fixed size", call.node)
        elif block is not None and mask.shape[dim] > 1:
            state.freeze(block.labels, "is masked by data of fixed size", call.node)
            del found[dim + offset]
    return list(found.values())


def _voted(call: Call, value: Value) -> Value:
    rank = len(value.shape)
    blocks = []
    for block in value.blocks:
        block = call.state.attended(block, range(rank - 2))
        if len(block.dims) == 1:
            blocks.append(block)
    return Value(value.shape, tuple(blocks), value.tensor)


RULES: dict[str, Rule] = {"scaled_dot_product_attention": scaled_dot_product_attention}
