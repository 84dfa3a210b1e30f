"""``p2d bench --profile`` on files of no run: what is printed, and what lies in the document."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from prune2deploy.cli.app import app


def write_file(path: Path, *, width: int) -> Path:
    """Two 3x3 convolutions of an 16x16 image with free batch."""
    generator = np.random.default_rng(width)
    first = generator.standard_normal((width, 3, 3, 3)).astype(np.float32)
    second = generator.standard_normal((8, width, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["input", "first"], ["a"], name="one", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["a"], ["b"], name="relu"),
            helper.make_node("Conv", ["b", "second"], ["output"], name="two", pads=[1, 1, 1, 1]),
        ],
        "network",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 16, 16])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 8, 16, 16])],
        [numpy_helper.from_array(first, "first"), numpy_helper.from_array(second, "second")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def test_the_split_and_the_layers_are_shown_and_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_file(tmp_path / "wide.onnx", width=32)
    write_file(tmp_path / "narrow.onnx", width=20)
    command = ["bench", "wide.onnx", "narrow.onnx", "--engine", "ort-cpu", "--threads", "1", "--batch", "1"]
    done = CliRunner().invoke(app, [*command, "--builds", "1", "--profile", "--out", "out"])
    assert done.exit_code == 0, done.output
    assert "Where the speed went, ort-cpu, fp32, batch 1" in done.stdout
    assert "lost to misaligned widths" in done.stdout
    assert "Slowest layers, narrow" in done.stdout
    assert "3×32 → 3×20" in done.stdout
    document: dict[str, Any] = json.loads((tmp_path / "out" / "result.json").read_text())
    wide, narrow = document["rows"]
    assert document["protocol"]["granules"]["fp32"] == 16
    assert "attribution" not in wide["profile"]
    found = narrow["profile"]["attribution"]
    assert sum(found["losses"].values()) == pytest.approx(1 - narrow["yield"])
    assert found["padded"] > 0
    assert {"one", "two", "relu"} <= {node for layer in wide["profile"]["layers"] for node in layer["nodes"]}
