"""How a claim of each kind, and what was measured of it, is said in words."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from prune2deploy.bench.claims import kinds as claim_kinds
from prune2deploy.bench.claims.verdicts import JudgedClaim, reason_for
from prune2deploy.report.figures import (
    NOTHING,
    spell_bytes,
    spell_count,
    spell_energy,
    spell_interval,
    spell_latency,
    spell_percent,
    spell_ratio,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """Of one kind: ``clause`` says what was found, or is promised, as ``figure``; ``ends`` spells an interval."""

    label: str
    clause: str
    spell: Callable[[float], str]
    ends: Callable[[float, float], str]


def _ends(spell: Callable[[float], str]) -> Callable[[float, float], str]:
    return lambda low, high: f"{spell(low)} to {spell(high)}"


def _megabytes(figure: float) -> str:
    return spell_bytes(figure * 1e6)


def _millijoules(figure: float) -> str:
    return spell_energy(figure / 1e3)


def _milliseconds(figure: float) -> str:
    return spell_latency(figure * 1e6)


def _points(figure: float) -> str:
    return f"{figure:.1f} points".replace("-", "−")


_KINDS: Mapping[str, Words] = {
    claim_kinds.SPEEDUP: Words(
        label="speed-up",
        clause="{variant} reaches {figure} the speed of {against}",
        spell=spell_ratio,
        ends=spell_interval,
    ),
    claim_kinds.LATENCY: Words(
        label="latency",
        clause="{variant} takes {figure} {percentile}",
        spell=_milliseconds,
        ends=_ends(_milliseconds),
    ),
    claim_kinds.THROUGHPUT: Words(
        label="throughput",
        clause="{variant} takes in {figure}",
        spell=lambda figure: f"{spell_count(figure)} inputs/s",
        ends=_ends(spell_count),
    ),
    claim_kinds.YIELD: Words(
        label="yield",
        clause="{variant} has a yield of {figure}",
        spell=lambda figure: f"{figure:.2f}",
        ends=spell_interval,
    ),
    claim_kinds.ACCURACY: Words(
        label="accuracy",
        clause="{variant} has an accuracy of {figure}",
        spell=spell_percent,
        ends=_ends(spell_percent),
    ),
    claim_kinds.ACCURACY_DROP: Words(
        label="accuracy lost",
        clause="{variant} loses {figure} of accuracy against {against}",
        spell=_points,
        ends=lambda low, high: f"{low:.1f} to {high:.1f}".replace("-", "−"),
    ),
    claim_kinds.SIZE: Words(
        label="file size",
        clause="the file of {variant} takes {figure}",
        spell=_megabytes,
        ends=_ends(_megabytes),
    ),
    claim_kinds.SIZE_FRACTION: Words(
        label="share of file size",
        clause="the file of {variant} takes {figure} of the size of {against}",
        spell=spell_percent,
        ends=_ends(spell_percent),
    ),
    claim_kinds.MEMORY: Words(
        label="memory",
        clause="{variant} takes {figure} of memory",
        spell=_megabytes,
        ends=_ends(_megabytes),
    ),
    claim_kinds.ENERGY: Words(
        label="energy",
        clause="{variant} takes {figure} an input",
        spell=_millijoules,
        ends=_ends(_millijoules),
    ),
}


def claim_label(claim: JudgedClaim) -> str:
    """What a claim is about, for a table: ``latency, p90``."""
    words = _KINDS[claim.kind]
    if claim.kind == claim_kinds.LATENCY and claim.percentile is not None:
        return f"{words.label}, p{claim.percentile}"
    if claim.against is not None and (claim.against_precision or claim.precision) != claim.precision:
        return f"{words.label} against {claim.against} ({claim.against_precision})"
    return words.label if claim.against is None else f"{words.label} against {claim.against}"


def spell_bound(claim: JudgedClaim) -> str:
    """The bound with its direction: ``at least 2.00×``."""
    return f"{'at least' if claim.at_least else 'at most'} {_KINDS[claim.kind].spell(claim.claim)}"


def spell_measured(claim: JudgedClaim) -> str:
    """The figure that was found: ``2.90×``."""
    return NOTHING if claim.estimate is None else _KINDS[claim.kind].spell(claim.estimate)


def spell_ends(claim: JudgedClaim) -> str:
    """The ends of its interval: ``2.80 to 3.00``; ``exact`` where it has no length."""
    if claim.low is None or claim.high is None:
        return NOTHING
    exact = claim.confidence is None and claim.low == claim.high
    return "exact" if exact else _KINDS[claim.kind].ends(claim.low, claim.high)


def promise(claim: JudgedClaim) -> str:
    """What was claimed: ``pruned reaches at least 2.00× the speed of dense``."""
    return _clause(claim, spell_bound(claim))


def finding(claim: JudgedClaim) -> str:
    """What was found: ``pruned reaches 2.90× (2.80 to 3.00) the speed of dense``."""
    interval = spell_ends(claim)
    shown = interval not in (NOTHING, "exact")
    return _clause(claim, f"{spell_measured(claim)} ({interval})" if shown else spell_measured(claim))


def verdict_line(claim: JudgedClaim) -> str:
    """One line for a terminal: the verdict, what was claimed and measured, and the reason where that is not plain."""
    name = "" if claim.name is None else f"{claim.name}: "
    precision = "" if claim.precision == "fp32" else f"{claim.precision}, "
    batch = "" if claim.batch is None else f"batch {claim.batch} "
    setting = f"at {precision}{batch}".rstrip(" ,") + " " if precision or batch else ""
    asked = "claimed" if claim.asked else "implied by the FLOPs"
    measured = "not measured" if claim.estimate is None else f"measured {spell_measured(claim)}"
    interval = spell_ends(claim)
    spelled = "" if interval in (NOTHING, "exact") else f", interval {interval}"
    why = f": {reason(claim)}" if claim.low is None or claim.verdict.value == "INVALID" else ""
    return f"{claim.verdict}: {name}{promise(claim)} {setting}on {claim.engine} ({asked}); {measured}{spelled}{why}"


def reason(claim: JudgedClaim) -> str:
    """Why the verdict is what it is; results written before claims had kinds do not say it themselves."""
    if claim.reason:
        return claim.reason
    if claim.low is None and claim.verdict.value == "UNDECIDED":
        return "too few builds were measured for an interval"
    return reason_for(claim.verdict, at_least=claim.at_least)


def _clause(claim: JudgedClaim, figure: str) -> str:
    against = claim.against or ""
    if (claim.against_precision or claim.precision) != claim.precision:
        against = f"{against} at {claim.against_precision}"
    percentile = "in the median" if claim.percentile in (None, 50) else f"at the {claim.percentile}th percentile"
    return _KINDS[claim.kind].clause.format(
        variant=claim.variant, figure=figure, against=against, percentile=percentile
    )
