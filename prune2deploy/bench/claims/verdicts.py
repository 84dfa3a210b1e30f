"""Verdicts: what a measurement says about a claim, and the exit code that follows."""

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from prune2deploy.bench.claims.kinds import SPEEDUP


class Verdict(enum.StrEnum):
    """What became of a claim."""

    CONFIRMED = "CONFIRMED"
    REFUTED = "REFUTED"
    UNDECIDED = "UNDECIDED"
    INVALID = "INVALID"


_EXIT_CODES = {Verdict.CONFIRMED: 0, Verdict.UNDECIDED: 11, Verdict.REFUTED: 10, Verdict.INVALID: 12}
_SEVERITY = (Verdict.INVALID, Verdict.REFUTED, Verdict.UNDECIDED)


class Bounds(Protocol):
    """An interval; None where there is none."""

    @property
    def low(self) -> float | None:
        """Its lower end."""

    @property
    def high(self) -> float | None:
        """Its upper end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedClaim:
    """One claim with its verdict, for one variant, engine and precision, and for one batch size where it has one.

    ``claim`` is the bound in the ``unit`` of its ``kind`` (``claim_kinds.KINDS``), a lower one if ``at_least``: for
    instance the speed-up against ``against`` that the row should reach. ``asked`` is False where nobody claimed it: the
    one implied by the FLOPs is judged all the same, and changes no exit code. ``estimate`` is None where it was not
    measured; ``low`` and ``high`` at ``confidence`` where there is no interval, and both the estimate where the figure
    is exact. ``reason`` says in words why the verdict is what it is.
    """

    claim: float
    variant: str
    engine: str
    precision: str
    batch: int | None
    verdict: Verdict
    against: str | None
    asked: bool
    estimate: float | None
    low: float | None
    high: float | None
    kind: str = SPEEDUP
    unit: str = ""
    at_least: bool = True
    percentile: int | None = None
    against_precision: str | None = None
    confidence: float | None = None
    name: str | None = None
    reason: str = ""


def judge(claim: float, interval: Bounds, *, control_passed: bool | None, at_least: bool = True) -> Verdict:
    """CONFIRMED if the whole interval keeps to the claim, REFUTED if all of it breaks the claim, else UNDECIDED.

    INVALID where the A/A control failed, whatever the interval says.
    """
    if control_passed is False:
        return Verdict.INVALID
    if interval.low is None or interval.high is None:
        return Verdict.UNDECIDED
    if interval.low >= claim if at_least else interval.high <= claim:
        return Verdict.CONFIRMED
    return Verdict.REFUTED if (interval.high < claim if at_least else interval.low > claim) else Verdict.UNDECIDED


def reason_for(verdict: Verdict, *, at_least: bool = True, exact: bool = False) -> str:
    """Why a verdict is what it is, where the interval alone decided."""
    figure = "the figure is exact, and" if exact else "the whole interval"
    return {
        Verdict.CONFIRMED: f"{figure} {'reaches it' if at_least else 'lies within it'}",
        Verdict.REFUTED: f"{figure} lies {'below' if at_least else 'above'} it",
        Verdict.UNDECIDED: "the interval is too wide to tell",
        Verdict.INVALID: "two copies of one model differed, so this measurement proves nothing",
    }[verdict]


def exit_code(claims: Iterable[JudgedClaim]) -> int:
    """The exit code of the claims that were asked: of several, INVALID (12), REFUTED (10), UNDECIDED (11), else 0."""
    verdicts = {claim.verdict for claim in claims if claim.asked}
    return next((_EXIT_CODES[verdict] for verdict in _SEVERITY if verdict in verdicts), 0)
