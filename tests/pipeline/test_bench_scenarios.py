"""``p2d bench --scenario``: the batch sizes of each, and what is refused before anything is done."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

QUICK = ("--engine", "ort-cpu", "--threads", "1", "--builds", "1", "--max-seconds", "1", "--quiet")


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """One matrix, for any batch size."""
    matrix = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["input", "matrix"], ["output"])],
        "network",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 64])],
        [numpy_helper.from_array(matrix, "matrix")],
    )
    path = tmp_path / "network.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


@pytest.mark.parametrize(("scenario", "batch"), [("single-stream", 1), ("offline", 32)])
def test_a_scenario_brings_its_batch_size(network: Path, run_p2d: Any, scenario: str, batch: int) -> None:
    done = run_p2d("bench", network, *QUICK, "--scenario", scenario, "--json")
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["protocol"]["scenario"] == scenario
    (row,) = document["rows"]
    assert row["batch"] == batch
    assert row["throughput_per_s"] > 0


def test_the_table_says_what_the_scenario_judges(network: Path, run_p2d: Any) -> None:
    done = run_p2d("bench", network, *QUICK, "--scenario", "offline", "--batch", "4")
    assert done.exit_code == 0, done.stderr
    assert "Speed on ort-cpu, fp32, offline" in done.stdout
    assert "inputs/s, judged" in done.stdout


def test_single_stream_of_larger_batches_is_refused_before_the_run_is_looked_at(tmp_path: Path, run_p2d: Any) -> None:
    (tmp_path / "no-run").mkdir()
    done = run_p2d("bench", tmp_path / "no-run", *QUICK, "--scenario", "single-stream", "--batch", "1,8")
    assert (done.exit_code, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("p2d: error: --batch: single-stream sends one input at a time, not 8; leave it out")


def test_a_file_of_a_fixed_batch_has_no_single_stream(network: Path, run_p2d: Any) -> None:
    model = onnx.load(network)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, network)
    done = run_p2d("bench", network, *QUICK, "--scenario", "single-stream")
    assert done.exit_code == 2
    assert "single-stream sends one input at a time, not 4" in done.stderr


def test_an_unknown_scenario_is_refused_with_those_that_are_known(network: Path, run_p2d: Any) -> None:
    done = run_p2d("bench", network, *QUICK, "--scenario", "server")
    assert done.exit_code == 2
    assert "offline" in done.stderr
    assert done.stderr.count("\n") == 1
