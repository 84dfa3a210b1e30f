"""What the report says: figures, sentences, tables and the Pareto front."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prune2deploy.report import figures
from prune2deploy.report.canvas import colour_of, marker_of
from prune2deploy.report.content import ReportContent
from prune2deploy.report.measured_tables import result_tables
from prune2deploy.report.speed_plots import pareto_front
from prune2deploy.report.tables import report_tables, widths_table
from prune2deploy.report.verdict import summary_of


@pytest.mark.parametrize(
    ("latency_ns", "shown"),
    [
        (None, "–"),
        (950.0, "950 ns"),
        (1234.0, "1.23 µs"),
        (12_345_678.0, "12.3 ms"),
        (2.5e9, "2.50 s"),
        (123.4e6, "123 ms"),
    ],
)
def test_latencies_are_spelled_in_a_fitting_unit(latency_ns: float | None, shown: str) -> None:
    assert figures.spell_latency(latency_ns) == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [(None, "–"), (7, "7"), (643.02, "643"), (1870.0, "1.87 k"), (41_100_000, "41.1 M"), (8.2e9, "8.20 G")],
)
def test_counts_are_spelled_with_three_digits(count: float | None, shown: str) -> None:
    assert figures.spell_count(count) == shown


@pytest.mark.parametrize(("count", "shown"), [(12, "12 B"), (3_600_000, "3.60 MB"), (1500, "1.50 kB"), (None, "–")])
def test_sizes_are_spelled_in_bytes(count: int | None, shown: str) -> None:
    assert figures.spell_bytes(count) == shown


@pytest.mark.parametrize(
    ("difference", "shown"),
    [(-0.0042, "−0.4 points"), (0.01, "+1.0 points"), (0.0, "±0.0 points"), (-0.0001, "±0.0 points")],
)
def test_differences_of_accuracy_are_points(difference: float, shown: str) -> None:
    assert figures.spell_points(difference) == shown


@pytest.mark.parametrize(
    ("stamp", "shown"),
    [
        ("2026-01-31T15:25:30+01:00", "31 January 2026, 14:25 UTC"),
        ("2026-01-31T14:25:30", "31 January 2026, 14:25"),
        ("once", "once"),
    ],
)
def test_moments_are_spelled_for_people(stamp: str, shown: str) -> None:
    assert figures.spell_moment(stamp) == shown


def test_any_json_value_can_be_spelled() -> None:
    assert figures.spell_number({"a": [1, 2.5, None], "b": True}) == "a 1, 2.5, –, b yes"


points = st.lists(st.tuples(st.integers(1, 30).map(float), st.integers(0, 30).map(float)), min_size=1, max_size=12)


@given(points)
def test_the_front_holds_exactly_what_nothing_beats(found: list[tuple[float, float]]) -> None:
    def beaten(point: tuple[float, float]) -> bool:
        return any(o != point and o[0] <= point[0] and o[1] >= point[1] for o in found)

    assert pareto_front(found) == sorted({point for point in found if not beaten(point)})


@pytest.mark.parametrize(
    ("pruned_ns", "headline"),
    [
        (500_000, "The pruned model is 3.0"),
        (2_000_000, "The pruned model is slower than the dense model"),
        (1_500_000, "No difference in speed"),
    ],
)
def test_headline_says_faster_slower_or_no_difference(
    pruned_ns: int, headline: str, make_manifest: Any, make_result: Any
) -> None:
    result = make_result(latencies_ns={"dense": 1_500_000, "pruned": pruned_ns})
    summary = summary_of(ReportContent(manifest=make_manifest(), result=result))
    assert summary.headline.startswith(headline)


def test_a_measurement_without_interval_claims_nothing(make_manifest: Any, make_result: Any) -> None:
    summary = summary_of(ReportContent(manifest=make_manifest(), result=make_result(builds=2, claim=2.0)))
    assert "about" in summary.headline
    assert summary.badge == "2.00× claimed: UNDECIDED"
    assert any("too few builds" in sentence for sentence in summary.sentences)


def test_the_gravest_verdict_leads(make_manifest: Any, make_result: Any) -> None:
    summary = summary_of(ReportContent(manifest=make_manifest(), result=make_result(claim=2.0, control_ratio=1.3)))
    assert summary.verdict is not None
    assert summary.verdict.value == "INVALID"
    assert any("proves nothing" in sentence for sentence in summary.sentences)


def test_accuracy_is_compared_with_dense_in_points(make_manifest: Any, make_result: Any) -> None:
    summary = summary_of(ReportContent(manifest=make_manifest(), result=make_result()))
    assert "Top-1 accuracy is 98.6% against 99.1% for dense (−0.5 points)." in summary.sentences


def test_files_without_our_names_are_called_by_their_own(make_manifest: Any, make_result: Any) -> None:
    result = make_result(latencies_ns={"a.onnx": 1_000_000, "b.onnx": 500_000}, accurate=False)
    summary = summary_of(ReportContent(manifest=make_manifest(data=None, names=()), result=result))
    assert summary.headline.startswith("b.onnx is 2.0")


def test_tables_are_rectangular_and_align_existing_columns(make_manifest: Any, make_result: Any) -> None:
    tables = report_tables(ReportContent(manifest=make_manifest(), result=make_result(claim=2.0)))
    assert len({table.key for table in tables}) == len(tables)
    for table in tables:
        assert table.rows
        assert {len(row) for row in table.rows} == {len(table.columns)}
        assert all(column < len(table.columns) for column in table.numeric)


def test_a_result_alone_has_tables_for_the_terminal(make_result: Any) -> None:
    assert [table.key for table in result_tables(make_result(claim=2.0))] == ["speed", "claims", "controls"]


def test_widths_table_bears_absent_figures() -> None:
    table = widths_table({"layers": [{"name": "conv", "dense": 64, "pruned": 32}, {"name": "other"}]})
    assert table.rows == (("conv", "64", "32", "50.0%", "–", "–", "–"), ("other", *("–",) * 6))


def test_the_widths_of_a_family_stand_side_by_side() -> None:
    wide = {"name": "conv", "exact": True, "dense": 64, "flops_dense": 100, "pruned-0.8": 48, "flops_pruned-0.8": 75}
    layers = [wide | {"pruned-0.5": 32}, wide | {"name": "norm", "exact": False, "pruned-0.8": 64, "pruned-0.5": 16}]
    whole = wide | {"name": "whole", "pruned-0.8": 64, "pruned-0.5": 64}
    table = widths_table({"layers": [*layers, whole]})
    assert table.columns == ("layer", "dense", "pruned-0.8", "pruned-0.5", "FLOPs dense", "cut")
    assert [row[2:4] + row[-1:] for row in table.rows] == [
        ("48", "32", "exact"),
        ("64", "16", "inexact"),
        ("64", "64", "–"),
    ]


def test_widths_table_has_a_column_for_every_variant_that_was_made() -> None:
    layer = {"name": "conv", "dense": 64, "pruned": 32, "flops_pruned": 9, "reduced": 40, "flops_reduced": 9}
    table = widths_table({"layers": [layer, {**layer, "family-0.5": 16, "flops_family-0.5": 4}]})
    assert table.columns[:5] == ("layer", "dense", "pruned", "reduced", "family-0.5")
    assert [row[4] for row in table.rows] == ["–", "16"]


def test_widths_table_says_which_cuts_are_inexact() -> None:
    widths = {"dense": 64, "pruned": 32}
    layers = [{"name": "a", "exact": True, **widths}, {"name": "b", "exact": False, **widths}]
    table = widths_table({"layers": [*layers, {"name": "whole", "exact": False, "dense": 8, "pruned": 8}]})
    assert [row[-1] for row in table.rows] == ["exact", "inexact", "–"]


def test_many_variants_never_share_both_colour_and_marker():
    variants = ["dense", "pruned", "reduced", "bottleneck", "scratch", *(f"family-{number}" for number in range(8))]
    pairs = [(colour_of(name, variants), marker_of(name, variants)) for name in variants]
    assert len(set(pairs)) == len(variants)
