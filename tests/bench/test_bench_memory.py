"""The memory that an engine adds to a process: real processes, judged by what must be in it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from prune2deploy.bench.aside.memory import gpu_meter, host_meter, measure_memory, peak_memory_bytes
from prune2deploy.bench.claims.kinds import Claim
from prune2deploy.bench.claims.targets import memory_subjects
from prune2deploy.bench.jobs import BuildJob
from prune2deploy.bench.subjects import BenchOptions, BenchRequest, Subject
from prune2deploy.engines.registry import best_engine, engine_named
from prune2deploy.errors import EngineError, InputError

MEGABYTE = 10**6
WIDTH = 2048


def write_layers(path: Path, *, layers: int) -> Subject:
    """``layers`` matrix products of 16.8 MB of weights each."""
    generator = np.random.default_rng(0)
    values = ["input", *(f"hidden{layer}" for layer in range(layers - 1)), "output"]
    graph = helper.make_graph(
        [helper.make_node("MatMul", [values[layer], f"weight{layer}"], [values[layer + 1]]) for layer in range(layers)],
        "network",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", WIDTH])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", WIDTH])],
        [
            numpy_helper.from_array(generator.standard_normal((WIDTH, WIDTH), dtype=np.float32), f"weight{layer}")
            for layer in range(layers)
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return Subject(variant=path.stem, precision="fp32", onnx_path=path, sha256="")


def request_of(*subjects: Subject) -> BenchRequest:
    return BenchRequest(subjects=subjects, engine="ort-cpu", batches=(1, 4), options=BenchOptions())


def test_a_meter_sees_what_was_touched_and_let_go_again() -> None:
    with host_meter() as risen:
        before = risen()
        block = bytearray(b"1") * (64 * MEGABYTE)
        del block
        assert risen() - before > 60 * MEGABYTE


def test_a_process_holds_at_least_the_weights_and_more_weights_take_more(tmp_path: Path) -> None:
    small, large = write_layers(tmp_path / "small.onnx", layers=1), write_layers(tmp_path / "large.onnx", layers=4)
    peaks = measure_memory(request_of(small, large), (small, large), None, repetitions=1)
    assert set(peaks) == {"small/fp32", "large/fp32"}
    weights = WIDTH * WIDTH * 4
    (least,), (most,) = peaks["small/fp32"], peaks["large/fp32"]
    assert least >= weights
    assert most >= 4 * weights
    assert most - least > 2 * weights
    # Loading the library takes more than this network, and does not count.
    assert least < 8 * weights


def test_memory_is_measured_of_what_is_claimed_or_of_all(tmp_path: Path) -> None:
    subjects = [write_layers(tmp_path / f"{name}.onnx", layers=1) for name in ("dense", "pruned")]
    request = request_of(*subjects)
    assert memory_subjects(request) == ()
    assert measure_memory(request, (), None) == {}
    claimed = replace(request, claims=(Claim(kind="memory_mb", bound=1.0), Claim(kind="size_mb", bound=1.0)))
    assert memory_subjects(claimed) == (subjects[1],)
    assert memory_subjects(replace(request, options=BenchOptions(memory=True))) == tuple(subjects)


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is an NVIDIA driver")
def test_a_gpu_that_does_not_tell_its_memory_is_an_engine_error() -> None:
    with pytest.raises(EngineError, match="--memory: the GPU does not tell"), gpu_meter():
        pass


@pytest.mark.gpu
def test_an_engine_on_the_gpu_takes_at_least_its_weights_there(tmp_path: Path) -> None:
    subject = write_layers(tmp_path / "large.onnx", layers=4)
    request = replace(request_of(subject), engine=best_engine("fp32").name)
    ((peak,),) = measure_memory(request, (subject,), None, repetitions=1).values()
    assert peak >= 4 * WIDTH * WIDTH * 4


def test_an_engine_that_cannot_be_built_says_so(tmp_path: Path) -> None:
    path = tmp_path / "damaged.onnx"
    path.write_bytes(b"not onnx")
    damaged = Subject(variant="damaged", precision="fp32", onnx_path=path, sha256="")
    with pytest.raises(InputError, match=r"damaged\.onnx: is no ONNX file"):
        measure_memory(request_of(damaged), (damaged,), None)


def test_a_batch_that_the_file_does_not_take_is_refused(networks: Any) -> None:
    fixed = networks.subject("dense", batch=2)
    job = BuildJob(request=request_of(fixed), build=0, cpus=None, budget_seconds=None)
    with pytest.raises(InputError, match="batch size 2, not 1"):
        peak_memory_bytes(job, engine_named("ort-cpu"))
