"""What a report says of precisions: what engines compute in, and what was checked of each exported file."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from prune2deploy.bench.result import BenchResult
from prune2deploy.engines.census import Census
from prune2deploy.report.content import ReportContent
from prune2deploy.report.html import html_report
from prune2deploy.report.markdown import markdown_report
from prune2deploy.report.measured_tables import engines_table
from prune2deploy.report.table import Table
from prune2deploy.report.tables import files_table, report_tables
from prune2deploy.run import OnnxRecord, RunManifest

MIXED = Census.of([("fp16", 95), ("fp32", 5)], origin="engine")


def with_census(result: BenchResult) -> BenchResult:
    rows = tuple(
        replace(row, precision="fp16", census=MIXED.to_document() if row.variant == "pruned" else None)
        for row in result.rows
    )
    return replace(result, rows=rows)


def with_int8(manifest: RunManifest, *, accuracy: float | None = 0.979, checked: bool = True) -> RunManifest:
    """A run whose pruned variant was exported at fp32 and int8, with the checks of both."""
    pruned = manifest.variants["pruned"]
    checks: dict[str, float] = {"agreement": 0.9953, "sqnr_db": 31.26} if checked else {}
    if accuracy is not None:
        checks["accuracy"] = accuracy
    files = {
        "fp32": replace(pruned.onnx["fp32"], checks={"accuracy": 0.986} if checked else {}),
        "int8": OnnxRecord(
            file="onnx/pruned-int8.onnx", sha256="cd" * 32, bytes_total=900_000, parity_max_error=0.03, checks=checks
        ),
    }
    return replace(manifest, variants={**manifest.variants, "pruned": replace(pruned, onnx=files)})


def column(table: Table, heading: str) -> list[str]:
    return [row[table.columns.index(heading)] for row in table.rows]


def test_engines_are_listed_once_whatever_the_batch(make_result: Callable[..., BenchResult]) -> None:
    result = with_census(make_result(batches=(1, 32)))
    table = engines_table(result)
    assert column(table, "variant") == ["dense", "pruned", "reduced"]
    assert column(table, "computes in") == ["–", "fp16 95.0%, fp32 5.0% of FLOPs", "–"]
    assert "agreement" not in table.columns


def test_agreement_of_int8_stands_beside_the_parity_error(make_result: Callable[..., BenchResult]) -> None:
    result = with_census(make_result())
    rows = tuple(replace(row, agreement=0.9953) for row in result.rows)
    assert column(engines_table(replace(result, rows=rows)), "agreement") == ["99.5%"] * 3


def test_engines_that_cannot_tell_make_no_table(make_result: Callable[..., BenchResult]) -> None:
    assert engines_table(make_result()).rows == ()
    assert engines_table(None).rows == ()


def test_a_census_comes_back_from_the_result_document(make_result: Callable[..., BenchResult]) -> None:
    result = with_census(make_result())
    again = BenchResult.from_document(result.to_document())
    assert [row.computes_in for row in again.rows] == [row.computes_in for row in result.rows]


def test_a_document_from_before_the_census_can_be_read(make_result: Callable[..., BenchResult]) -> None:
    document = make_result().to_document()
    for row in document["rows"]:
        del row["census"]
    assert all(row.computes_in is None for row in BenchResult.from_document(document).rows)


def test_files_tell_accuracy_and_what_it_lost_against_fp32(make_manifest: Callable[..., RunManifest]) -> None:
    table = files_table(ReportContent(manifest=with_int8(make_manifest()), result=None))
    at = [row[:2] for row in table.rows].index(("pruned", "int8"))
    assert column(table, "accuracy")[at] == "97.9%"
    assert column(table, "against fp32")[at] == "-0.7 points"
    assert column(table, "agreement")[at] == "99.5%"
    assert column(table, "signal to noise")[at] == "31.3 dB"
    before = [row[:2] for row in table.rows].index(("pruned", "fp32"))
    assert column(table, "against fp32")[before] == "–"
    assert table.note.startswith("Accuracy is that of the file")


@pytest.mark.parametrize("changes", [{"accuracy": None}, {"accuracy": None, "checked": False}])
def test_without_accuracies_nothing_is_compared(
    make_manifest: Callable[..., RunManifest], changes: dict[str, Any]
) -> None:
    table = files_table(ReportContent(manifest=with_int8(make_manifest(), **changes), result=None))
    assert "against fp32" not in table.columns
    assert ("agreement" in table.columns) == changes.get("checked", True)


def test_the_pages_hold_both_tables(
    make_manifest: Callable[..., RunManifest], make_result: Callable[..., BenchResult]
) -> None:
    content = ReportContent(manifest=with_int8(make_manifest()), result=with_census(make_result()))
    for table in report_tables(content):
        assert all(len(row) == len(table.columns) for row in table.rows), table.key
    page, text = html_report(content), markdown_report(content)
    for words in ("Precisions of the engines", "fp16 95.0%, fp32 5.0% of FLOPs", "-0.7 points", "31.3 dB"):
        assert words in page
        assert words in text
