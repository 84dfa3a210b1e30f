"""``p2d report`` of results that belong to no run, and of what is neither."""

import gzip
import json
from pathlib import Path

import pytest

from prune2deploy.bench.result import write_result
from prune2deploy.bench.samples import Block, BuildSamples, Cell
from prune2deploy.bench.subjects import BenchOptions, BenchRequest, Subject
from prune2deploy.bench.summary import summarise
from prune2deploy.errors import InputError
from prune2deploy.pipeline.report import run_report
from prune2deploy.pipeline.requests import ReportRequest

PAGES = ["report.html", "report.md", "report.json", "junit.xml"]


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """The folder that a measurement of two files by themselves leaves."""
    subjects = tuple(
        Subject(variant=name, precision="fp32", onnx_path=Path(f"{name}.onnx"), sha256="ab" * 32) for name in "ab"
    )
    slots = [("a", 0, 2000), ("b", 0, 1000), ("a", 1, 2000)]
    builds = [
        BuildSamples(
            build=build,
            cpus=None,
            cells=(
                Cell(
                    precision="fp32",
                    batch=1,
                    blocks=tuple(
                        Block(variant=name, copy=copy, round=0, position=0, samples_ns=(time + build, time + 2 * build))
                        for name, copy, time in slots
                    ),
                    warmup=(),
                    signals=({}, {}),
                ),
            ),
            engines=(),
        )
        for build in range(3)
    ]
    request = BenchRequest(subjects=subjects, engine="ort-cpu", options=BenchOptions(builds=3))
    folder = tmp_path / "measured"
    write_result(summarise(request, builds, environment={"cpu": "Test CPU"}), folder)
    return folder


@pytest.mark.parametrize("named", ["", "result.json"], ids=["folder", "document"])
def test_a_result_without_a_run_is_reported(measured: Path, named: str) -> None:
    outcome = run_report(ReportRequest(run=measured / named))
    assert [file.name for file in outcome.files] == [*PAGES, "samples.csv.gz"]
    assert all(file.parent == measured / "report" for file in outcome.files)
    document = json.loads((measured / "report" / "report.json").read_text())
    assert document["run"] is None
    assert document["summary"]["headline"].startswith("b is 2.00× as fast as a")
    page = (measured / "report" / "report.html").read_text()
    assert "<title>a.onnx, b.onnx: b is 2.00× as fast as a" in page
    assert "nothing says what they should compute" in page


def test_a_report_goes_where_it_is_asked_to(measured: Path, tmp_path: Path) -> None:
    run_report(ReportRequest(run=measured, out=tmp_path / "here"))
    assert (tmp_path / "here" / "report.html").is_file()
    assert not (measured / "report").exists()


def test_a_result_under_another_name_takes_no_samples_of_its_neighbour(measured: Path) -> None:
    (measured / "result.json").rename(measured / "earlier.json")
    outcome = run_report(ReportRequest(run=measured / "earlier.json"))
    assert [file.name for file in outcome.files] == PAGES


def test_damaged_samples_are_told_and_nothing_is_written(measured: Path) -> None:
    (measured / "samples.json.gz").write_bytes(gzip.compress(b"{}"))
    with pytest.raises(InputError, match=r"cannot be read as raw samples"):
        run_report(ReportRequest(run=measured))
    assert not (measured / "report").exists()


def test_a_document_that_is_no_result_is_told(measured: Path) -> None:
    (measured / "other.json").write_text('{"schema_version": 1}')
    with pytest.raises(InputError, match="damaged"):
        run_report(ReportRequest(run=measured / "other.json"))
    (measured / "other.json").write_text("no JSON")
    with pytest.raises(InputError, match="not a JSON document"):
        run_report(ReportRequest(run=measured / "other.json"))


def test_a_folder_with_neither_says_what_could_be_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no run \(run.json\) and no result \(result.json\)") as told:
        run_report(ReportRequest(run=tmp_path))
    assert "p2d bench a.onnx b.onnx --out FOLDER" in str(told.value.hint)
    with pytest.raises(InputError, match="does not exist"):
        run_report(ReportRequest(run=tmp_path / "nowhere"))
