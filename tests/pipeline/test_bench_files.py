"""``p2d bench`` of files that belong to no run: no torch, any shapes, and a gate against an earlier result."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from prune2deploy.bench.machine.environment import describe_environment
from prune2deploy.bench.result import BenchResult
from prune2deploy.bench.samples import Block, BuildSamples, Cell
from prune2deploy.bench.subjects import BenchRequest
from prune2deploy.bench.summary import summarise
from prune2deploy.pipeline import bench as pipeline_bench

QUICK = ("--engine", "ort-cpu", "--threads", "1", "--builds", "1", "--max-seconds", "1")


def write_convolution(path: Path, *, channels: int = 8, value: float = 1.0) -> Path:
    """One 3x3 convolution of an image, each weight ``value``."""
    kernel = np.full((channels, 3, 3, 3), value, dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["input", "kernel"], ["output"])],
        "network",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, "height", "width"])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", channels, "h", "w"])],
        [numpy_helper.from_array(kernel, "kernel")],
    )
    return save(graph, path)


def write_tokens(path: Path, *, width: int = 8) -> Path:
    """Rows of a table for each token, times a mask, times a matrix."""
    generator = np.random.default_rng(0)
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "tokens"], ["embedded"]),
            helper.make_node("Unsqueeze", ["mask", "last"], ["column"]),
            helper.make_node("Mul", ["embedded", "column"], ["kept"]),
            helper.make_node("MatMul", ["kept", "matrix"], ["output"]),
        ],
        "network",
        [
            helper.make_tensor_value_info("tokens", TensorProto.INT64, ["batch", "length"]),
            helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["batch", "length"]),
        ],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", "length", width])],
        [
            numpy_helper.from_array(generator.standard_normal((10, width)).astype(np.float32), "table"),
            numpy_helper.from_array(generator.standard_normal((width, width)).astype(np.float32), "matrix"),
            numpy_helper.from_array(np.array([2]), "last"),
        ],
    )
    return save(graph, path)


def save(graph: onnx.GraphProto, path: Path) -> Path:
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


@pytest.fixture
def two_files(tmp_path: Path) -> tuple[Path, Path]:
    return write_convolution(tmp_path / "wide.onnx"), write_convolution(tmp_path / "narrow.onnx", channels=4)


def test_neither_process_imports_torch(two_files, tmp_path):
    trap, told = tmp_path / "trap" / "torch", tmp_path / "told"
    trap.mkdir(parents=True)
    (trap / "__init__.py").write_text(f"open({str(told)!r}, 'w').close()\nraise ImportError('torch is not wanted')\n")
    environment = {**os.environ, "PYTHONPATH": str(trap.parent), "OMP_NUM_THREADS": "1"}
    arguments = ("bench", *map(str, two_files), *QUICK, "--shape", "input=1x3x8x8", "--json", "--quiet")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "prune2deploy", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [row["variant"] for row in json.loads(done.stdout)["rows"]] == ["wide", "narrow"]
    assert not told.exists()
    subprocess.run([sys.executable, "-P", "-c", "import torch"], env=environment, capture_output=True, check=False)
    assert told.exists(), "the trap does not close"


@pytest.mark.parametrize("engine", ["ort-cpu", "openvino"])
def test_several_inputs_integers_and_a_free_length_are_measured_at_the_given_shapes(engine, tmp_path, run_p2d):
    files = write_tokens(tmp_path / "wide.onnx"), write_tokens(tmp_path / "narrow.onnx", width=4)
    shapes = ("--shape", "tokens=2x16", "--shape", "mask=2x16")
    done = run_p2d("bench", *files, *QUICK, "--engine", engine, *shapes, "--json", "--quiet")
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["protocol"]["shapes"] == {"tokens": [2, 16], "mask": [2, 16]}
    for row, share in zip(document["rows"], (1.0, 0.25), strict=True):
        assert (row["batch"], row["flops_fraction"]) == (2, share)
        assert (row["accuracy"], row["parity_max_error"]) == (None, None)
        assert row["latency_ns"]["p50"] > 0
    assert document["claims"][0]["claim"] == 4.0
    assert document["claims"][0]["asked"] is False


def test_outputs_that_are_no_numbers_are_told(tmp_path, run_p2d):
    good = write_convolution(tmp_path / "good.onnx")
    bad = write_convolution(tmp_path / "bad.onnx", value=float("nan"))
    done = run_p2d("bench", good, bad, *QUICK, "--shape", "input=1x3x8x8", "--json", "--quiet")
    notes = [note for note in json.loads(done.stdout)["notes"] if "no number" in note]
    assert len(notes) == 1
    assert notes[0].startswith("bad gives infinity or what is no number (output) on random inputs")


def test_a_shape_that_the_network_cannot_take_is_refused_in_one_line(tmp_path, run_p2d):
    file = write_tokens(tmp_path / "a.onnx")
    done = run_p2d("bench", file, *QUICK, "--shape", "tokens=2x16", "--shape", "mask=3x7", "--quiet")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "a.onnx: does not take these arrays" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.fixture
def measured_as(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let the next measurement give these medians in ns by variant, in builds that wander a little."""

    def measure(medians_ns: dict[str, float], *, control: float = 1.0) -> None:
        def run_bench(request: BenchRequest, **_: Any) -> BenchResult:
            slots = [*((name, 0, median) for name, median in medians_ns.items())]
            slots.append((request.baseline, 1, medians_ns[request.baseline] * control))
            builds = []
            for number in range(5):
                blocks = tuple(
                    Block(
                        variant=name,
                        copy=copy,
                        round=turn,
                        position=position,
                        samples_ns=(round(median * (1 + 0.001 * ((number * 7 + position) % 3))),) * 3,
                    )
                    for turn in range(3)
                    for position, (name, copy, median) in enumerate(slots)
                )
                cell = Cell(precision="fp32", batch=1, blocks=blocks, warmup=(), signals=({},) * 4)
                builds.append(BuildSamples(build=number, cpus=None, cells=(cell,), engines=()))
            environment = describe_environment(threads=request.options.threads, cpus=None)
            return summarise(request, builds, environment=environment)

        monkeypatch.setattr(pipeline_bench, "run_bench", run_bench)

    return measure


GATED = ("--engine", "ort-cpu", "--threads", "1", "--builds", "5", "--shape", "input=1x3x8x8", "--quiet")


def test_a_speed_up_that_shrank_leaves_with_13_and_is_kept_in_the_result(two_files, tmp_path, run_p2d, measured_as):
    measured_as({"wide": 1e6, "narrow": 0.5e6})
    assert run_p2d("bench", *two_files, *GATED, "--out", tmp_path / "before").exit_code == 0
    # Both are slower than they were, and the ratio shrank from 2.0 to 1.8.
    measured_as({"wide": 1.8e6, "narrow": 1e6})
    gated = (*GATED, "--baseline", tmp_path / "before", "--out", tmp_path / "after")
    done = run_p2d("bench", *two_files, *gated)
    assert done.exit_code == 13, done.stderr
    assert "slower: narrow on ort-cpu at fp32, batch 1: its speed-up shrank (2.00× before, 1.80× after" in done.stdout
    assert "Against the baseline" in done.stdout
    kept = json.loads((tmp_path / "after/result.json").read_text())["baseline_comparison"]
    assert kept["file"] == str(tmp_path / "before/result.json")
    assert kept["changes"][0]["outcome"] == "slower"
    assert run_p2d("bench", *two_files, *gated, "--baseline-tolerance", "0.2").exit_code == 0


def test_claims_and_the_control_come_before_and_after_the_baseline(two_files, tmp_path, run_p2d, measured_as):
    measured_as({"wide": 1e6, "narrow": 0.5e6})
    run_p2d("bench", *two_files, *GATED, "--out", tmp_path / "before")
    gated = (*GATED, "--baseline", tmp_path / "before")
    measured_as({"wide": 1.8e6, "narrow": 1e6})
    assert run_p2d("bench", *two_files, *gated, "--claim", "1.5").exit_code == 13
    assert run_p2d("bench", *two_files, *gated, "--claim", "3").exit_code == 10
    measured_as({"wide": 1.8e6, "narrow": 1e6}, control=1.2)
    assert run_p2d("bench", *two_files, *gated).exit_code == 12
    measured_as({"wide": 2e6, "narrow": 1e6})
    assert run_p2d("bench", *two_files, *gated).exit_code == 0


def test_a_baseline_that_cannot_be_compared_with_is_refused_before_anything_is_measured(
    two_files, tmp_path, run_p2d, measured_as, monkeypatch
):
    measured_as({"wide": 1e6, "narrow": 0.5e6}, control=1.2)
    run_p2d("bench", *two_files, *GATED, "--out", tmp_path / "invalid")
    measured_as({"wide": 1e6, "narrow": 0.5e6})
    run_p2d("bench", *two_files, *GATED, "--out", tmp_path / "before")

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("it was measured")

    monkeypatch.setattr(pipeline_bench, "run_bench", never)
    gated = (*GATED, "--baseline", tmp_path / "before")
    other = write_convolution(tmp_path / "other.onnx")
    for arguments, message in (
        ((two_files[0], other, *gated), "the results share no variant, engine, precision and batch"),
        ((*two_files, *gated, "--threads", "2"), "different numbers of threads (1 before, 2 after)"),
        ((*two_files, *gated, "--scenario", "single-stream"), "different scenarios (batches before, single-stream"),
        ((*two_files, *gated, "--shape", "input=1x3x9x9"), "input input is named twice"),
        ((*two_files, *GATED, "--baseline", tmp_path / "invalid"), "its own measurement is INVALID on ort-cpu"),
        ((*two_files, *GATED, "--baseline", two_files[0]), "wide.onnx"),
    ):
        done = run_p2d("bench", *arguments)
        assert (done.exit_code, done.stdout) == (2, ""), arguments
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
