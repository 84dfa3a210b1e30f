"""What share of a model's FLOPs stays in place, and which reason holds how much of it.

An operator with a weight is held by whatever holds the weight's *producing* dimension, index by index: of a layer
with 64 outputs of which 16 cannot leave, a quarter of its FLOPs is held. An operator without one (a product of two
activations) is held where none of its sizes can shrink. So each FLOP has at most one holder, and the shares of all
reasons add up to at most 1.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from prune2deploy.graph.cost import CostModel, CostTerm

if TYPE_CHECKING:
    from prune2deploy.graph.channels import ChannelGraph

FREE = -1
"""The holder of an index that can leave."""
HELD_ALREADY = -2
"""The holder of an index that is someone else's, accounted for before."""

FlopsByLayer = dict[str, int]


def frozen_flops(graph: "ChannelGraph") -> dict[tuple[str, str], int]:
    """FLOPs at batch 1 that cannot leave, by (reason, ATen operator), the largest first; they are disjoint."""
    held: dict[tuple[str, str], int] = {}
    for one in graph.frozen:
        held[one.reason, one.operator] = held.get((one.reason, one.operator), 0) + one.flops
    return dict(sorted(held.items(), key=lambda entry: -entry[1]))


def flops_by_holder(
    cost: CostModel, holders: Sequence[NDArray[np.int64]], *, of_sizeless: int = HELD_ALREADY
) -> dict[int, FlopsByLayer]:
    """Dense FLOPs that each holder keeps in place, by layer.

    ``holders`` has one array for each of ``cost.widths``: who keeps each index, 0 and up, or ``FREE``, or
    ``HELD_ALREADY``. ``of_sizeless`` holds the operators none of whose sizes has labels.
    """
    counts = [_counted(one) for one in holders]
    sizes = [len(width) for width in cost.widths]
    found: dict[int, FlopsByLayer] = {}
    for term in cost.flop_terms:
        flops = term.coefficient
        for width in term.widths:
            flops *= sizes[width]
        for holder, share in _holders_of(term, flops, counts, sizes, of_sizeless).items():
            if holder >= 0 and share:
                layers = found.setdefault(holder, {})
                layers[term.layer] = layers.get(term.layer, 0) + share
    return found


def _holders_of(
    term: CostTerm, flops: int, counts: Sequence[Mapping[int, int]], sizes: Sequence[int], of_sizeless: int
) -> dict[int, int]:
    """FLOPs of one operator by holder."""
    if term.produced is not None:
        each = flops // sizes[term.produced]
        return {holder: each * count for holder, count in counts[term.produced].items()}
    if not term.widths:
        return {of_sizeless: flops}
    if any(FREE in counts[width] for width in term.widths):
        return {}
    newly = {holder: count for width in term.widths for holder, count in counts[width].items() if holder >= 0}
    return {max(newly, key=lambda holder: newly[holder]): flops} if newly else {}


def _counted(holders: NDArray[np.int64]) -> dict[int, int]:
    values, counts = np.unique(holders, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))
