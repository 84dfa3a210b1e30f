"""``benchmarks/engines.py`` on a small network: every cell has a record, failures too, and nothing is done twice."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from engines_table import line_of, tables

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "engines.py"
CENSUS = {"layers": {"fp32": 20}, "flops": {"fp32": 1.0}, "origin": "engine"}
RAN = {
    "state": "ran",
    "relative_error": 2e-6,
    "agreement": 1.0,
    "sqnr_db": 114.0,
    "within_gate": True,
    "census": CENSUS,
}


def document(**cells: dict[str, Any]) -> dict[str, Any]:
    return {
        "cells": {f"net/dense/{key.replace('__', '/').replace('_', '-')}": record for key, record in cells.items()},
        "networks": {"net": {"rounding": {"dense": {"fp16": 0.003}}}},
        "speed": {},
    }


def test_the_table_has_errors_layers_and_what_torch_itself_would_lose() -> None:
    file = {"bytes_total": 3 << 20, "census": {**CENSUS, "flops": {"fp16": 0.9, "fp32": 0.1}}}
    over = {**RAN, "relative_error": 0.02, "within_gate": False}
    (matrix,) = tables(document(fp16__onnx=file, fp16__ort_cpu=over, fp16__openvino={"state": "not offered"}))
    row = matrix[-1]
    assert row == "| net | dense | fp16 | 3.0 MiB | fp16 90.0%, fp32 10.0% | 3e-03 | 2e-02 (over), fp32 | – |"


def test_failures_that_are_alike_share_a_line_below_the_table() -> None:
    failed = {"failed": "lacks an operator"}
    matrix, lines = tables(document(fp32__ort_cpu=failed, fp32__openvino=failed, fp32__trt_rtx=RAN))
    assert matrix[-1].count("failed (1)") == 2
    assert lines == ["(1) lacks an operator"]
    assert line_of(failed) == "failed: lacks an operator"


@pytest.mark.slow
def test_a_network_goes_through_its_cells_once_and_a_failure_does_not_stop_it(tmp_path: Path) -> None:
    command = [sys.executable, str(PROGRAM), "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out.json")]
    choice = ["--networks", "absent,resnet8_wide", "--precisions", "fp32,int8", "--engines", "ort-cpu", "--jobs", "1"]
    done = subprocess.run([*command, *choice], capture_output=True, text=True, check=True)
    cells = json.loads((tmp_path / "out.json").read_text())["cells"]
    assert "is not in the zoo" in cells["absent/dense/fp32/ort-cpu"]["failed"]
    for variant in ("dense", "pruned"):
        assert cells[f"resnet8_wide/{variant}/fp32/ort-cpu"]["within_gate"]
        assert cells[f"resnet8_wide/{variant}/int8/ort-cpu"]["agreement"] > 0.8
        assert cells[f"resnet8_wide/{variant}/int8/ort-cpu"]["census"]["layers"]["int8"] > 0
    assert "| resnet8_wide | pruned | int8 |" in done.stdout
    again = subprocess.run([*command, *choice], capture_output=True, text=True, check=True)
    assert again.stderr == ""
    assert again.stdout == done.stdout
