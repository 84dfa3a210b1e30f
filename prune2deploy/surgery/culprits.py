"""Which groups break something: found by cutting fewer and fewer of them."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import nn

from prune2deploy.budget.from_mask import plan_from_mask
from prune2deploy.errors import ProofError
from prune2deploy.graph.channels import FROZEN, ChannelGraph, ChannelMask
from prune2deploy.graph.trace import Trace
from prune2deploy.surgery.apply import named_tensors, sliced_tensors
from prune2deploy.surgery.equality import FORWARD_ERRORS, slice_compared

Passes = Callable[[Collection[int]], bool]
Fails = Callable[[Collection[int]], Exception | None]
Names = Callable[[Exception], Collection[int]]


def find_named(candidates: Sequence[int], failure: Fails, named_by: Names) -> list[int]:
    """The members that make ``failure`` give an exception, in order, found by the members that exceptions name.

    Named ones are left out until nothing fails; then those are let in again that do no harm, by themselves and beside
    the others. What no exception names is found as by ``find_failing``. Without the members found, ``failure`` gives
    None.
    """
    named: list[int] = []
    rest = list(candidates)
    unexplained: list[int] = []
    while (error := failure(rest)) is not None:
        found = set(named_by(error)).intersection(rest)
        if not found:
            unexplained = find_failing(rest, lambda some: failure(some) is None)
            rest = [one for one in rest if one not in unexplained]
            break
        named += sorted(found)
        rest = [one for one in rest if one not in found]
    guilty = [one for one in named if failure([one]) is not None]
    innocent = [one for one in named if one not in guilty]
    if innocent and failure([*rest, *innocent]) is not None:
        guilty += find_failing(sorted(innocent), lambda some: failure([*rest, *some]) is None)
    return sorted([*unexplained, *guilty])


def find_failing(candidates: Sequence[int], passes: Passes) -> list[int]:
    """The members that make ``passes`` fail, in order: those that fail alone, by bisection, and combinations.

    Of a combination that fails only together, a smallest one is named. Without the named members, ``passes`` holds.
    """
    candidates = list(candidates)
    if not candidates or passes(candidates):
        return []
    if len(candidates) == 1:
        return candidates
    middle = len(candidates) // 2
    failing = find_failing(candidates[:middle], passes) + find_failing(candidates[middle:], passes)
    rest = [one for one in candidates if one not in failing]
    known_to_fail = not failing
    while rest and (known_to_fail or not passes(rest)):
        failing += _smallest_failing(rest, passes)
        rest = [one for one in rest if one not in failing]
        known_to_fail = False
    return sorted(failing)


def _smallest_failing(candidates: list[int], passes: Passes, beside: Sequence[int] = ()) -> list[int]:
    """A smallest part of ``candidates`` that fails together with ``beside`` (Junker 2004, QuickXplain)."""
    if len(candidates) == 1:
        return candidates
    middle = len(candidates) // 2
    first, second = candidates[:middle], candidates[middle:]
    found: list[int] = []
    if passes([*beside, *first]):
        found = _smallest_failing(second, passes, [*beside, *first])
    if not found or passes([*beside, *found]):
        found += _smallest_failing(first, passes, [*beside, *found])
    return found


def cut_is_exact(trace: Trace, model: nn.Module, kept: ChannelMask, inputs: Sequence[Any]) -> bool:
    """Whether the slice of ``model`` runs and equals the gated dense one."""
    return cut_failure(trace, model, kept, inputs) is None


def cut_failure(trace: Trace, model: nn.Module, kept: ChannelMask, inputs: Sequence[Any]) -> Exception | None:
    """What the slice of ``model`` raises, if anything; a ``ProofError`` where it does not equal the gated dense one."""
    try:
        fault = slice_compared(trace, model, kept, inputs).fault
    except (ProofError, *FORWARD_ERRORS) as error:
        return error
    return None if fault is None else ProofError(fault)


def blame(trace: Trace, dense: nn.Module, pruned: nn.Module, kept: ChannelMask, inputs: Sequence[Any]) -> str:
    """Why ``pruned`` is not ``dense`` without the channels outside ``kept``: the tensors or the groups at fault."""
    if tensors := _unlike_slices(trace.graph, dense, pruned, kept):
        owners = [_groups_of(trace.graph, name) for name in tensors]
        groups = set.intersection(*owners) or set.union(*owners)
        return f"not sliced from the dense model: {_listed(tensors)}, {_group_names(trace.graph, groups)}"
    if trace.sizes_are_free:  # modules cannot be sliced there, so that no cut can be tried by itself
        return "in the edited graph"
    together = _leaving_together(trace.graph, kept)
    touched = [group.index for group in trace.graph.groups if not kept[group.channels].all()]

    def passes(groups: Collection[int]) -> bool:
        alone = trace.graph.everything()
        for index in (one for first in groups for one in together.get(first, {first})):
            channels = trace.graph.groups[index].channels
            alone[channels] = kept[channels]
        return cut_is_exact(trace, dense, alone, inputs)

    failing = find_failing([one for one in touched if one == min(together.get(one, {one}))], passes)
    guilty = {one for first in failing for one in together.get(first, {first})}
    return _group_names(trace.graph, guilty) if guilty else "every group is exact by itself"


def _leaving_together(graph: ChannelGraph, kept: ChannelMask) -> dict[int, set[int]]:
    """For each group that leaves with residual branches, the groups that it cannot be tried without."""
    together: dict[int, set[int]] = {}
    for branch in graph.removed_branches(kept):
        joined = set(branch.groups).union(*(together.get(index, ()) for index in branch.groups))
        together.update(dict.fromkeys(joined, joined))
    return together


def _unlike_slices(graph: ChannelGraph, dense: nn.Module, pruned: nn.Module, kept: ChannelMask) -> list[str]:
    plan = plan_from_mask(graph, kept)
    sliced = sliced_tensors(dense, plan)
    expected = {
        name: sliced.get(id(tensor), tensor) for name, tensor in named_tensors(dense).items() if not plan.removes(name)
    }
    actual = named_tensors(pruned)
    return [name for name, tensor in expected.items() if name not in actual or not torch.equal(actual[name], tensor)]


def _groups_of(graph: ChannelGraph, tensor: str) -> set[int]:
    name = graph.aliases.get(tensor, tensor)
    channels = [axis.channels[axis.channels != FROZEN] for axis in graph.axes if axis.tensor == name]
    return {int(number) for one in channels for number in graph.group_of[one]}


def _group_names(graph: ChannelGraph, groups: Collection[int]) -> str:
    if not groups:
        return "in no group that can leave"
    several = "s" if len(groups) > 1 else ""
    return f"in the group{several} of {_listed([graph.groups[index].name for index in sorted(groups)])}"


def _listed(names: Sequence[str], *, shown: int = 4) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
