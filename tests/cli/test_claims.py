"""``p2d bench --claims`` on real files: what is measured, printed and written, and how the command leaves."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner, Result

from prune2deploy.cli.app import app


def write_product(path: Path, *, width: int) -> None:
    weight = np.random.default_rng(width).standard_normal((64, width), dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["input", "weight"], ["output"])],
        "network",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", width])],
        [numpy_helper.from_array(weight, "weight")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a file of 256 KB and one of a quarter of it."""
    monkeypatch.chdir(tmp_path)
    write_product(tmp_path / "wide.onnx", width=1000)
    write_product(tmp_path / "narrow.onnx", width=250)
    return tmp_path


def bench(folder: Path, claims: str, *arguments: str) -> Result:
    (folder / "claims.toml").write_text(claims, encoding="utf-8")
    fixed = ("wide.onnx", "narrow.onnx", "--engine", "ort-cpu", "--threads", "1", "--batch", "1", "--builds", "1")
    return CliRunner().invoke(app, ["bench", *fixed, "--claims", "claims.toml", "--max-seconds", "4", *arguments])


def claims_in(result: Result) -> list[dict[str, Any]]:
    document: dict[str, Any] = json.loads(result.stdout)
    found: list[dict[str, Any]] = document["claims"]
    return found


def test_claims_of_several_kinds_are_measured_and_written(folder: Path) -> None:
    claims = """
        [[claim]]
        name = "small enough"
        size_mb = 0.1
        [[claim]]
        size_fraction = 0.2
        [[claim]]
        memory_mb = 100_000
        [[claim]]
        latency_ms = 1000
        percentile = 90
    """
    result = bench(folder, claims, "--json", "--out", "measured")
    found = claims_in(result)
    assert [(claim["kind"], claim["variant"], claim["batch"]) for claim in found] == [
        ("size_mb", "narrow", None), ("size_fraction", "narrow", None), ("memory_mb", "narrow", None),
        ("latency_ms", "narrow", 1),
    ]  # fmt: skip
    assert [claim["verdict"] for claim in found[:3]] == ["CONFIRMED", "REFUTED", "CONFIRMED"]
    assert found[0]["name"] == "small enough"
    assert found[0]["estimate"] == (folder / "narrow.onnx").stat().st_size / 1e6
    assert found[2]["low"] <= found[2]["estimate"] <= found[2]["high"]
    # One build gives no interval, and a busy machine none that is valid.
    assert found[3]["verdict"] in ("UNDECIDED", "INVALID")
    assert result.exit_code == (12 if found[3]["verdict"] == "INVALID" else 10)
    wide, narrow = json.loads(result.stdout)["rows"]
    assert wide["file_bytes"] > narrow["file_bytes"] > 0
    # Memory was claimed of one file only.
    assert (wide["memory_bytes"], narrow["memory_bytes"] > 0) == (None, True)
    assert json.loads((folder / "measured" / "result.json").read_text(encoding="utf-8"))["claims"] == found


@pytest.mark.parametrize(("bound", "code", "verdict"), [("0.1", 0, "CONFIRMED"), ("0.01", 10, "REFUTED")])
def test_an_exact_claim_sets_the_exit_code_however_noisy_the_machine(
    bound: str, code: int, verdict: str, folder: Path
) -> None:
    result = bench(folder, f"[[claim]]\nsize_mb = {bound}")
    assert result.exit_code == code
    line = next(line for line in result.stdout.splitlines() if line.startswith(verdict))
    assert "the file of narrow takes at most" in line
    assert "on ort-cpu (claimed); measured 64.1 kB" in line


@pytest.mark.parametrize(
    ("claims", "said"),
    [
        ("[[claim]]\nspeed = 2", "claims.toml, claim 1: unknown key 'speed'"),
        ("[[claim]]\nspeedup = 2\nvariant = 'pruned'", "pruned is not measured in this run; measured are wide, narrow"),
        ("[[claim]]\nspeedup = 'flops'\nvariant = 'wide'", "claims.toml, claim 1: nothing that is measured is claimed"),
        ("[[claim]]\naccuracy = 0.9", "accuracy: there are no labelled images to count with"),
        ("[[claim]]\nenergy_mj = 9", "energy_mj: ort-cpu runs on the CPU"),
    ],
)  # fmt: skip
def test_bad_claims_leave_with_2_in_one_line_and_measure_nothing(claims: str, said: str, folder: Path) -> None:
    result = bench(folder, claims, "--out", "measured")
    assert result.exit_code == 2
    assert said in result.stderr.splitlines()[-1]
    assert not (folder / "measured").exists()


def test_a_file_of_claims_that_is_not_there_is_refused(folder: Path) -> None:
    result = CliRunner().invoke(app, ["bench", "wide.onnx", "narrow.onnx", "--claims", "nowhere.toml"])
    assert result.exit_code == 2
    assert "nowhere.toml: there is no such file" in result.stderr
