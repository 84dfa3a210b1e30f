"""Where the speed went: what a variant takes beyond its share of the FLOPs, split by cause. Pure.

The definition, and why it is this one: ``docs/decisions/0022-where-the-speed-went.md``.
"""

import enum
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from prune2deploy.bench.aside.profile import SLOWED_ABOVE, Kind, Product, Profile, ProfiledLayer
from prune2deploy.bench.result import Row
from prune2deploy.errors import InputError


class Cause(enum.StrEnum):
    """Why removed FLOPs were not paid out as time."""

    MISALIGNED = "misaligned"
    RATE = "rate"
    PLACEMENT = "placement"
    MEMORY = "memory"
    REFORMAT = "reformat"
    BETWEEN = "between"
    OTHER = "other"


CAUSES_IN_WORDS: Mapping[Cause, str] = {
    Cause.MISALIGNED: "misaligned widths",
    Cause.RATE: "smaller layers' lower rate",
    Cause.PLACEMENT: "FLOPs removed where cheap",
    Cause.MEMORY: "memory-bound layers",
    Cause.REFORMAT: "reformatting",
    Cause.BETWEEN: "time between the layers",
    Cause.OTHER: "layers of unknown work",
}

_GAINS_IN_WORDS: Mapping[Cause, str] = {
    Cause.MISALIGNED: "better aligned widths",
    Cause.RATE: "smaller layers' higher rate",
    Cause.PLACEMENT: "FLOPs removed where dear",
    Cause.MEMORY: "memory-bound layers that shrank more than the FLOPs",
    Cause.REFORMAT: "less reformatting",
    Cause.BETWEEN: "less time between the layers",
    Cause.OTHER: "layers of unknown work",
}
_WORTH_A_WORD = 0.01
_CAUSE_OF_KIND = {Kind.MEMORY: Cause.MEMORY, Kind.REFORMAT: Cause.REFORMAT, Kind.OTHER: Cause.OTHER}


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribution:
    """The time of a variant beyond its share of the FLOPs, by cause.

    ``losses`` are shares of the variant's time and sum to 1 - yield; a negative one is a gain: the variant spends less
    there than its FLOPs would have it. ``padded`` is the share of its time that goes into padding, which
    ``Cause.MISALIGNED`` compares with that of dense. ``notes`` say what could not be told.
    """

    against: str
    flops_fraction: float
    speedup: float
    losses: Mapping[Cause, float]
    padded: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def flop_yield(self) -> float:
        """The speed-up times the FLOPs kept: 1 where every FLOP removed was paid out as time."""
        return self.speedup * self.flops_fraction

    @property
    def falling(self) -> list[tuple[Cause, float]]:
        """The causes with their losses, the largest first."""
        return sorted(self.losses.items(), key=lambda item: -item[1])

    def to_document(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            **asdict(self),
            "yield": self.flop_yield,
            "losses": {cause.value: share for cause, share in self.losses.items()},
            "notes": list(self.notes),
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "Attribution":
        """From the JSON object that ``to_document`` made.

        Raises:
            InputError: it is damaged.
        """
        try:
            return cls(
                against=document["against"],
                flops_fraction=document["flops_fraction"],
                speedup=document["speedup"],
                losses={Cause(name): float(share) for name, share in document["losses"].items()},
                padded=float(document["padded"]),
                notes=tuple(document["notes"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"the profile is damaged ({error})", hint="measure again with --profile") from error


def with_attributions(rows: Sequence[Row], baseline: str) -> list[Row]:
    """The rows, with what became of the speed added to the profile of each that can be compared with the baseline's."""
    bases = {_setting(row): row for row in rows if row.variant == baseline}
    return [_attributed(row, bases.get(_setting(row))) for row in rows]


def attribution_of(row: Row) -> Attribution | None:
    """What ``with_attributions`` added to a row; None where there is nothing."""
    document = (row.profile or {}).get("attribution")
    return None if document is None else Attribution.from_document(document)


def attribute(
    variant: Profile, dense: Profile, *, flops_fraction: float, speedup: float, against: str = "dense"
) -> Attribution:
    """Split 1 - yield by cause.

    With T the time of the variant as 1, the dense model takes ``speedup``, and would take ``flops_fraction`` of that
    if time followed FLOPs. Of every part of the run (layers by what bounds them, and what lies between the layers) the
    excess is its time in the variant minus ``flops_fraction`` times its time in dense; these sum to 1 - yield. Layers
    of one node are counted under one cause in both, that of the variant. The excess of computing layers is split:

    - placement: with f the FLOPs kept in the layer, (f - ``flops_fraction``) times its time in dense;
    - misaligned: the share of its time that goes into the padding of widths that differ from dense, up to the next
      multiple of the granule (in the variant, minus f times that in dense);
    - rate: the rest, what the layer takes beyond f times its time in dense.
    """
    timed = list(zip(variant.layers, variant.shares, strict=True))
    timed_dense = [(layer, speedup * share) for layer, share in zip(dense.layers, dense.shares, strict=True)]
    pairs, alone, gone = _paired(timed, timed_dense)
    replaced = any(layer.kind is Kind.COMPUTE for layer, _ in alone)
    parts = [
        *(part for pair in pairs for part in _pair_losses(*pair, flops_fraction, variant.granule)),
        *((_CAUSE_OF_KIND.get(layer.kind, Cause.RATE), share) for layer, share in alone),
        # A computing layer that is gone had its FLOPs removed; one that others have replaced had not.
        *(
            (_CAUSE_OF_KIND.get(layer.kind, Cause.RATE if replaced else Cause.PLACEMENT), -flops_fraction * share)
            for layer, share in gone
        ),
        (Cause.BETWEEN, variant.between - flops_fraction * speedup * dense.between),
    ]
    losses = {cause: math.fsum(share for found, share in parts if found is cause) for cause in Cause}
    return Attribution(
        against=against,
        flops_fraction=flops_fraction,
        speedup=speedup,
        losses=losses,
        padded=math.fsum(
            padding(layer, other, variant.granule) * share
            for (layer, share), (other, _) in pairs
            if layer.kind is Kind.COMPUTE
        ),
        notes=tuple(_notes(variant, dense, sum(layer.kind is Kind.COMPUTE for layer, _ in alone), against)),
    )


_Timed = tuple[ProfiledLayer, float]


def _paired(
    variant: Sequence[_Timed], dense: Sequence[_Timed]
) -> tuple[list[tuple[_Timed, _Timed]], list[_Timed], list[_Timed]]:
    """Layers of one node in both, those of the variant alone, and those of dense alone. The shares are of one time."""
    waiting = {node: number for number, (layer, _) in enumerate(dense) if (node := leading_node(layer)) is not None}
    pairs, alone = [], []
    for part in variant:
        number = waiting.pop(leading_node(part[0]) or "", None)
        if number is None:
            alone.append(part)
        else:
            pairs.append((part, dense[number]))
    taken = {id(other) for _, other in pairs}
    return pairs, alone, [part for part in dense if id(part) not in taken]


def leading_node(layer: ProfiledLayer) -> str | None:
    """The node that a layer is known by: that of most FLOPs, else its first one, None for what the engine put in."""
    if layer.products:
        return max(layer.products, key=lambda product: product.flops).node
    return layer.nodes[0] if layer.nodes else None


def _pair_losses(
    part: _Timed, part_dense: _Timed, flops_fraction: float, granule: int | None
) -> Iterator[tuple[Cause, float]]:
    (layer, share), (dense, share_dense) = part, part_dense
    if layer.kind is not Kind.COMPUTE:
        yield _CAUSE_OF_KIND[layer.kind], share - flops_fraction * share_dense
        return
    kept = layer.flops / dense.flops if dense.flops else 0.0
    misaligned = padding(layer, dense, granule) * share - kept * padding(dense, layer, granule) * share_dense
    yield Cause.MISALIGNED, misaligned
    yield Cause.RATE, share - kept * share_dense - misaligned
    yield Cause.PLACEMENT, (kept - flops_fraction) * share_dense


def padding(layer: ProfiledLayer, other: ProfiledLayer, granule: int | None) -> float:
    """The share of padding in the FLOPs of a layer whose widths are filled up to multiples of the granule, in [0, 1).

    Only widths that differ from those of the other variant are filled up: an image has three channels and a task its
    classes whatever is pruned. Of grouped convolutions the width of all groups together is filled up.
    """
    if granule is None or not layer.flops:
        return 0.0
    others = {product.node: product for product in other.products}
    padded = sum(product.flops * _filled_up(product, others.get(product.node), granule) for product in layer.products)
    return 1 - layer.flops / padded


def _filled_up(product: Product, other: Product | None, granule: int) -> float:
    """The FLOPs of a product with its widths filled up, over those that it has."""
    if other is None:
        return 1.0
    widths = [(product.output_width, other.output_width)]
    if product.groups == 1:
        widths.append((product.input_width, other.input_width))
    return math.prod(
        math.ceil(width / granule) * granule / width for width, other_width in widths if width != other_width
    )


def _notes(variant: Profile, dense: Profile, unpaired: int, against: str) -> Iterator[str]:
    if variant.granule is None:
        yield "which widths this engine likes is not known: misaligned ones count as smaller layers"
    for name, profile in (("the variant", variant), (against, dense)):
        if profile.overhead > SLOWED_ABOVE:
            yield f"the profiler slows {name} down by {profile.overhead - 1:.0%}: shares are shares of profiled time"
        if profile.profiled_ns is None and profile.between == 0:
            yield f"what lies between the layers of {name} is lost in the cost of profiling"
    if unpaired:
        yield f"{unpaired} computing layers have no counterpart of the same name in {against}"


def _setting(row: Row) -> tuple[str, str, int]:
    return row.engine, row.precision, row.batch


def _attributed(row: Row, base: Row | None) -> Row:
    if base is None or row is base or row.profile is None or base.profile is None:
        return row
    variant, dense = Profile.from_document(row.profile), Profile.from_document(base.profile)
    kept = row.flops_fraction
    if kept is None and variant.flops and dense.flops:
        kept = variant.flops / dense.flops
    interval = row.speedup_against(base.variant)
    if kept is None or interval is None:
        return row
    found = attribute(variant, dense, flops_fraction=kept, speedup=interval.estimate, against=base.variant)
    return replace(row, profile={**row.profile, "attribution": found.to_document()})


def in_words(found: Attribution) -> str:
    """One sentence: the yield, and where at least a hundredth of the time went, the largest part first."""
    lost = [f"{share:.0%} {CAUSES_IN_WORDS[cause]}" for cause, share in found.falling if share >= _WORTH_A_WORD]
    gained = [f"{-share:.0%} {_GAINS_IN_WORDS[cause]}" for cause, share in found.falling if share <= -_WORTH_A_WORD]
    parts = [f"lost to {', '.join(lost)}"] if lost else []
    parts += [f"gained by {', '.join(reversed(gained))}"] if gained else []
    rest = f": of its time {'; '.join(parts)}" if parts else ""
    return f"yield {found.flop_yield:.2f}{rest}"
