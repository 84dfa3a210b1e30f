"""What one channel costs: the FLOPs that leave with it, without evaluating a plan for each.

Channels that own equally many indices of each width cost the same, and a group has one or two such kinds. So a model
of ten thousand channels needs as many evaluations as it has groups, each of the terms that the kind takes part in.
"""

from collections import defaultdict
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from prune2deploy.graph.channels import ChannelMask
from prune2deploy.graph.cost import CostModel, CostTerm

Owned = tuple[tuple[int, int], ...]
"""Which widths a kind of channel has a part in, and how many indices of each: pairs (width, count)."""


def marginal_flops(cost: CostModel, kept: ChannelMask) -> NDArray[np.float64]:
    """The FLOPs that the whole model loses if one more channel goes: its own layers and every reader.

    Shape: (channel_count,) -> (channel_count,). Unit: FLOPs at batch 1. Exact differences of ``cost.flops`` at
    ``kept``, each channel on its own; 0 for a channel that has left already, or that no counted operator touches. That
    a residual branch leaves whole with its last channel counts for no channel.
    """
    cost = cost.without_branches(cost.removed_branches(kept))
    sizes = cost.sizes(kept)
    terms_of = _terms_by_width(cost)

    def lost(owned: Owned) -> int:
        without = list(sizes)
        for width, count in owned:
            without[width] -= count
        touched = sorted({term for width, _ in owned for term in terms_of[width]})
        return sum(
            cost.flop_terms[term].coefficient
            * (_product(cost.flop_terms[term].widths, sizes) - _product(cost.flop_terms[term].widths, without))
            for term in touched
        )

    return _of_each_kind(cost, kept, lost)


def own_layer_flops(cost: CostModel, kept: ChannelMask) -> NDArray[np.float64]:
    """The FLOPs of the operators that make a channel, with all their inputs: 2·H·W·C_in·k² for a convolution.

    Shape: (channel_count,) -> (channel_count,). Unit: FLOPs at batch 1, at the widths of ``kept``. Where an addition
    joins several producers, or a depthwise convolution rides on the channel, all of them count. 0 for a channel that
    has left already, or that no counted operator makes.
    """
    cost = cost.without_branches(cost.removed_branches(kept))
    sizes = cost.sizes(kept)
    made_by: dict[int, list[CostTerm]] = defaultdict(list)
    for term in cost.flop_terms:
        if term.produced is not None:
            made_by[term.produced].append(term)

    def spent(owned: Owned) -> int:
        return sum(count * _share_of_one(term, sizes) for width, count in owned for term in made_by[width])

    return _of_each_kind(cost, kept, spent)


def _of_each_kind(cost: CostModel, kept: ChannelMask, flops_of: Callable[[Owned], int]) -> NDArray[np.float64]:
    """Evaluate each kind of channel once. Shape: (channel_count,)."""
    columns = sparse.csc_array(cost.incidence)
    columns.sort_indices()
    known: dict[tuple[bytes, bytes], float] = {}
    values = np.zeros(cost.channel_count)
    for channel in np.flatnonzero(kept):
        inside = slice(columns.indptr[channel], columns.indptr[channel + 1])
        rows, counts = columns.indices[inside], columns.data[inside]
        kind = (rows.tobytes(), counts.tobytes())
        if kind not in known:
            known[kind] = float(flops_of(tuple(zip(rows.tolist(), counts.tolist(), strict=True))))
        values[channel] = known[kind]
    return values


def _terms_by_width(cost: CostModel) -> dict[int, list[int]]:
    found: dict[int, list[int]] = defaultdict(list)
    for number, term in enumerate(cost.flop_terms):
        for width in term.widths:
            found[width].append(number)
    return found


def _share_of_one(term: CostTerm, sizes: list[int]) -> int:
    """FLOPs of one index of what the term's weight makes."""
    others = list(term.widths)
    if term.produced is not None:
        others.remove(term.produced)
    return term.coefficient * _product(tuple(others), sizes)


def _product(widths: tuple[int, ...], sizes: list[int]) -> int:
    """Python integers, so that a large model cannot overflow."""
    product = 1
    for width in widths:
        product *= sizes[width]
    return product
