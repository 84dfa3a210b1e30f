"""How a measurement was made: what was asked for, what was reached, and which rounds do not count."""

from collections.abc import Iterator, Mapping
from typing import Any

from prune2deploy.bench.result import BenchResult
from prune2deploy.bench.subjects import SCENARIOS
from prune2deploy.report.figures import spell_percent
from prune2deploy.report.table import Table

_LISTED_ROUNDS = 200


def protocol_tables(result: BenchResult) -> tuple[Table, ...]:
    """How it was measured, and the disturbed rounds."""
    return protocol_table(result), disturbed_table(result)


def protocol_table(result: BenchResult) -> Table:
    """One row for each choice that bears on how far the figures can be trusted; what is not known is left out."""
    return Table(
        key="protocol",
        title="How it was measured",
        columns=("what", "value"),
        rows=tuple(_facts(result.protocol)),
        note="A build is a fresh process with fresh engines. Intervals rest on builds, not on single runs.",
    )


def disturbed_table(result: BenchResult) -> Table:
    """One row for each round that was dropped, for all variants, on signals of the machine alone."""
    rows = [
        (str(cell["build"]), cell["precision"], str(cell["batch"]), str(number), f"it {reason}")
        for cell in result.protocol.get("rounds", ())
        for number, reason in sorted(cell.get("dropped", {}).items(), key=lambda entry: int(entry[0]))
    ]
    more = f" {len(rows) - _LISTED_ROUNDS} more are in the raw samples." if len(rows) > _LISTED_ROUNDS else ""
    return Table(
        key="disturbed",
        title="Disturbed rounds",
        columns=("build", "precision", "batch", "round", "why it does not count"),
        rows=tuple(rows[:_LISTED_ROUNDS]),
        numeric=frozenset({0, 2, 3}),
        note=(
            f"A round is dropped for what the machine did meanwhile, never for its timings, and for all variants.{more}"
        ),
    )


def _facts(protocol: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    scenario = protocol.get("scenario")
    if scenario is not None:
        yield "scenario", f"{scenario}: {SCENARIOS.get(scenario, '')}".rstrip(": ")
    if "builds" in protocol:
        yield "engine builds", _builds(protocol)
    if protocol.get("half_width") is not None:
        reached = protocol.get("half_width_reached")
        yield (
            "widest interval",
            f"{'not known' if reached is None else f'±{spell_percent(reached)}'} "
            f"(asked for: ±{spell_percent(protocol['half_width'])})",
        )
    elif protocol.get("half_width_reached") is not None:
        yield "widest interval", f"±{spell_percent(protocol['half_width_reached'])}"
    rounds = protocol.get("rounds", ())
    if rounds:
        total = sum(cell["rounds"] for cell in rounds)
        dropped = sum(len(cell.get("dropped", {})) for cell in rounds)
        yield "rounds", f"{total - dropped} count" + (f", {dropped} were disturbed and dropped" if dropped else "")
    if protocol.get("block_seconds") is not None:
        yield "time of a block", f"{protocol['block_seconds'] * 1000:g} ms"
    if protocol.get("confidence") is not None:
        yield "confidence", spell_percent(protocol["confidence"], digits=0)
    if protocol.get("seconds") is not None:
        limit = protocol.get("max_seconds")
        yield "time it took", f"{protocol['seconds']:.0f} s" + ("" if limit is None else f" of {limit:g} s allowed")


def _builds(protocol: Mapping[str, Any]) -> str:
    """How many there were, and who decided that."""
    builds, pilot, wanted = protocol["builds"], protocol.get("pilot_builds"), protocol.get("builds_wanted")
    asked = protocol.get("builds_asked", builds)
    if builds < asked:
        return f"{builds} of {asked}: there was no time for more"
    if pilot is None:
        return str(builds)
    if wanted is None or wanted <= pilot:
        return f"{builds}: the pilot asked for no more"
    short = "" if builds >= wanted else ": there was no time for more"
    return f"{builds}: a pilot of {pilot} asked for {wanted}{short}"
