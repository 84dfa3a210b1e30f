"""Comparing results that lie on disk: which files are meant, and what the command leaves with."""

import json
from pathlib import Path
from typing import Any

import pytest

from prune2deploy.bench.result import BenchResult, Control, Row
from prune2deploy.bench.statistics.intervals import Interval, Percentiles
from prune2deploy.errors import InputError
from prune2deploy.pipeline.compare import gravest, result_file

MACHINE = {"machine_class": "One CPU", "cpu": "One CPU", "threads": 1, "versions": {"onnxruntime": "1.30"}}


def row(variant: str, medians_ns: list[float]) -> Row:
    return Row(
        variant=variant,
        engine="ort-cpu",
        precision="fp32",
        batch=1,
        latency_ns=Percentiles(p50=medians_ns[0], p90=None, p99=None, samples=5),
        build_medians_ns=tuple(medians_ns),
        distribution_ns=(),
        throughput_per_s=1.0,
        speedups=(),
        flops_fraction=None,
        parameters_fraction=None,
        flop_yield=None,
        accuracy=None,
        parity_max_error=None,
        file=f"{variant}.onnx",
        sha256="00",
    )


def write_result(path: Path, speedup: float, *, passed: bool = True, **environment: Any) -> Path:
    wander = (1.0, 1.001, 0.999, 1.002, 0.998)
    interval = Interval(estimate=1.0, low=0.99, high=1.01, confidence=0.999, builds=5)
    result = BenchResult(
        environment={**MACHINE, **environment},
        protocol={"scenario": "batches"},
        baseline="dense",
        rows=(row("dense", [1000.0] * 5), row("pruned", [1000 / speedup * factor for factor in wander])),
        claims=(),
        controls=(Control(engine="ort-cpu", precision="fp32", batch=1, interval=interval, passed=passed),),
        notes=(),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result.to_document()))
    return path


def test_a_document_its_folder_and_a_run_folder_all_name_a_result(tmp_path):
    file = write_result(tmp_path / "run/bench/result.json", 2.0)
    assert result_file(file) == result_file(tmp_path / "run/bench") == result_file(tmp_path / "run") == file


def test_slower_is_told_and_leaves_with_0(tmp_path, run_p2d):
    before, after = write_result(tmp_path / "a.json", 2.0), write_result(tmp_path / "b.json", 1.8)
    done = run_p2d("compare", before, after)
    assert done.exit_code == 0
    assert "slower: pruned on ort-cpu at fp32, batch 1: its speed-up shrank (2.00× before, 1.80× after" in done.stdout
    assert done.stderr == ""


def test_json_alone_goes_to_standard_output(tmp_path, run_p2d):
    before, after = write_result(tmp_path / "a.json", 2.0), write_result(tmp_path / "b.json", 2.2)
    done = run_p2d("compare", before, after, "--json", "--tolerance", "0.2")
    document = json.loads(done.stdout)
    assert (document["schema_version"], document["before"], document["after"]) == (1, str(before), str(after))
    assert document["tolerance"] == 0.2
    assert document["changes"][0]["outcome"] == "same"
    assert document["changes"][0]["estimate"] == pytest.approx(1.1, rel=1e-3)


def test_an_invalid_measurement_leaves_with_12(tmp_path, run_p2d):
    before, after = write_result(tmp_path / "a.json", 2.0), write_result(tmp_path / "b.json", 2.0, passed=False)
    done = run_p2d("compare", before, after)
    assert done.exit_code == 12
    assert "INVALID: pruned on ort-cpu" in done.stdout


def test_other_versions_are_compared_and_told(tmp_path, run_p2d):
    before = write_result(tmp_path / "a.json", 2.0)
    after = write_result(tmp_path / "b.json", 2.0, versions={"onnxruntime": "1.31"})
    done = run_p2d("compare", before, after)
    assert done.exit_code == 0
    assert "1.30" in done.stdout
    assert "1.31" in done.stdout


def test_another_machine_is_refused_by_what_differs(tmp_path, run_p2d):
    before = write_result(tmp_path / "a.json", 2.0)
    after = write_result(tmp_path / "b.json", 2.0, machine_class="Two", cpu="Another CPU")
    done = run_p2d("compare", before, after)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "different machines (CPU: One CPU before, Another CPU after); compare results of one machine" in done.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist; name a result of `p2d bench`"),
        ("{", "b.json"),
        ("{}", "the result has schema version None"),
        ('{"schema_version": 1}', "the result is damaged"),
    ],
)
def test_what_is_no_result_is_refused_in_one_line(tmp_path, run_p2d, content, message):
    before, after = write_result(tmp_path / "a.json", 2.0), tmp_path / "b.json"
    if content is not None:
        after.write_text(content)
    done = run_p2d("compare", before, after)
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_folder_without_a_result_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"holds no result.json; name a result"):
        result_file(tmp_path)


@pytest.mark.parametrize("tolerance", ["-0.1", "1", "nan"])
def test_a_tolerance_that_is_none_is_refused(tmp_path, run_p2d, tolerance):
    file = write_result(tmp_path / "a.json", 2.0)
    done = run_p2d("compare", file, file, "--tolerance", tolerance)
    assert done.exit_code == 2
    assert "is no tolerance; pass a share such as --tolerance 0.02" in done.stderr


@pytest.mark.parametrize(
    ("claims", "baseline", "code"), [(0, 0, 0), (11, 13, 13), (10, 13, 10), (10, 12, 12), (12, 13, 12), (11, 0, 11)]
)
def test_of_claims_and_baseline_the_graver_gives_the_exit_code(claims, baseline, code):
    assert gravest(claims, baseline) == code
