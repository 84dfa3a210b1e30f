"""Whether two measurements can be compared: what they must have in common, and what a row of each is known by."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prune2deploy.bench.result import BenchResult, Row
from prune2deploy.bench.subjects import BenchRequest
from prune2deploy.errors import InputError

Key = tuple[str, str, str, int]
"""Variant, engine, precision and batch: what a row is known by."""

_GIB = 2**30


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
            keys=tuple(key_of(row) for row in result.rows),
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


def rows_by_key(result: BenchResult) -> dict[Key, Row]:
    """The rows of a result by what they are known by."""
    return {key_of(row): row for row in result.rows}


def key_of(row: Row) -> Key:
    """What a row is known by."""
    return row.variant, row.engine, row.precision, row.batch


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


def _spelled_shapes(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name}={'x'.join(map(str, shape))}" for name, shape in sorted(shapes.items())) or "none given"


def _spelled_keys(conditions: Conditions) -> str:
    keys = [key for key in conditions.keys if key[0] != conditions.baseline]
    shown = ", ".join(
        f"{variant} on {engine} at {precision}, batch {batch}" for variant, engine, precision, batch in keys
    )
    return shown or f"{conditions.baseline} alone"
