"""Two measurements of one machine class, compared: is a variant still as much faster than its dense model as it was?

The two were not interleaved: between them the machine warmed up, was restarted or got another neighbour. So latencies
are never set against each other. What is compared is each variant's speed-up against its *own* measurement's dense
model, which met the same conditions minutes apart or less.
"""

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from prune2deploy.bench.across.comparable import Conditions, Key, require_comparable, rows_by_key
from prune2deploy.bench.result import BenchResult, Row
from prune2deploy.bench.statistics.intervals import log_ratios
from prune2deploy.bench.statistics.welch import Shift, mean_shift
from prune2deploy.errors import InputError

CONFIDENCE = 0.95
DEFAULT_TOLERANCE = 0.01
EXIT_INVALID, EXIT_SLOWER = 12, 13


class Outcome(enum.StrEnum):
    """What became of a speed-up. SAME: the whole interval lies within the tolerance."""

    FASTER = "faster"
    SLOWER = "slower"
    SAME = "same"
    UNDECIDED = "undecided"
    INVALID = "INVALID"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One row that both measurements have.

    ``before`` and ``after`` are its speed-ups against the baseline of their own measurement. ``estimate`` is ``after``
    over ``before``, below 1 where it became slower, with an interval at ``confidence`` (``low`` and ``high`` are None
    with fewer than three builds on either side). ``p_value`` is that of Welch's test for no change, adjusted for the
    number of rows. ``same_file``: both measured the same bytes, so that the engine or the machine changed, and not the
    network.
    """

    variant: str
    engine: str
    precision: str
    batch: int
    before: float
    after: float
    estimate: float
    low: float | None
    high: float | None
    confidence: float
    p_value: float | None
    builds_before: int
    builds_after: int
    same_file: bool
    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineLatency:
    """Median latencies of the baseline variant, side by side: they tell of the conditions, and decide nothing."""

    variant: str
    engine: str
    precision: str
    batch: int
    before_ns: float
    after_ns: float
    same_file: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All that two measurements say about each other.

    ``only_before`` and ``only_after`` are rows that the other one lacks. ``differences`` maps what differs between
    the two, and may be why a speed-up changed (versions above all), to both values. ``tolerance`` is the relative
    change up to which rows count as the same.
    """

    tolerance: float
    changes: tuple[Change, ...]
    baselines: tuple[BaselineLatency, ...]
    only_before: tuple[Key, ...] = ()
    only_after: tuple[Key, ...] = ()
    differences: Mapping[str, tuple[str, str]]

    @property
    def exit_code(self) -> int:
        """What ``p2d bench --baseline`` leaves with on account of this: 12 (INVALID), 13 (slower) or 0."""
        return exit_code(self.changes)

    def to_document(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            **asdict(self),
            "changes": [{**asdict(change), "outcome": change.outcome.value} for change in self.changes],
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any], *, where: str) -> "Comparison":
        """From the JSON object that ``to_document`` made; fields that it does not know are passed over.

        Raises:
            InputError: the document is damaged.
        """
        try:
            return cls(
                tolerance=float(document["tolerance"]),
                changes=tuple(
                    Change(**{**change, "outcome": Outcome(change["outcome"])}) for change in document["changes"]
                ),
                baselines=tuple(BaselineLatency(**one) for one in document["baselines"]),
                only_before=tuple(_key_from(key) for key in document["only_before"]),
                only_after=tuple(_key_from(key) for key in document["only_after"]),
                differences={name: (values[0], values[1]) for name, values in document["differences"].items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise InputError(
                f"the comparison with the baseline is damaged ({error})", where=where, hint="run `p2d bench` again"
            ) from error


def compare_results(
    before: BenchResult, after: BenchResult, *, tolerance: float = DEFAULT_TOLERANCE, where: str = "compare"
) -> Comparison:
    """The change of every speed-up that both measurements have.

    The logarithms of each build's ratio baseline / variant are taken as a sample of each measurement; the difference of
    their means has Welch's interval, mapped back to a ratio. Where a pilot asked for more builds, their spread is
    biased, because their number depends on it; then the interval is at least as wide as that of the pilots' spreads
    (Stein 1945) with the fewer of their degrees of freedom. With several rows the p values are adjusted as Benjamini
    and Hochberg do, so that two measurements of the same thing are told apart at most one time in twenty, however many
    rows they have.

    A row is SLOWER or FASTER where the adjusted p value is at most 0.05 **and** the estimate is off by more than
    ``tolerance``; SAME where its whole interval lies within the tolerance; else UNDECIDED. INVALID where the A/A
    control of its setting failed, or too much was disturbed, in either measurement.

    Raises:
        InputError: they are of different machines, threads, scenarios, shapes or baselines, or have no row in common.
    """
    require_comparable(Conditions.of(before), Conditions.of(after), where=where)
    first, second = rows_by_key(before), rows_by_key(after)
    shared = [key for key in second if key in first]
    compared = [key for key in shared if key[0] != after.baseline]
    logs = {key: (_log_ratios(before, first[key], where), _log_ratios(after, second[key], where)) for key in compared}
    pilots = before.protocol.get("pilot_builds"), after.protocol.get("pilot_builds")
    shifts = {key: mean_shift(*pair, confidence=CONFIDENCE, pilots=pilots) for key, pair in logs.items()}
    adjusted = _adjusted({key: shift.p_value for key, shift in shifts.items() if shift.p_value is not None})
    invalid = failed_settings(before) | failed_settings(after)
    return Comparison(
        tolerance=tolerance,
        changes=tuple(
            _change(first[key], second[key], logs[key], shifts[key], adjusted.get(key), key[1:] in invalid, tolerance)
            for key in compared
        ),
        baselines=tuple(
            BaselineLatency(
                variant=key[0],
                engine=key[1],
                precision=key[2],
                batch=key[3],
                before_ns=first[key].latency_ns.p50,
                after_ns=second[key].latency_ns.p50,
                same_file=first[key].sha256 == second[key].sha256,
            )
            for key in shared
            if key[0] == after.baseline
        ),
        only_before=tuple(key for key in first if key not in second),
        only_after=tuple(key for key in second if key not in first),
        differences=_differences(before.environment, after.environment),
    )


def failed_settings(result: BenchResult) -> set[tuple[str, str, int]]:
    """The (engine, precision, batch) whose A/A control failed, or that were disturbed too much."""
    return {(control.engine, control.precision, control.batch) for control in result.controls if control.valid is False}


def exit_code(changes: Sequence[Change]) -> int:
    """12 where a row is INVALID, 13 where one became slower, else 0; what cannot be decided passes."""
    outcomes = {change.outcome for change in changes}
    if Outcome.INVALID in outcomes:
        return EXIT_INVALID
    return EXIT_SLOWER if Outcome.SLOWER in outcomes else 0


def _change(
    old: Row,
    new: Row,
    logs: tuple[list[float], list[float]],
    shift: Shift,
    p_value: float | None,
    invalid: bool,
    tolerance: float,
) -> Change:
    ratios = [None if end is None else math.exp(end) for end in (shift.low, shift.high)]
    estimate = math.exp(shift.estimate)
    return Change(
        variant=new.variant,
        engine=new.engine,
        precision=new.precision,
        batch=new.batch,
        before=math.exp(float(np.mean(logs[0]))),
        after=math.exp(float(np.mean(logs[1]))),
        estimate=estimate,
        low=ratios[0],
        high=ratios[1],
        confidence=CONFIDENCE,
        p_value=p_value,
        builds_before=len(logs[0]),
        builds_after=len(logs[1]),
        same_file=old.sha256 == new.sha256,
        outcome=Outcome.INVALID if invalid else _outcome(estimate, ratios[0], ratios[1], p_value, tolerance),
    )


def _outcome(
    estimate: float, low: float | None, high: float | None, p_value: float | None, tolerance: float
) -> Outcome:
    if p_value is None or low is None or high is None:
        return Outcome.UNDECIDED
    if p_value <= 1 - CONFIDENCE and abs(estimate - 1) > tolerance:
        return Outcome.SLOWER if estimate < 1 else Outcome.FASTER
    return Outcome.SAME if low >= 1 - tolerance and high <= 1 + tolerance else Outcome.UNDECIDED


def _adjusted(p_values: Mapping[Key, float]) -> dict[Key, float]:
    if not p_values:
        return {}
    adjusted = stats.false_discovery_control(list(p_values.values()), method="bh")
    return {key: float(value) for key, value in zip(p_values, adjusted, strict=True)}


def _log_ratios(result: BenchResult, row: Row, where: str) -> list[float]:
    """The logarithm of baseline over variant in each build."""
    dense = rows_by_key(result).get((result.baseline, row.engine, row.precision, row.batch))
    if dense is None:
        raise InputError(
            f"{row.variant} has no {result.baseline} beside it at {row.precision}, batch {row.batch}",
            where=where,
            hint="run `p2d bench` again",
        )
    try:
        return [float(ratio) for ratio in log_ratios(dense.build_medians_ns, row.build_medians_ns)]
    except InputError as error:
        raise InputError(error.what, where=where, hint="run `p2d bench` again") from error


def _key_from(values: Sequence[Any]) -> Key:
    variant, engine, precision, batch = values
    return str(variant), str(engine), str(precision), int(batch)


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """What may differ between two measurements of one machine class, and may be the reason for a change."""
    facts = [{name: one.get(name) for name in ("os", "frequency_governor")} for one in (before, after)]
    old, new = ({**one.get("versions", {}), **fact} for one, fact in zip((before, after), facts, strict=True))
    return {
        name: (str(old.get(name, "absent")), str(new.get(name, "absent")))
        for name in dict.fromkeys([*old, *new])
        if old.get(name) != new.get(name)
    }
