"""The registry of engines."""

import subprocess
import sys

import pytest

from prune2deploy.engines.engine import Availability
from prune2deploy.engines.onnxruntime.cpu import OrtCpuEngine
from prune2deploy.engines.registry import all_engines, best_engine, engine_named
from prune2deploy.errors import EngineError, InputError


def test_every_engine_is_found_by_its_name() -> None:
    assert [engine.name for engine in all_engines()] == [
        *("trt", "trt-rtx", "ort-cuda", "ort-cpu", "openvino", "torch-cuda-graph", "torch", "torch-compile"),
    ]
    for engine in all_engines():
        assert engine_named(engine.name) is engine


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"'tvm'.*auto, trt, trt-rtx, ort-cuda, ort-cpu, openvino"):
        engine_named("tvm")


def test_availability_never_raises_and_gives_advice_for_what_is_missing() -> None:
    for engine in all_engines():
        found = engine.availability()
        assert found.runs <= found.builds
        if not found.runs:
            assert found.reason
            assert found.hint


def test_auto_is_the_first_that_runs() -> None:
    running = [engine.name for engine in all_engines() if engine.availability().runs]
    assert engine_named("auto").name == running[0]
    assert best_engine("fp32").name == running[0]


def test_no_engine_for_a_precision_is_an_engine_error(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = Availability(runs=False, builds=False, reason="absent", hint="install it")
    monkeypatch.setattr(OrtCpuEngine, "availability", lambda self: absent)
    monkeypatch.setattr("prune2deploy.engines.registry._ENGINES", (OrtCpuEngine(),))
    with pytest.raises(EngineError, match="no engine runs fp32 and int8"):
        best_engine("fp32", "int8")


def test_auto_passes_over_engines_without_the_precision() -> None:
    assert "bf16" not in OrtCpuEngine.precisions
    assert "bf16" in best_engine("fp32", "bf16").precisions


def test_engines_import_no_torch_and_load_no_runtime_before_it_is_asked_for() -> None:
    code = (
        "import sys; import prune2deploy.engines.registry, prune2deploy.engines.parity, prune2deploy.engines.accuracy;"
        "heavy = ('torch', 'onnxruntime', 'openvino', 'tensorrt', 'tensorrt_rtx', 'cuda');"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
