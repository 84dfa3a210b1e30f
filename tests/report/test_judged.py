"""What the pages call the latency that a scenario judges, and what they leave out."""

from collections.abc import Callable

import pytest

from prune2deploy.bench.result import BenchResult
from prune2deploy.bench.samples import QUEUE, WALL
from prune2deploy.report.content import ReportContent
from prune2deploy.report.judged import judged_in_words, judged_ns, scenario_of
from prune2deploy.report.plots import report_plots
from prune2deploy.report.verdict import summary_of


@pytest.mark.parametrize(
    ("scenario", "words", "percentile"),
    [("batches", "latency, median", "p50"), ("single-stream", "latency, 90th percentile", "p90")],
)
def test_it_is_the_percentile_that_ratios_are_made_of(
    make_scenario: Callable[..., BenchResult], scenario: str, words: str, percentile: str
) -> None:
    result = make_scenario(scenario, {WALL: (1_000_000, 1)})
    assert scenario_of(result) == scenario
    assert judged_in_words(scenario) == words
    for row in result.rows:
        assert judged_ns(row, scenario) == getattr(row.latency_ns, percentile)


def test_offline_it_is_the_share_of_a_queue_and_no_plot_shows_single_runs(
    make_scenario: Callable[..., BenchResult],
) -> None:
    content = ReportContent(manifest=None, result=make_scenario("offline", {QUEUE: (8_000_000, 10)}))
    keys = {plot.key for plot in report_plots(content)}
    assert not any(key.startswith("latency") for key in keys)
    assert any(key.startswith("pareto") for key in keys)
    labels = {tile.label: tile.value for tile in summary_of(content).tiles}
    assert labels["a batch offline"] == "400 µs"


def test_a_result_without_a_scenario_is_one_of_batches() -> None:
    assert scenario_of(None) == "batches"
