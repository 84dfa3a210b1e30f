"""From a channel mask to a plan, and back."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prune2deploy.budget.plan import KeptIndices, PrunePlan, RemovedBranch
from prune2deploy.errors import InputError
from prune2deploy.graph.channels import FROZEN, Branch, ChannelGraph, ChannelMask


def plan_from_mask(graph: ChannelGraph, kept: ChannelMask, provenance: Mapping[str, Any] | None = None) -> PrunePlan:
    """The plan that keeps the channels of ``kept``, shape (channel_count,). Whole axes are not listed.

    A residual branch all of whose inner groups are empty leaves whole.

    Raises:
        InputError: another group would be empty, or only some of the inner groups of a branch.
    """
    removed = _outermost(graph.removed_branches(kept))
    _check_empty_groups(graph, kept, removed)
    gone = {name for branch in removed for name in branch.tensors}
    keeps = np.append(kept, True)  # the last entry answers for FROZEN = -1
    entries = []
    for axis in graph.axes:
        stays = keeps[axis.channels]
        if not stays.all() and axis.tensor not in gone:
            indices = tuple(np.flatnonzero(stays).tolist())
            entries.append(KeptIndices(tensor=axis.tensor, dim=axis.dim, dense_size=axis.size, kept=indices))
    return PrunePlan(
        fingerprint=graph.fingerprint,
        entries=tuple(entries),
        provenance=dict(provenance or {}),
        removed=tuple(RemovedBranch(name=branch.name, modules=dict(branch.modules)) for branch in removed),
    )


def _outermost(branches: Sequence[Branch]) -> tuple[Branch, ...]:
    """Those branches that do not lie within another of them."""
    return tuple(
        branch
        for branch in branches
        if not any(other is not branch and set(branch.tensors) <= set(other.tensors) for other in branches)
    )


def _check_empty_groups(graph: ChannelGraph, kept: ChannelMask, removed: Sequence[Branch]) -> None:
    leaving = {index for branch in removed for index in branch.groups}
    for group in graph.groups:
        if not len(group.channels) or kept[group.channels].any() or group.index in leaving:
            continue
        others = [
            graph.groups[one].name for branch in graph.branches if group.index in branch.groups for one in branch.groups
        ]
        raise InputError(
            "all channels of a group would leave",
            where=group.name,
            hint=f"empty all groups of its residual branch ({', '.join(others)}), or keep one channel"
            if others
            else "keep one channel: only residual branches leave whole, and this group is in none that can",
        )


def mask_from_plan(graph: ChannelGraph, plan: PrunePlan) -> ChannelMask:
    """The channels that a plan for this graph keeps. Shape: (channel_count,).

    Raises:
        InputError: the plan belongs to another model, or tears a channel of this graph apart.
    """
    if plan.fingerprint != graph.fingerprint:
        raise InputError("the plan belongs to another model (names or shapes of tensors differ)", where="plan")
    kept = graph.everything()
    known = {tuple(branch.modules.items()): branch for branch in graph.branches}
    for one in plan.removed:
        branch = known.get(tuple(one.modules.items()))
        if branch is None:
            raise InputError("the plan removes what is no residual branch of this model", where=one.name)
        for index in branch.groups:
            kept[graph.groups[index].channels] = False
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
    """A place where two plans keep different indices or branches."""
    gone, also_gone = ({one.name for one in plan.removed} for plan in (first, second))
    if gone != also_gone:
        return min(gone ^ also_gone)
    one, other = (
        {(entry.tensor, entry.dim): entry.kept for entry in plan.entries if len(entry.kept) < entry.dense_size}
        for plan in (first, second)
    )
    unlike = sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
    return f"{unlike[0][0]} dim {unlike[0][1]}" if unlike else None
