"""What the user takes out of reach: residual streams, layers by name, cuts that are not exact."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from prune2deploy.errors import InputError
from prune2deploy.graph.channels import ChannelGraph, Role

INSIDE_BLOCKS = "inside-blocks"
_OUT_OF_SCOPE = "lies on a residual stream, and the scope is inside-blocks"
_PROTECTED = "was protected by name (--protect)"
_NOT_CHOSEN = "is made by layers that --only does not name"
_INEXACT = "a norm or mean is taken over these channels, and only exact cuts were asked for (--exact-only)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Restrictions:
    """``protect`` and ``only`` are shell patterns for names of layers or of their tensors; none of ``only``: all."""

    scope: str = "all"
    protect: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    exact_only: bool = False


def reasons_to_stay(graph: ChannelGraph, restrictions: Restrictions) -> dict[int, str]:
    """Which groups the restrictions take out of reach: group index to the reason.

    A group stays whole if one of the layers that make its channels is protected, or if one is not among ``only``.

    Raises:
        InputError: a pattern names no layer that can be cut.
    """
    makers = _makers(graph)
    for option, patterns in (("--protect", restrictions.protect), ("--only", restrictions.only)):
        for pattern in patterns:
            if not any(_named(tensor, [pattern]) for tensors in makers.values() for tensor in tensors):
                raise InputError(
                    "names no layer that can be cut",
                    where=f"{option} {pattern}",
                    hint="see the names with `p2d inspect`; * stands for any part of one",
                )
    reasons = {}
    for group in graph.groups:
        tensors = makers[group.index]
        if restrictions.scope == INSIDE_BLOCKS and group.stream:
            reasons[group.index] = _OUT_OF_SCOPE
        elif any(_named(tensor, restrictions.protect) for tensor in tensors):
            reasons[group.index] = _PROTECTED
        elif restrictions.only and not all(_named(tensor, restrictions.only) for tensor in tensors):
            reasons[group.index] = _NOT_CHOSEN
        elif restrictions.exact_only and not group.exact:
            reasons[group.index] = _INEXACT
    return reasons


def _makers(graph: ChannelGraph) -> dict[int, list[str]]:
    """The tensors that produce each group's channels."""
    producing = list(graph.axes_with(Role.PRODUCER))
    return {
        group.index: [axis.tensor for axis in producing if np.isin(axis.channels, group.channels).any()]
        for group in graph.groups
    }


def _named(tensor: str, patterns: Sequence[str]) -> bool:
    layer = tensor.rpartition(".")[0] or tensor
    return any(fnmatchcase(name, pattern) for pattern in patterns for name in (layer, tensor))
