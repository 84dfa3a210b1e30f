"""Two measurements of one machine class, compared: is a variant still as much faster than its dense model as it was?

The two were not interleaved: between them the machine warmed up, was restarted or got another neighbour. So latencies
are never set against each other. What is compared is each variant's speed-up against its *own* measurement's dense
model, which met the same conditions minutes apart or less.
"""

import enum
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from prune2deploy.bench.compare import log_ratios
from prune2deploy.bench.result import BenchResult, Row
from prune2deploy.bench.subjects import MINIMUM_BUILDS_FOR_AN_INTERVAL, BenchRequest
from prune2deploy.errors import InputError

CONFIDENCE = 0.95
DEFAULT_TOLERANCE = 0.01
EXIT_INVALID, EXIT_SLOWER = 12, 13

Key = tuple[str, str, str, int]
"""Variant, engine, precision and batch: what a row is known by."""

_GIB = 2**30


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What two measurements must have in common to be compared, and what may differ between them.

    ``shapes`` are those of inputs, where they were given; ``keys`` the rows.
    """

    environment: Mapping[str, Any]
    scenario: str
    baseline: str
    keys: tuple[Key, ...]
    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, result: BenchResult) -> "Conditions":
        """Those of a measurement that was made."""
        return cls(
            environment=result.environment,
            # Results that were made before there were scenarios say nothing of them.
            scenario=str(result.protocol.get("scenario", "batches")),
            baseline=result.baseline,
            keys=tuple(_key(row) for row in result.rows),
            shapes={name: tuple(shape) for name, shape in (result.protocol.get("shapes") or {}).items()},
        )

    @classmethod
    def planned(cls, request: BenchRequest, environment: Mapping[str, Any]) -> "Conditions":
        """Those of a measurement that is about to be made; its engine must have been chosen."""
        return cls(
            environment=environment,
            scenario=request.options.scenario,
            baseline=request.baseline,
            keys=tuple(
                (subject.variant, request.engine, subject.precision, batch)
                for subject in request.subjects
                for batch in request.batches
            ),
            shapes=request.shapes,
        )


def compare_results(
    before: BenchResult, after: BenchResult, *, tolerance: float = DEFAULT_TOLERANCE, where: str = "compare"
) -> Comparison:
    """The change of every speed-up that both measurements have.

    The logarithms of each build's ratio baseline / variant are taken as a sample of each measurement; the difference of
    their means has Welch's interval, mapped back to a ratio. All builds count alike: a measurement that fixed their
    number by Stein's procedure has an interval of its own for its speed-ups (its variance is the pilot's alone), which
    is not used here. With several rows the p values are adjusted as Benjamini and Hochberg do, so that two measurements
    of the same thing are told apart at most one time in twenty, however many rows they have.

    A row is SLOWER or FASTER where the adjusted p value is at most 0.05 **and** the estimate is off by more than
    ``tolerance``; SAME where its whole interval lies within the tolerance; else UNDECIDED. INVALID where the A/A
    control of its setting failed, or too much was disturbed, in either measurement.

    Raises:
        InputError: they are of different machines, threads, scenarios, shapes or baselines, or have no row in common.
    """
    require_comparable(Conditions.of(before), Conditions.of(after), where=where)
    first, second = _by_key(before), _by_key(after)
    shared = [key for key in second if key in first]
    invalid = failed_settings(before) | failed_settings(after)
    welches = {
        key: _welch(_log_ratios(before, first[key], where), _log_ratios(after, second[key], where))
        for key in shared
        if key[0] != after.baseline
    }
    adjusted = _adjusted({key: welch.p_value for key, welch in welches.items() if welch.p_value is not None})
    changes = []
    for key, welch in welches.items():
        p_value = adjusted.get(key)
        old, new = first[key], second[key]
        changes.append(
            Change(
                variant=new.variant,
                engine=new.engine,
                precision=new.precision,
                batch=new.batch,
                before=welch.before,
                after=welch.after,
                estimate=welch.estimate,
                low=welch.low,
                high=welch.high,
                confidence=CONFIDENCE,
                p_value=p_value,
                builds_before=len(old.build_medians_ns),
                builds_after=len(new.build_medians_ns),
                same_file=old.sha256 == new.sha256,
                outcome=Outcome.INVALID if key[1:] in invalid else _outcome(welch, p_value, tolerance),
            )
        )
    return Comparison(
        tolerance=tolerance,
        changes=tuple(changes),
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


def require_comparable(before: Conditions, after: Conditions, *, where: str) -> None:
    """Refuse what cannot be compared, naming what differs.

    Raises:
        InputError: the machines, threads, scenarios, shapes or baselines differ, or no row is shared.
    """
    machines = [conditions.environment.get("machine_class") for conditions in (before, after)]
    if not all(machines):
        raise InputError("a result does not say which machine it is of", where=where, hint="measure it again")
    if machines[0] != machines[1]:
        raise InputError(
            f"the results are of different machines ({_machine_difference(before.environment, after.environment)})",
            where=where,
            hint="compare results of one machine class",
        )
    must_agree = {
        "numbers of threads": (before.environment.get("threads"), after.environment.get("threads")),
        "scenarios": (before.scenario, after.scenario),
        "base variants": (before.baseline, after.baseline),
        "input shapes": (_spelled_shapes(before.shapes), _spelled_shapes(after.shapes)),
    }
    for name, (old, new) in must_agree.items():
        if old != new:
            raise InputError(
                f"the results have different {name} ({old} before, {new} after)",
                where=where,
                hint="measure again in the same way",
            )
    if not {key for key in before.keys if key[0] != before.baseline} & set(after.keys):
        raise InputError(
            f"the results share no variant, engine, precision and batch (before: {_spelled_keys(before)}; "
            f"after: {_spelled_keys(after)})",
            where=where,
            hint="measure the same variants on the same engine",
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Welch:
    before: float
    after: float
    estimate: float
    low: float | None
    high: float | None
    p_value: float | None


def _welch(before: Sequence[float], after: Sequence[float]) -> _Welch:
    """The difference of two means of logarithms as a ratio. Shape: (builds,), (other builds,)."""
    centres = math.exp(float(np.mean(before))), math.exp(float(np.mean(after)))
    shift = float(np.mean(after) - np.mean(before))
    low = high = p_value = None
    if min(len(before), len(after)) >= MINIMUM_BUILDS_FOR_AN_INTERVAL:
        if np.ptp(before) == np.ptp(after) == 0:
            # Welch's degrees of freedom are not defined without any spread.
            low, high, p_value = shift, shift, float(shift == 0)
        else:
            test = stats.ttest_ind(after, before, equal_var=False)
            interval = test.confidence_interval(CONFIDENCE)
            low, high, p_value = float(interval.low), float(interval.high), float(test.pvalue)
    return _Welch(
        before=centres[0],
        after=centres[1],
        estimate=math.exp(shift),
        low=None if low is None else math.exp(low),
        high=None if high is None else math.exp(high),
        p_value=p_value,
    )


def _adjusted(p_values: Mapping[Key, float]) -> dict[Key, float]:
    if not p_values:
        return {}
    adjusted = stats.false_discovery_control(list(p_values.values()), method="bh")
    return {key: float(value) for key, value in zip(p_values, adjusted, strict=True)}


def _outcome(welch: _Welch, p_value: float | None, tolerance: float) -> Outcome:
    if p_value is None or welch.low is None or welch.high is None:
        return Outcome.UNDECIDED
    if p_value <= 1 - CONFIDENCE and abs(welch.estimate - 1) > tolerance:
        return Outcome.SLOWER if welch.estimate < 1 else Outcome.FASTER
    within = welch.low >= 1 - tolerance and welch.high <= 1 + tolerance
    return Outcome.SAME if within else Outcome.UNDECIDED


def _log_ratios(result: BenchResult, row: Row, where: str) -> list[float]:
    """The logarithm of baseline over variant in each build."""
    dense = _by_key(result).get((result.baseline, row.engine, row.precision, row.batch))
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


def _by_key(result: BenchResult) -> dict[Key, Row]:
    return {_key(row): row for row in result.rows}


def _key(row: Row) -> Key:
    return row.variant, row.engine, row.precision, row.batch


def _key_from(values: Sequence[Any]) -> Key:
    variant, engine, precision, batch = values
    return str(variant), str(engine), str(precision), int(batch)


def _machine_difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """What differs between two machines, in words; both as they call themselves where no single fact does."""
    facts = list(zip(_machine_facts(before), _machine_facts(after), strict=True))
    told = [f"{name} {old} before, {new} after" for (name, old), (_, new) in facts if old != new]
    return "; ".join(told) or f"{before['machine_class']} before, {after['machine_class']} after"


def _machine_facts(environment: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield "CPU:", environment.get("cpu")
    allowed = environment.get("cpus_allowed")
    yield "number of CPUs:", len(allowed) if allowed else environment.get("cores_logical")
    memory = environment.get("memory_bytes")
    yield "memory:", f"{memory / _GIB:.0f} GiB" if isinstance(memory, int | float) else None
    yield "GPU:", environment.get("gpu") or "none"
    yield "architecture:", environment.get("architecture")


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """What may differ between two measurements of one machine class, and may be the reason for a change."""
    facts = [{name: one.get(name) for name in ("os", "frequency_governor")} for one in (before, after)]
    old, new = ({**one.get("versions", {}), **fact} for one, fact in zip((before, after), facts, strict=True))
    return {
        name: (str(old.get(name, "absent")), str(new.get(name, "absent")))
        for name in dict.fromkeys([*old, *new])
        if old.get(name) != new.get(name)
    }


def _spelled_shapes(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name}={'x'.join(map(str, shape))}" for name, shape in sorted(shapes.items())) or "none given"


def _spelled_keys(conditions: Conditions) -> str:
    keys = [key for key in conditions.keys if key[0] != conditions.baseline]
    shown = ", ".join(
        f"{variant} on {engine} at {precision}, batch {batch}" for variant, engine, precision, batch in keys
    )
    return shown or f"{conditions.baseline} alone"
