"""ONNX Runtime on a GPU: what it refuses without one, and (marked) what it computes with one."""

import numpy as np
import pytest

from prune2deploy.engines.capabilities import DeviceClock, InputCopies, Queue
from prune2deploy.engines.cuda import CudaDevice, find_device
from prune2deploy.engines.engine import BuildOptions
from prune2deploy.engines.onnx_file import read_onnx_file
from prune2deploy.engines.onnxruntime import cuda as ort_cuda
from prune2deploy.engines.onnxruntime.cuda import CUDA_PROVIDER, OrtCudaEngine, OrtCudaRun
from prune2deploy.engines.onnxruntime.session import CPU_PROVIDER, Provider, open_session
from prune2deploy.errors import EngineError

ENGINE = OrtCudaEngine()
GPU = CudaDevice(name="a GPU", compute_capability=(8, 6), driver_version=13000)
NO_GPU = pytest.mark.skipif(isinstance(find_device(), CudaDevice), reason="says what is refused without a GPU")


def images(batch: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, 3, 8, 8)).astype(np.float32)


@NO_GPU
def test_without_a_gpu_it_says_so_and_what_to_do(write_network) -> None:
    found = ENGINE.availability()
    assert not found.runs
    assert not found.builds
    assert found.reason
    assert found.hint
    with pytest.raises(EngineError, match=r"^ort-cuda: "):
        ENGINE.build(write_network(), BuildOptions())


def test_the_cpu_edition_of_the_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: [CPU_PROVIDER])
    found = ENGINE.availability()
    assert found.reason == "this onnxruntime is the CPU edition"
    assert found.hint is not None
    assert "onnxruntime-gpu" in found.hint


@NO_GPU
def test_a_provider_that_falls_back_to_the_cpu_is_not_usable(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: [CUDA_PROVIDER, CPU_PROVIDER])
    monkeypatch.setattr(ort_cuda, "find_device", lambda: GPU)
    ort_cuda._provider_loads.cache_clear()
    found = ENGINE.availability()
    ort_cuda._provider_loads.cache_clear()
    assert not found.runs
    assert found.reason is not None
    assert "CUDA provider of onnxruntime does not load" in found.reason
    assert capfd.readouterr().out == ""


@NO_GPU
def test_a_session_that_fell_back_to_the_cpu_is_never_run(write_network) -> None:
    with pytest.raises(EngineError, match="onnxruntime fell back to the CPU; see `p2d doctor`"):
        OrtCudaRun(read_onnx_file(write_network()), BuildOptions(), graph=False)


def test_a_layer_that_is_left_to_the_cpu_is_named(write_network, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_network()
    session = open_session(path, Provider(engine="ort-cuda", name=CPU_PROVIDER), 1)
    monkeypatch.setattr(session, "get_providers", lambda: [CUDA_PROVIDER, CPU_PROVIDER])
    with pytest.raises(EngineError, match=r"cannot run operator Conv \(node 'conv'\) on the GPU"):
        ort_cuda._require_on_gpu(session, path)


def test_int8_files_are_refused_because_it_would_compute_them_in_fp32() -> None:
    assert "int8" not in ENGINE.precisions


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("tf32", 5e-3), ("fp16", 1e-2)])
def test_on_a_gpu_it_computes_the_network_at_every_batch(
    write_network, reference, precision: str, tolerance: float
) -> None:
    stored = "fp32" if precision == "tf32" else precision
    built = ENGINE.build(write_network(precision=stored), BuildOptions(precision=precision))
    for batch in (1, 4, 4, 1):
        for seed in (1, 2):
            inputs = images(batch, seed=seed).astype(built.inputs[0].dtype)
            built.bind({"input": inputs})
            built.run()
            built.run()
            expected = reference(inputs)
            assert np.linalg.norm(built.read()["output"] - expected) < tolerance * np.linalg.norm(expected)
    told = built.inspect()
    assert told["cuda_graph"]
    assert told["tf32"] == (precision == "tf32")
    assert told["census"]["layers"] == {stored: 2}
    built.close()
    with pytest.raises(EngineError, match="closed"):
        built.bind({"input": images(1)})


@pytest.mark.gpu
def test_on_a_gpu_copies_are_timed_and_nothing_that_needs_launches_without_waiting(write_network, reference) -> None:
    built = ENGINE.build(write_network(), BuildOptions())
    assert isinstance(built, InputCopies)
    assert not isinstance(built, DeviceClock)
    assert not isinstance(built, Queue)
    inputs = images(4)
    built.bind({"input": inputs})
    assert len(built.time_copies(5)) == 5
    built.run()
    expected = reference(inputs)
    assert np.linalg.norm(built.read()["output"] - expected) < 1e-4 * np.linalg.norm(expected)
