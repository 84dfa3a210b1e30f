"""From a channel mask to a plan."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from prune2deploy.budget.plan import KeptIndices, PrunePlan
from prune2deploy.graph.channels import FROZEN, ChannelGraph, ChannelMask


def plan_from_mask(graph: ChannelGraph, kept: ChannelMask, provenance: Mapping[str, Any] | None = None) -> PrunePlan:
    """The plan that keeps the channels of ``kept``, shape (channel_count,). Whole axes are not listed."""
    keeps = np.append(kept, True)  # the last entry answers for FROZEN = -1
    entries = []
    for axis in graph.axes:
        stays = keeps[axis.channels]
        if not stays.all():
            indices = tuple(int(index) for index in np.flatnonzero(stays))
            entries.append(KeptIndices(tensor=axis.tensor, dim=axis.dim, dense_size=axis.size, kept=indices))
    return PrunePlan(fingerprint=graph.fingerprint, entries=tuple(entries), provenance=dict(provenance or {}))


def mask_from_plan(graph: ChannelGraph, plan: PrunePlan) -> ChannelMask:
    """The channels that a plan for this graph keeps. Shape: (channel_count,)."""
    kept = graph.everything()
    axes = {(axis.tensor, axis.dim): axis for axis in graph.axes}
    for entry in plan.entries:
        axis = axes[entry.tensor, entry.dim]
        gone = np.setdiff1d(np.arange(axis.size), np.array(entry.kept))
        channels = axis.channels[gone]
        kept[channels[channels != FROZEN]] = False
    return kept
