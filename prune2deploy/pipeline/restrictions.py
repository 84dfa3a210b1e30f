"""What the user takes out of reach: residual streams, layers by name, cuts that are not exact."""

import difflib
from collections.abc import Iterable, Sequence
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

    A group stays whole if one of the layers that make its channels is protected, or if one is not among ``only``. A
    pattern names a layer, or everything below one (``blocks.0`` is ``blocks.0.*`` too).

    Raises:
        InputError: a pattern names no layer, or, of ``only``, none that can be cut.
    """
    makers = _makers(graph)
    cuttable = {tensor for tensors in makers.values() for tensor in tensors}
    for pattern in (*restrictions.protect, *restrictions.only):
        option = "--protect" if pattern in restrictions.protect else "--only"
        _check_known(pattern, graph.shapes, where=f"{option} {pattern}")
        if option == "--only" and not any(_named(tensor, [pattern]) for tensor in cuttable):
            raise InputError(
                "names layers, but none that can be cut",
                where=f"{option} {pattern}",
                hint="see with `p2d inspect` why they keep their widths",
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


def _check_known(pattern: str, tensors: Iterable[str], *, where: str) -> None:
    names = list(tensors)
    if any(_named(tensor, [pattern]) for tensor in names):
        return
    layers = list(dict.fromkeys(_layer_of(tensor) for tensor in names))
    near = difflib.get_close_matches(pattern.rstrip(".*"), layers, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"layers are {', '.join(layers[:3])}"
    raise InputError(
        "names no layer of this model", where=where, hint=f"{hint}; `p2d inspect` lists those that can be cut"
    )


def _layer_of(tensor: str) -> str:
    return tensor.rpartition(".")[0] or tensor


def _named(tensor: str, patterns: Sequence[str]) -> bool:
    return any(
        fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")
        for pattern in patterns
        for name in (_layer_of(tensor), tensor)
    )
