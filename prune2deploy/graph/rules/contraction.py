"""What all operators that sum products over a dimension do: convolutions, linear layers, matrix products.

They read the channels of the dimension that is summed, produce those of a weight's output dimension, and are the
only operators whose FLOPs count.
"""

import math

from prune2deploy.graph.labelling import Labelling
from prune2deploy.graph.labels import Labels, Value
from prune2deploy.graph.rules.call import Call, Result, Rule

NOT_PRUNABLE = "reads a dimension that nothing prunable produces"


def contract(call: Call, data: Value, dim: int, consumed: Labels | None, *, argument: str) -> Value:
    """Unite the data's labels along ``dim`` with the weight's input labels, and note who reads them."""
    state = call.state
    block = data.block_of(dim)
    if block is not None and len(block.dims) > 1:
        block = state.one_axis(block)
        blocks = tuple(other if dim not in other.dims else block for other in data.blocks)
        data = Value(data.shape, blocks, data.tensor)
    labels = data.labels_of(dim)
    if labels is not None and consumed is not None:
        state.unite(labels, consumed)
        state.read(call.node, call.position(argument), dim, labels)
    else:
        if consumed is not None:
            state.freeze(consumed, NOT_PRUNABLE, call.node)
        data = state.freeze_dim(data, dim, "is read by a weight of fixed size", call.node)
    return data


def mark(state: Labelling, produced: Labels | None, consumed: Labels | None) -> None:
    """Note the labels of a weight's output dimension and of its input dimension."""
    if produced is not None:
        state.producers.append(produced)
    if consumed is not None:
        state.consumers.append(consumed)


def widths_of(weight: Value, *dims: int) -> tuple[int, list[Labels | None]]:
    """The product of the weight's sizes without labels along ``dims``, and the labels of the others."""
    labels = [weight.labels_of(dim) for dim in dims]
    fixed = math.prod(weight.shape[dim] for dim, found in zip(dims, labels, strict=True) if found is None)
    return fixed, labels


def not_followed(what: str) -> Rule:
    """A rule that freezes everything that meets ``what``."""

    def rule(call: Call) -> Result:
        return call.freeze_all(f"passes through {what}, which is not followed")

    return rule
