"""What cannot leave a model and why, as the user reads it: by cause, with layers, source line and FLOPs held."""

import re
import sysconfig
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from prune2deploy.graph.channels import ChannelGraph, FrozenReason
from prune2deploy.graph.resolve import module_of
from prune2deploy.pipeline.outcomes import FrozenRow

_NAMED_PATTERNS = 3


@dataclass(kw_only=True)
class _Cause:
    """Everything that one operator on one line, or one rule, keeps in place."""

    first: FrozenReason
    source: str
    layers: dict[str, None] = field(default_factory=dict)
    flops: int = 0
    axes_total: int = 0


def frozen_rows(graph: ChannelGraph) -> tuple[FrozenRow, ...]:
    """Why some of ``graph`` stays: one row a cause (reason, operator and source line), the largest share first.

    Equal blocks that run the same line make one row. Shares are disjoint.
    """
    causes: dict[tuple[str, str, str], _Cause] = {}
    for one in graph.frozen:
        source = readable_source(one.place)
        cause = causes.setdefault((one.reason, one.operator, source), _Cause(first=one, source=source))
        cause.layers |= dict.fromkeys(_layers_of(one))
        cause.flops += one.flops
        cause.axes_total += len(one.axes)
    dense = max(graph.cost.dense_flops, 1)
    return tuple(
        FrozenRow(
            reason=cause.first.reason,
            operator=cause.first.operator,
            place=cause.first.place,
            source=cause.source,
            layers=tuple(cause.layers),
            named=named_layers(tuple(cause.layers)),
            axes_total=cause.axes_total,
            flops=cause.flops,
            flops_fraction=cause.flops / dense,
        )
        for cause in sorted(causes.values(), key=lambda cause: -cause.flops)
    )


def named_layers(layers: Sequence[str]) -> str:
    """Layers in few words: ``fc``, or ``12 layers: blocks.*.attn.qkv`` where numbers are all that they differ by."""
    if len(layers) < 2:
        return layers[0] if layers else ""
    families: dict[tuple[str, ...], list[list[str]]] = {}
    for layer in layers:
        parts = layer.split(".")
        family = tuple("*" if part.isdigit() else part for part in parts)
        families.setdefault(family, []).append(parts)
    patterns = [_pattern(members) for members in families.values()]
    more = f" and {len(patterns) - _NAMED_PATTERNS} more" if len(patterns) > _NAMED_PATTERNS else ""
    return f"{len(layers)} layers: {', '.join(patterns[:_NAMED_PATTERNS])}{more}"


def readable_source(place: str) -> str:
    """The source line of a ``FrozenReason``'s place, as ``package/module.py:12``; empty where it has none."""
    found = re.search(r"(?:^|\()((?:[^()]|\([^()]*\))+:\d+)\)?$", place)
    if found is None:
        return ""
    file, _, line = found.group(1).rpartition(":")
    for folder in _folders():
        if Path(file).is_relative_to(folder):
            return f"{Path(file).relative_to(folder).as_posix()}:{line}"
    return f"{file}:{line}"


def _folders() -> Iterable[Path]:
    """Where files are named from: installed packages, the standard library, the working folder."""
    paths = sysconfig.get_paths()
    return (Path(paths["purelib"]), Path(paths["platlib"]), Path(paths["stdlib"]), Path.cwd())


def _layers_of(reason: FrozenReason) -> list[str]:
    """Modules whose tensors stay, and those that compute without one of them (products of activations)."""
    owners = [module_of(tensor) for tensor, _ in reason.axes]
    computing = [
        layer
        for layer, flops in reason.flops_by_layer.items()
        if flops and layer and not any(owner == layer or owner.startswith(f"{layer}.") for owner in owners)
    ]
    return [*owners, *computing]


def _pattern(members: Sequence[Sequence[str]]) -> str:
    """The common name of layers that differ by numbers alone: parts that differ become ``*``."""
    return ".".join(parts[0] if len(set(parts)) == 1 else "*" for parts in zip(*members, strict=True))
