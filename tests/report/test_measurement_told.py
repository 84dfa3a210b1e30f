"""How a measurement was made and whether it counts: tables, plots and the headline say so."""

import re
from dataclasses import replace
from typing import Any

import pytest

from prune2deploy.bench.across.changes import Comparison, Outcome
from prune2deploy.bench.samples import BuildSamples, Cell
from prune2deploy.report.canvas import Plot
from prune2deploy.report.content import ReportContent
from prune2deploy.report.html import html_report
from prune2deploy.report.measured_tables import controls_table
from prune2deploy.report.plots import measuring_plots, report_plots
from prune2deploy.report.protocol_tables import disturbed_table, protocol_table
from prune2deploy.report.resource_tables import resources_table
from prune2deploy.report.signal_plots import signal_plots
from prune2deploy.report.speed_plots import build_ratios, distribution_plot, speedup_plot
from prune2deploy.report.tables import report_tables
from prune2deploy.report.verdict import summary_of


def numbers_of(plot: Plot) -> set[float]:
    """The numbers along the axes of a plot."""
    return {float(text) for text in re.findall(r">(\d+(?:\.\d+)?)</text>", plot.svg)}


def build_with(*moments: dict[str, float | None]) -> BuildSamples:
    cell = Cell(precision="fp32", batch=1, blocks=(), warmup=(), signals=moments, dropped={"1": "ran hot"})
    return BuildSamples(build=0, cpus=None, cells=(cell,), engines=())


@pytest.mark.parametrize(
    ("protocol", "shown"),
    [
        ({"builds": 5, "builds_asked": 5}, {"engine builds": "5"}),
        ({"builds": 3, "builds_asked": 8}, {"engine builds": "3 of 8: there was no time for more"}),
        (
            {"builds": 14, "pilot_builds": 5, "builds_wanted": 14, "half_width": 0.02, "half_width_reached": 0.018},
            {"engine builds": "14: a pilot of 5 asked for 14", "widest interval": "±1.8% (asked for: ±2.0%)"},
        ),
        (
            {"builds": 9, "pilot_builds": 5, "builds_wanted": 30, "half_width": 0.02, "half_width_reached": None},
            {
                "engine builds": "9: a pilot of 5 asked for 30: there was no time for more",
                "widest interval": "not known (asked for: ±2.0%)",
            },
        ),
        (
            {"builds": 1, "pilot_builds": 1, "builds_asked": 5, "builds_wanted": 1},
            {"engine builds": "1 of 5: there was no time for more"},
        ),
        (
            {"builds": 5, "pilot_builds": 5, "builds_wanted": 5, "half_width": 0.02, "half_width_reached": 0.004},
            {"engine builds": "5: the pilot asked for no more", "widest interval": "±0.4% (asked for: ±2.0%)"},
        ),
        (
            {"rounds": [{"rounds": 12, "dropped": {"3": "ran hot"}}, {"rounds": 8}]},
            {"rounds": "19 count, 1 were disturbed and dropped"},
        ),
        ({"seconds": 41.7, "max_seconds": 60.0}, {"time it took": "42 s of 60 s allowed"}),
        ({"scenario": "offline"}, {"scenario": "offline: all inputs at once, judged by throughput (MLPerf)"}),
    ],
)
def test_the_protocol_is_told_in_words(protocol: dict[str, Any], shown: dict[str, str], make_result: Any) -> None:
    table = protocol_table(replace(make_result(), protocol=protocol))
    assert dict(table.rows) == shown


def test_every_dropped_round_is_listed_with_its_reason(full_content: ReportContent) -> None:
    assert full_content.result is not None
    assert disturbed_table(full_content.result).rows == tuple(
        ("1", "fp32", batch, "0", "it waited 31.0% of the round for a CPU") for batch in ("1", "32")
    )


@pytest.mark.parametrize(
    ("outcome", "told"),
    [
        (
            Outcome.SLOWER,
            "The speed-up of pruned at batch 1 shrank since the earlier measurement, from 3.00× to 2.70×.",
        ),
        (Outcome.FASTER, "The speed-up of pruned at batch 1 grew since the earlier measurement, from 3.00× to 2.70×."),
        (Outcome.SAME, "Since the earlier measurement no speed-up changed by more than 1.0%."),
        (Outcome.UNDECIDED, "Whether the speed-up of pruned at batch 1 changed since the earlier measurement cannot"),
        (Outcome.INVALID, "Whether the speed-up of pruned at batch 1 changed since the earlier measurement is INVALID"),
    ],
)
def test_the_page_says_first_what_changed_since_an_earlier_measurement(
    outcome: Outcome, told: str, make_manifest: Any, make_result: Any, make_change: Any
) -> None:
    comparison = Comparison(tolerance=0.01, changes=(make_change(outcome),), baselines=(), differences={})
    result = replace(make_result(batches=(1,)), baseline_comparison=comparison.to_document())
    content = ReportContent(manifest=make_manifest(), result=result)
    assert any(sentence.startswith(told) for sentence in summary_of(content).sentences)
    assert "across" in {table.key for table in report_tables(content)}


def test_a_great_many_dropped_rounds_are_counted_and_not_all_listed(make_result: Any) -> None:
    dropped = {str(number): "ran hot" for number in range(250)}
    cell = {"build": 0, "precision": "fp32", "batch": 1, "rounds": 300, "dropped": dropped}
    table = disturbed_table(replace(make_result(), protocol={"rounds": [cell]}))
    assert [row[3] for row in table.rows] == [str(number) for number in range(200)]
    assert table.note.endswith("50 more are in the raw samples.")


def test_what_a_variant_takes_has_columns_only_for_what_was_measured(make_result: Any) -> None:
    result = make_result()
    bare = tuple(replace(row, file_bytes=None) for row in result.rows)
    assert resources_table(replace(result, rows=bare)).rows == ()
    sized = tuple(replace(row, file_bytes=3_600_000, memory_bytes=41_000_000) for row in result.rows)
    table = resources_table(replace(result, rows=sized))
    assert table.columns == ("variant", "engine", "precision", "file", "memory")
    assert table.rows[0] == ("dense", "ort-cpu", "fp32", "3.60 MB", "41.0 MB")
    assert len(table.rows) == 3
    counted = tuple(replace(row, energy_joules=0.0123 / row.batch) for row in sized)
    table = resources_table(replace(result, rows=counted))
    assert table.columns[3:] == ("batch", "file", "memory", "energy of an input")
    assert (table.rows[0][-1], table.rows[3][-1]) == ("12.3 mJ", "384 µJ")


def test_a_measurement_that_was_disturbed_heads_the_page_as_such(make_manifest: Any, make_result: Any) -> None:
    result = make_result(batches=(1,))
    control = replace(result.controls[0], disturbed="11 of 12 rounds were disturbed")
    result = replace(result, controls=(control,))
    summary = summary_of(ReportContent(manifest=make_manifest(), result=result))
    assert summary.headline == (
        "Nothing can be said of the pruned model on ort-cpu at batch 1: 11 of 12 rounds were disturbed"
    )
    assert summary.tiles[0].detail == "INVALID"
    assert not any("plainly narrower" in sentence for sentence in summary.sentences)
    plot = speedup_plot(ReportContent(manifest=make_manifest(), result=result))
    assert plot is not None
    assert plot.svg.count("batch 1, INVALID</text>") == 2
    assert controls_table(result).rows[0][-1] == "INVALID: 11 of 12 rounds were disturbed"


def test_a_control_that_failed_heads_the_page(make_manifest: Any, make_result: Any) -> None:
    summary = summary_of(ReportContent(manifest=make_manifest(), result=make_result(control_ratio=1.3)))
    assert summary.headline.endswith("on ort-cpu at batch 1: two copies of dense differed")


def test_the_page_says_when_it_was_measured_and_on_how_many_builds(make_manifest: Any, make_result: Any) -> None:
    result = make_result(builds=7)
    moment = {**result.environment, "measured_at": "2026-02-01T09:30:00+00:00"}
    alone = ReportContent(manifest=None, result=replace(result, environment=moment))
    assert "dense-fp32.onnx, pruned-fp32.onnx, reduced-fp32.onnx, measured 1 February 2026, 09:30 UTC" in html_report(
        alone
    )
    of_run = replace(alone, manifest=make_manifest())
    assert "small-wide on digits, measured 1 February 2026, 09:30 UTC" in html_report(of_run)
    assert "small-wide on digits, 31 January 2026" in html_report(replace(of_run, result=result))
    assert summary_of(of_run).tiles[0].detail.endswith("at 95%, 7 builds")


def test_each_build_is_a_ratio_against_the_baseline_of_the_same_build(make_manifest: Any, make_result: Any) -> None:
    result = make_result(batches=(1,))
    content = ReportContent(manifest=make_manifest(), result=result)
    dense, pruned = result.rows[:2]
    expected = [base / own for base, own in zip(dense.build_medians_ns, pruned.build_medians_ns, strict=True)]
    assert build_ratios(content, pruned) == expected
    short = replace(result, rows=(replace(dense, build_medians_ns=dense.build_medians_ns[:2]), pruned))
    assert build_ratios(replace(content, result=short), pruned) == []


def test_the_speedups_are_drawn_with_every_build_and_claim(make_manifest: Any, make_result: Any) -> None:
    content = ReportContent(manifest=make_manifest(), result=make_result(batches=(1,), claim=2.0, builds=7))
    plot = speedup_plot(content)
    assert plot is not None
    assert "tall dark marks are claims" in plot.description
    # Seven dots in each of the two rows that are compared with dense.
    dots = re.findall(r'<g clip-path="[^"]*">\s*(?:<use [^>]*/>\s*){7}</g>', plot.svg)
    assert len(dots) == 2


def test_a_long_tail_does_not_push_the_medians_together(make_manifest: Any, make_result: Any) -> None:
    result = make_result(batches=(1,))
    slow = tuple(
        replace(row, distribution_ns=(*row.distribution_ns[:-2], row.distribution_ns[-2] * 500, 1e12))
        for row in result.rows
    )
    content = ReportContent(manifest=make_manifest(), result=replace(result, rows=slow))
    plot = distribution_plot(content, content.settings[0], key="latency")
    assert plot is not None
    shares_aside = numbers_of(plot) - {0, 20, 40, 60, 80, 100}
    assert 2 <= max(shares_aside) < 5


def test_signals_are_shown_by_round_and_disturbed_rounds_are_shaded() -> None:
    build = build_with(
        {"steal_longest_seconds": 5.0, "gpu_power_watts": None, "switches_involuntary": 10},
        {"steal_longest_seconds": 5.0, "gpu_power_watts": None, "switches_involuntary": 12},
        {"steal_longest_seconds": 5.5, "gpu_power_watts": None, "switches_involuntary": 12},
    )
    (plot,) = signal_plots([build])
    assert "taken by the hypervisor, ms" in plot.svg
    assert "GPU power" not in plot.svg
    assert plot.description.startswith("A shaded round was disturbed and does not count. ")
    assert 400 in numbers_of(plot) or 500 in numbers_of(plot)


def test_a_long_measurement_makes_no_large_drawing() -> None:
    moments = [{"load_1min": 1.0 + number % 7, "frequency_mhz": 2900.0 + number % 5} for number in range(13)]
    cell = Cell(
        precision="fp32",
        batch=1,
        blocks=(),
        warmup=(),
        signals=tuple(moments),
        dropped={str(number): "ran hot" for number in range(3, 9)},
    )
    builds = [BuildSamples(build=number, cpus=None, cells=(cell, cell), engines=()) for number in range(100)]
    (plot,) = signal_plots(builds)
    assert len(plot.svg) < 200_000
    # A stretch of disturbed rounds is one shade in each of the two panels.
    assert plot.svg.count("fill: var(--bad)") == 2 * 200


def test_signals_that_were_zero_throughout_are_named_and_not_drawn() -> None:
    build = build_with({"page_faults_major": 3, "load_1min": 0.5}, {"page_faults_major": 3, "load_1min": 0.6})
    (plot,) = signal_plots([build])
    assert "Zero in every round: page faults that read the disk." in plot.description
    assert signal_plots([build_with({"page_faults_major": 3}, {"page_faults_major": 3})]) == ()


def test_without_samples_nothing_is_said_of_the_machine(make_manifest: Any, make_result: Any) -> None:
    content = ReportContent(manifest=make_manifest(), result=replace(make_result(), samples=()))
    assert measuring_plots(content) == ()
    assert "speedups" in {plot.key for plot in report_plots(content)}
