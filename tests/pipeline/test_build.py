"""``p2d build`` on a run with ONNX files: real engines of TensorRT for RTX, without a GPU."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner, Result

from prune2deploy.cli.app import app
from prune2deploy.engines.tensorrt.engine_file import read_record
from prune2deploy.run import OnnxRecord, RunFolder, RunManifest, VariantRecord
from prune2deploy.storage import sha256_of_file

pytest.importorskip("tensorrt_rtx")


def write_network(path: Path, *, width: int, layers: int = 1, half: bool = False) -> None:
    element, dtype = (TensorProto.FLOAT16, np.float16) if half else (TensorProto.FLOAT, np.float32)
    nodes, weights, last, channels = [], [], "input", 3
    for number in range(layers):
        kernel = np.random.default_rng(number).standard_normal((width, channels, 3, 3)).astype(dtype)
        weights.append(numpy_helper.from_array(kernel, f"kernel{number}"))
        made = "output" if number == layers - 1 else f"made{number}"
        nodes.append(helper.make_node("Conv", [last, f"kernel{number}"], [made], name=f"conv{number}"))
        last, channels = made, width
    size = 64 - 2 * layers
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("input", element, ["batch", 3, 64, 64])],
        [helper.make_tensor_value_info("output", element, ["batch", width, size, size])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """The latest run: two variants, in single and half precision."""
    monkeypatch.chdir(tmp_path)
    return made_run(layers=1)


def made_run(*, layers: int) -> RunFolder:
    manifest = RunManifest(
        command=("p2d", "prune"), created="now", versions={}, model="net", input_shape=(3, 64, 64), data=None, seed=0
    )
    run = RunFolder.create(manifest, name="net")
    variants = {}
    for variant, width in (("dense", 16), ("pruned", 8)):
        files = {}
        for precision in ("fp32", "fp16"):
            file = f"onnx/{variant}-{precision}.onnx"
            path = run.path / file
            write_network(path, width=width, layers=layers, half=precision == "fp16")
            digest = sha256_of_file(path)
            files[precision] = OnnxRecord(
                file=file, sha256=digest, bytes_total=path.stat().st_size, parity_max_error=0.0
            )
        variants[variant] = VariantRecord(name=variant, bundle=variant, flops=1, parameters=1, onnx=files)
    run.evaluation_path.write_bytes(b"")
    run.save(RunManifest(**{**{name: getattr(manifest, name) for name in manifest.__slots__}, "variants": variants}))
    return run


def build(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["build", *map(str, arguments)])


def refused(code: int, *arguments: object) -> str:
    result = build(*arguments)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("p2d: error: ")]
    return line


def test_every_variant_and_precision_gets_an_engine_and_its_row(run: RunFolder) -> None:
    result = build("--engine", "trt-rtx", "--precision", "fp32,fp16", "--batch", "1,1:4:8")
    assert result.exit_code == 0, result.output
    for variant in ("dense", "pruned"):
        for precision in ("fp32", "fp16"):
            record = read_record(run.engines_path / f"{variant}-{precision}-trt-rtx.engine")
            assert (record.precision, record.batches, record.ranges) == (precision, (1,), ((1, 4, 8),))
            (row,) = [
                line for line in result.stdout.splitlines() if line.startswith(f"{variant}") and precision in line
            ]
            assert f"{precision} 100% of FLOPs" in row
    assert not [path for path in run.engines_path.iterdir() if path.name.startswith(".")]


def test_what_is_current_is_left_and_said(run: RunFolder) -> None:
    build("--engine", "trt-rtx", "--batch", 1)
    before = {path: path.stat().st_mtime_ns for path in run.engines_path.iterdir()}
    assert len(before) == 4
    result = build("--engine", "trt-rtx", "--batch", 1)
    assert "note: every engine was there already" in result.stdout
    assert {path: path.stat().st_mtime_ns for path in run.engines_path.iterdir()} == before
    result = build("--engine", "trt-rtx", "--batch", 1, "--precision", "fp32,fp16")
    assert "note: 2 of 4 engines were there already" in result.stdout


def test_auto_takes_the_engine_that_builds_here(run: RunFolder) -> None:
    result = build("--batch", 1)
    assert result.exit_code == 0, result.output
    assert len(list(run.engines_path.glob("*.engine"))) == 2


def test_capabilities_are_built_for_in_one_engine(run: RunFolder) -> None:
    result = build("--engine", "trt-rtx", "--batch", 1, "--compute-capability", "8.9,8.6")
    assert result.exit_code == 0, result.output
    record = read_record(run.engines_path / "dense-fp32-trt-rtx.engine")
    assert record.compute_capabilities == ((8, 6), (8, 9))


@pytest.mark.parametrize(
    ("code", "arguments", "said"),
    [
        (2, ("--compute-capability", "9.0"), "does not build for 9.0; choose from 7.5, 8.0"),
        (5, ("--hardware-compatible",), "--hardware-compatible: trt-rtx"),
        (5, ("--version-compatible",), "--version-compatible: trt-rtx"),
        (5, ("--workspace", "1MiB", "--batch", "512"), "allow more with --workspace"),
        (5, ("--engine", "ort-cpu"), "ort-cpu"),
    ],
)
def test_what_cannot_be_built_is_one_line_and_leaves_nothing(
    run: RunFolder, code: int, arguments: tuple[str, ...], said: str
) -> None:
    assert said in refused(code, "--engine", "trt-rtx", "--batch", "1", *arguments)
    assert not list(run.path.rglob("*.engine*"))


def test_an_interrupted_build_leaves_with_130_and_goes_on_with_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = made_run(layers=30)
    # SIGINT as soon as the second build shows its first phase.
    program = (
        "import os, signal, sys\n"
        "from prune2deploy.engines.tensorrt import monitor as tensorrt_monitor\n"
        "begun = []\n"
        "start = tensorrt_monitor.BuildWatch.phase_start\n"
        "def phase_start(self, name, parent, steps):\n"
        "    start(self, name, parent, steps)\n"
        "    if parent is None:\n"
        "        begun.append(name)\n"
        "        if len(begun) == 2:\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "            __import__('time').sleep(0.5)\n"
        "tensorrt_monitor.BuildWatch.phase_start = phase_start\n"
        "from prune2deploy.cli.app import main\n"
        "sys.argv = ['p2d', 'build', '--engine', 'trt-rtx', '--batch', '1']\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 128 + signal.SIGINT, done.stderr
    assert "interrupted" in done.stderr
    assert sorted(path.name for path in run.engines_path.iterdir()) == [
        "dense-fp32-trt-rtx.engine",
        "dense-fp32-trt-rtx.engine.json",
    ]
    result = build("--engine", "trt-rtx", "--batch", 1)
    assert "1 of 2 engines were there already" in result.stdout
