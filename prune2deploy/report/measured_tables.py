"""Tables of a measurement beside its speeds: verdicts, controls, and what the engines compute in."""

from prune2deploy.bench.result import BenchResult
from prune2deploy.bench.statistics.intervals import Interval
from prune2deploy.report.claim_words import claim_label, spell_bound, spell_ends, spell_measured
from prune2deploy.report.figures import NOTHING, spell_error, spell_percent
from prune2deploy.report.speed_table import speed_table
from prune2deploy.report.table import Table


def result_tables(result: BenchResult) -> tuple[Table, ...]:
    """What ``p2d bench`` prints: speeds, verdicts and controls."""
    return tuple(table for table in (speed_table(result), claims_table(result), controls_table(result)) if table.rows)


def claims_table(result: BenchResult) -> Table:
    """One row for each judged claim."""
    rows = tuple(
        (
            claim.variant,
            claim.engine,
            claim.precision,
            NOTHING if claim.batch is None else str(claim.batch),
            claim_label(claim),
            f"{spell_bound(claim)}{'' if claim.asked else ' (implied by FLOPs)'}",
            spell_measured(claim),
            spell_ends(claim),
            claim.verdict.value,
        )
        for claim in result.claims
    )
    columns = ("variant", "engine", "precision", "batch", "claim", "bound", "measured", "interval", "verdict")
    return Table(key="claims", title="Verdicts", columns=columns, rows=rows, numeric=frozenset({3, 5, 6, 7}))


def controls_table(result: BenchResult) -> Table:
    """The A/A controls."""
    words = {True: "passed", False: "FAILED", None: "too few builds"}
    rows = tuple(
        (
            control.engine,
            control.precision,
            str(control.batch),
            f"{control.interval.estimate:.3f}",
            _spell_finely(control.interval),
            words[control.passed] if control.disturbed is None else f"INVALID: {control.disturbed}",
        )
        for control in result.controls
    )
    return Table(
        key="controls",
        title="A/A control",
        columns=("engine", "precision", "batch", "ratio", "interval", "control"),
        rows=rows,
        numeric=frozenset({2, 3, 4}),
        note=f"A second copy of {result.baseline} against the first, at 99.9%: an honest harness finds 1.",
    )


def engines_table(result: BenchResult | None) -> Table:
    """What the layers of the measured engines really compute in, and how near they come to the model."""
    measured = {(row.variant, row.engine, row.precision): row for row in (result.rows if result is not None else ())}
    told = any(row.computes_in is not None for row in measured.values())
    agreeing = any(row.agreement is not None for row in measured.values())
    columns = ("variant", "engine", "precision", "computes in", "parity error", *(("agreement",) if agreeing else ()))
    rows = tuple(
        (
            row.variant,
            row.engine,
            row.precision,
            row.computes_in or NOTHING,
            spell_error(row.parity_max_error),
            *((spell_percent(row.agreement),) if agreeing else ()),
        )
        for row in measured.values()
        if told
    )
    return Table(
        key="engines",
        title="Precisions of the engines",
        columns=columns,
        rows=rows,
        numeric=frozenset(range(4, len(columns))),
        note="What the convolutions and matrix products of the built engine compute in, whatever the file is called.",
    )


def _spell_finely(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return NOTHING
    return f"{interval.low:.3f} to {interval.high:.3f}"
