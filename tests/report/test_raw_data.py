"""The raw samples of a report: inside the page and as a table, and the figures that come out of them again."""

import csv
import gzip
import json
import re
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from prune2deploy.bench.samples import QUEUE, Block, BuildSamples, Cell
from prune2deploy.errors import StorageError
from prune2deploy.report import html
from prune2deploy.report.content import ReportContent
from prune2deploy.report.html import html_report
from prune2deploy.report.samples_csv import COLUMNS, write_samples_csv
from prune2deploy.report.write import write_report

DOCUMENTED = Path(__file__).parents[2] / "docs" / "report.md"


def read_csv(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_median_of_each_row_comes_out_of_the_table_again(full_content: ReportContent, tmp_path: Path) -> None:
    assert full_content.result is not None
    write_samples_csv(tmp_path / "samples.csv.gz", full_content.result.samples)
    lines = read_csv(tmp_path / "samples.csv.gz")
    for row in full_content.result.rows:
        counting = [
            int(line["sample_ns"])
            for line in lines
            if (line["variant"], line["precision"], int(line["batch"])) == (row.variant, row.precision, row.batch)
            and (line["copy"], line["kind"], line["dropped"]) == ("0", "wall", "")
        ]
        assert len(counting) == row.latency_ns.samples
        assert median(counting) == row.latency_ns.p50


def test_the_table_has_every_sample_and_says_why_some_do_not_count(full_content: ReportContent, tmp_path: Path) -> None:
    assert full_content.result is not None
    builds = full_content.result.samples
    write_samples_csv(tmp_path / "samples.csv.gz", builds)
    lines = read_csv(tmp_path / "samples.csv.gz")
    assert len(lines) == sum(len(block.samples_ns) for build in builds for cell in build.cells for block in cell.blocks)
    dropped = {(line["build"], line["round"], line["dropped"]) for line in lines if line["dropped"]}
    assert dropped == {("1", "0", "waited 31.0% of the round for a CPU")}


def test_names_with_commas_quotes_and_line_breaks_come_back_as_they_are(tmp_path: Path) -> None:
    name = 'a,b "c"\n; d'
    block = Block(variant=name, copy=0, round=0, position=3, samples_ns=(7, 8), kind=QUEUE, runs=16)
    cell = Cell(precision="fp16", batch=4, blocks=(block,), warmup=(), signals=())
    write_samples_csv(tmp_path / "one.csv.gz", [BuildSamples(build=2, cpus=None, cells=(cell,), engines=())])
    first, second = read_csv(tmp_path / "one.csv.gz")
    assert tuple(first) == COLUMNS
    assert list(first.values()) == ["2", "fp16", "4", name, "0", "0", "3", "queue", "0", "16", "7", ""]
    assert (second["run"], second["sample_ns"]) == ("1", "8")


def test_the_same_samples_give_the_same_bytes(full_content: ReportContent, tmp_path: Path) -> None:
    assert full_content.result is not None
    for name in ("one", "other"):
        write_samples_csv(tmp_path / f"{name}.csv.gz", full_content.result.samples)
    assert (tmp_path / "one.csv.gz").read_bytes() == (tmp_path / "other.csv.gz").read_bytes()


def test_a_table_that_cannot_be_written_is_told(full_content: ReportContent, tmp_path: Path) -> None:
    assert full_content.result is not None
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError):
        write_samples_csv(tmp_path / "file" / "samples.csv.gz", full_content.result.samples)


def test_a_report_without_samples_leaves_no_table_of_an_earlier_one(
    full_content: ReportContent, tmp_path: Path
) -> None:
    assert full_content.result is not None
    assert (tmp_path / "samples.csv.gz") in write_report(full_content, tmp_path)
    bare = replace(full_content, result=replace(full_content.result, samples=()), archive=None)
    assert [path.name for path in write_report(bare, tmp_path)] == [
        "report.html",
        "report.md",
        "report.json",
        "junit.xml",
    ]
    assert not (tmp_path / "samples.csv.gz").exists()


def test_the_documented_lines_get_the_data_out_of_a_page(
    full_content: ReportContent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert full_content.result is not None
    (script,) = [
        block
        for block in re.findall(r"```python\n(.*?)```", DOCUMENTED.read_text(encoding="utf-8"), flags=re.DOTALL)
        if "p2d-samples" in block
    ]
    (tmp_path / "report.html").write_text(html_report(full_content), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(script, found)
    assert found["document"]["result"] == json.loads(json.dumps(full_content.result.to_document()))
    builds = [BuildSamples.from_document(build, where="page") for build in found["samples"]["builds"]]
    assert builds == list(full_content.result.samples)


def test_samples_that_are_too_many_stay_beside_the_page(
    full_content: ReportContent, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert full_content.archive is not None
    monkeypatch.setattr(html, "EMBEDDED_SAMPLES_BYTES", len(full_content.archive) - 1)
    page = html_report(full_content)
    assert 'id="p2d-samples"' not in page
    assert "they are beside it, in samples.csv.gz" in page
    monkeypatch.setattr(html, "EMBEDDED_SAMPLES_BYTES", len(full_content.archive))
    assert 'id="p2d-samples"' in html_report(full_content)
