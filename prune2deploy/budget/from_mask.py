"""From a channel mask to a plan."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from prune2deploy.budget.plan import KeptIndices, PrunePlan
from prune2deploy.errors import InputError
from prune2deploy.graph.channels import FROZEN, ChannelGraph, ChannelMask


def plan_from_mask(graph: ChannelGraph, kept: ChannelMask, provenance: Mapping[str, Any] | None = None) -> PrunePlan:
    """The plan that keeps the channels of ``kept``, shape (channel_count,). Whole axes are not listed."""
    keeps = np.append(kept, True)  # the last entry answers for FROZEN = -1
    entries = []
    for axis in graph.axes:
        stays = keeps[axis.channels]
        if not stays.all():
            indices = tuple(np.flatnonzero(stays).tolist())
            entries.append(KeptIndices(tensor=axis.tensor, dim=axis.dim, dense_size=axis.size, kept=indices))
    return PrunePlan(fingerprint=graph.fingerprint, entries=tuple(entries), provenance=dict(provenance or {}))


def mask_from_plan(graph: ChannelGraph, plan: PrunePlan) -> ChannelMask:
    """The channels that a plan for this graph keeps. Shape: (channel_count,).

    Raises:
        InputError: the plan belongs to another model, or tears a channel of this graph apart.
    """
    if plan.fingerprint != graph.fingerprint:
        raise InputError("the plan belongs to another model (names or shapes of tensors differ)", where="plan")
    kept = graph.everything()
    axes = {(axis.tensor, axis.dim): axis for axis in graph.axes}
    for entry in plan.entries:
        axis = axes.get((entry.tensor, entry.dim))
        if axis is None:
            raise InputError("the plan cuts what cannot leave this model", where=f"{entry.tensor} dim {entry.dim}")
        channels = axis.channels[~np.isin(np.arange(axis.size), entry.kept)]
        if (channels == FROZEN).any():
            raise InputError("the plan cuts what cannot leave this model", where=f"{entry.tensor} dim {entry.dim}")
        kept[channels] = False
    if (torn := _difference(plan, plan_from_mask(graph, kept))) is not None:
        raise InputError(
            "the plan removes some slices of a channel and keeps others, which can only leave together", where=torn
        )
    return kept


def _difference(first: PrunePlan, second: PrunePlan) -> str | None:
    """A place where two plans keep different indices."""
    one, other = (
        {(entry.tensor, entry.dim): entry.kept for entry in plan.entries if len(entry.kept) < entry.dense_size}
        for plan in (first, second)
    )
    unlike = sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
    return f"{unlike[0][0]} dim {unlike[0][1]}" if unlike else None
