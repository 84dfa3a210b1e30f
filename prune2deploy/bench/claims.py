"""Verdicts: what a measurement says about a claimed speed-up."""

import enum
from collections.abc import Iterable
from dataclasses import dataclass

from prune2deploy.bench.compare import Interval


class Verdict(enum.StrEnum):
    """What became of a claim."""

    CONFIRMED = "CONFIRMED"
    REFUTED = "REFUTED"
    UNDECIDED = "UNDECIDED"
    INVALID = "INVALID"


_EXIT_CODES = {Verdict.CONFIRMED: 0, Verdict.UNDECIDED: 11, Verdict.REFUTED: 10, Verdict.INVALID: 12}
_SEVERITY = (Verdict.INVALID, Verdict.REFUTED, Verdict.UNDECIDED)


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedClaim:
    """One claim with its verdict.

    ``claim`` is the speed-up against ``against`` that the row should reach. ``asked`` is False where nobody claimed
    it: the one implied by the FLOPs is judged all the same, and changes no exit code.
    """

    claim: float
    variant: str
    engine: str
    precision: str
    batch: int
    verdict: Verdict
    against: str
    asked: bool
    estimate: float
    low: float | None
    high: float | None


def judge(claim: float, interval: Interval, *, control_passed: bool | None) -> Verdict:
    """CONFIRMED if the interval's lower end reaches the claim, REFUTED if its upper end stays below it, else UNDECIDED.

    INVALID where the A/A control failed, whatever the interval says.
    """
    if control_passed is False:
        return Verdict.INVALID
    if interval.low is None or interval.high is None:
        return Verdict.UNDECIDED
    if interval.low >= claim:
        return Verdict.CONFIRMED
    return Verdict.REFUTED if interval.high < claim else Verdict.UNDECIDED


def exit_code(claims: Iterable[JudgedClaim]) -> int:
    """The exit code of the claims that were asked: of several, INVALID (12), REFUTED (10), UNDECIDED (11), else 0."""
    verdicts = {claim.verdict for claim in claims if claim.asked}
    return next((_EXIT_CODES[verdict] for verdict in _SEVERITY if verdict in verdicts), 0)
