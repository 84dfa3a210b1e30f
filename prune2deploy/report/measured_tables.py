"""Tables of a measurement: speeds, verdicts, controls, and what the engines compute in."""

from prune2deploy.bench.compare import Interval
from prune2deploy.bench.result import BenchResult, Row
from prune2deploy.report.claim_words import claim_label, spell_bound, spell_ends, spell_measured
from prune2deploy.report.figures import (
    NOTHING,
    spell_count,
    spell_error,
    spell_interval,
    spell_latency,
    spell_percent,
    spell_ratio,
)
from prune2deploy.report.table import Table


def result_tables(result: BenchResult) -> tuple[Table, ...]:
    """What ``p2d bench`` prints: speeds, verdicts and controls."""
    return tuple(table for table in (speed_table(result), claims_table(result), controls_table(result)) if table.rows)


def speed_table(result: BenchResult) -> Table:
    """One row for each variant, engine, precision and batch size."""
    others = tuple(dict.fromkeys(speedup.against for row in result.rows for speedup in row.speedups))
    settings = [(row.engine, row.precision) for row in result.rows]
    show_setting = len(set(settings)) > 1
    columns = [
        "variant",
        *(("engine", "precision") if show_setting else ()),
        "batch",
        "median",
        "p90",
        "p99",
        "inputs/s",
        *(f"against {other}" for other in others),
        "FLOPs kept",
        "yield",
        "accuracy",
    ]
    rows = tuple(
        (
            row.variant,
            *((row.engine, row.precision) if show_setting else ()),
            str(row.batch),
            spell_latency(row.latency_ns.p50),
            spell_latency(row.latency_ns.p90),
            spell_latency(row.latency_ns.p99),
            spell_count(row.throughput_per_s),
            *(_spell_speedup(row.speedup_against(other)) for other in others),
            spell_percent(row.flops_fraction),
            NOTHING if row.flop_yield is None else f"{row.flop_yield:.2f}",
            spell_percent(row.accuracy),
        )
        for row in _by_setting(result)
    )
    engine = "" if show_setting or not settings else f" on {settings[0][0]}, {settings[0][1]}"
    return Table(
        key="speed",
        title=f"Speed{engine}",
        columns=tuple(columns),
        rows=rows,
        numeric=frozenset(range(3 if show_setting else 1, len(columns))),
        note=(
            "‘Against’ columns are speed-ups with their intervals. Yield is the speed-up times the FLOPs kept: "
            "1 means that every FLOP removed was paid out as time."
        ),
    )


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
    verdicts = {True: "passed", False: "FAILED", None: "too few builds"}
    rows = tuple(
        (
            control.engine,
            control.precision,
            str(control.batch),
            f"{control.interval.estimate:.3f}",
            _spell_finely(control.interval),
            verdicts[control.passed],
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


def _by_setting(result: BenchResult) -> list[Row]:
    """Rows grouped by setting, in the order they were measured."""
    settings = list(dict.fromkeys((row.engine, row.precision, row.batch) for row in result.rows))
    return sorted(result.rows, key=lambda row: settings.index((row.engine, row.precision, row.batch)))


def _spell_speedup(interval: Interval | None) -> str:
    if interval is None:
        return NOTHING
    if interval.low is None:
        return spell_ratio(interval.estimate)
    return f"{spell_ratio(interval.estimate)} ({spell_interval(interval.low, interval.high)})"


def _spell_finely(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return NOTHING
    return f"{interval.low:.3f} to {interval.high:.3f}"
