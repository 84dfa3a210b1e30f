"""The table of a measurement: how fast each variant is, with what its scenario judges named as such."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from prune2deploy.bench.result import BenchResult, Row
from prune2deploy.bench.statistics.intervals import Interval, Percentiles
from prune2deploy.bench.subjects import BATCHES, OFFLINE, SINGLE_STREAM
from prune2deploy.report.figures import NOTHING, spell_count, spell_interval, spell_latency, spell_percent, spell_ratio
from prune2deploy.report.judged import scenario_of
from prune2deploy.report.table import Table

_Columns = Mapping[str, Callable[[Percentiles], float | None]]

_LATENCIES: Mapping[str, _Columns] = {
    BATCHES: {"median": lambda one: one.p50, "p90": lambda one: one.p90, "p99": lambda one: one.p99},
    SINGLE_STREAM: {"median": lambda one: one.p50, "p90, judged": lambda one: one.p90, "p99": lambda one: one.p99},
    OFFLINE: {"a batch takes": lambda one: one.p50},
}
_NOTES = {
    BATCHES: "",
    SINGLE_STREAM: " Judged is the 90th percentile of one input at a time, each sent when the last was answered.",
    OFFLINE: " Judged is the throughput over inputs that were all there at the start; a batch takes its share of it.",
}


def speed_table(result: BenchResult) -> Table:
    """A row for each variant, engine, precision and batch size, and one for its copies where they were timed."""
    scenario = scenario_of(result)
    latencies = _LATENCIES.get(scenario, _LATENCIES[BATCHES])
    others = tuple(dict.fromkeys(speedup.against for row in result.rows for speedup in row.speedups))
    settings = [(row.engine, row.precision) for row in result.rows]
    show_setting = len(set(settings)) > 1
    show_device = any(row.device_ns is not None for row in result.rows)
    columns = (
        "variant",
        *(("engine", "precision") if show_setting else ()),
        "batch",
        *latencies,
        *(("on the device",) if show_device else ()),
        "inputs/s, judged" if scenario == OFFLINE else "inputs/s",
        *(f"against {other}" for other in others),
        "FLOPs kept",
        "yield",
        "accuracy",
    )
    rows: list[tuple[str, ...]] = []
    for row in rows_by_setting(result):
        setting = (*((row.engine, row.precision) if show_setting else ()), str(row.batch))
        rows.append((row.variant, *setting, *_cells(row, latencies, others, show_device=show_device)))
        if row.copy_ns is not None:
            spelled = [spell_latency(told(row.copy_ns)) for told in latencies.values()]
            rest = len(columns) - 1 - len(setting) - len(spelled)
            rows.append((f"{row.variant}: inputs to the device", *setting, *spelled, *(NOTHING,) * rest))
    engine = "" if show_setting or not settings else f" on {settings[0][0]}, {settings[0][1]}"
    return Table(
        key="speed",
        title=f"Speed{engine}{'' if scenario == BATCHES else f', {scenario}'}",
        columns=columns,
        rows=tuple(rows),
        numeric=frozenset(range(3 if show_setting else 1, len(columns))),
        note=(
            "‘Against’ columns are speed-ups with their intervals. Yield is the speed-up times the FLOPs kept: "
            f"1 means that every FLOP removed was paid out as time.{_NOTES.get(scenario, '')}"
        ),
    )


def rows_by_setting(result: BenchResult) -> Sequence[Row]:
    """Rows grouped by engine, precision and batch size, in the order they were measured."""
    settings = list(dict.fromkeys((row.engine, row.precision, row.batch) for row in result.rows))
    return sorted(result.rows, key=lambda row: settings.index((row.engine, row.precision, row.batch)))


def _cells(row: Row, latencies: _Columns, others: Sequence[str], *, show_device: bool) -> Iterator[str]:
    """What a row tells behind its setting."""
    for told in latencies.values():
        yield spell_latency(told(row.latency_ns))
    if show_device:
        yield spell_latency(None if row.device_ns is None else row.device_ns.p50)
    yield spell_count(row.throughput_per_s)
    for other in others:
        yield _spell_speedup(row.speedup_against(other))
    yield spell_percent(row.flops_fraction)
    yield NOTHING if row.flop_yield is None else f"{row.flop_yield:.2f}"
    yield spell_percent(row.accuracy)


def _spell_speedup(interval: Interval | None) -> str:
    if interval is None:
        return NOTHING
    if interval.low is None:
        return spell_ratio(interval.estimate)
    return f"{spell_ratio(interval.estimate)} ({spell_interval(interval.low, interval.high)})"
