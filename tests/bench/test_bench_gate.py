"""What stands before every timing."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnxruntime.quantization import QuantType, quantize_static

from prune2deploy.bench.jobs import BuildJob
from prune2deploy.bench.measure import run_bench
from prune2deploy.bench.subjects import BenchOptions, BenchRequest, Subject
from prune2deploy.bench.timed.build import measure_build
from prune2deploy.bench.timed.gate import pass_gate
from prune2deploy.engines.engine import BuildOptions, BuiltEngine
from prune2deploy.engines.registry import engine_named
from prune2deploy.errors import EngineError, ParityError
from prune2deploy.evaluation import EvaluationSet

QUICK = BenchOptions(builds=1, rounds=3, block_seconds=0.002)


def quantised(subject: Subject, images: np.ndarray) -> Subject:
    """The same network in int8."""
    path = subject.onnx_path.with_name(f"{subject.variant}-int8.onnx")
    batches = iter([{"input": images}])
    quantize_static(
        subject.onnx_path,
        path,
        SimpleNamespace(get_next=lambda: next(batches, None)),
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
    )
    return replace(subject, precision="int8", onnx_path=path)


def halved(subject: Subject) -> Subject:
    """The same network with half weights, inputs and outputs."""
    model = onnx.load(subject.onnx_path)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    path = subject.onnx_path.with_name(f"{subject.variant}-fp16.onnx")
    onnx.save(model, path)
    return replace(subject, precision="fp16", onnx_path=path)


@contextmanager
def built(subject: Subject) -> Iterator[BuiltEngine]:
    engine = engine_named("ort-cpu").build(subject.onnx_path, BuildOptions(precision=subject.precision))
    yield engine
    engine.close()


@pytest.fixture
def fp32(networks: Any) -> Subject:
    return networks.subject("dense", channels=16, flops_fraction=1.0)


@pytest.fixture
def evaluation_path(networks: Any, fp32: Subject) -> Path:
    return networks.evaluation(fp32)


@pytest.fixture
def int8(fp32: Subject, evaluation_path: Path) -> Subject:
    return quantised(fp32, EvaluationSet.load(evaluation_path).inputs)


def silent(fraction: float, text: str) -> None:
    """Progress that nobody sees."""


def request_for(subject: Subject, evaluation: Path, engine: str = "ort-cpu") -> BenchRequest:
    return BenchRequest(subjects=(subject,), engine=engine, batches=(1, 8), evaluation=evaluation, options=QUICK)


def test_fp32_is_held_to_its_numbers(fp32: Subject, evaluation_path: Path) -> None:
    with built(fp32) as engine:
        passed = pass_gate(engine, EvaluationSet.load(evaluation_path), fp32, (1, 64))
    assert passed.error is not None
    assert 0 < passed.error < 1e-4
    assert passed.agreement is None


def test_int8_is_held_to_its_answers(int8: Subject, evaluation_path: Path) -> None:
    with built(int8) as engine:
        passed = pass_gate(engine, EvaluationSet.load(evaluation_path), int8, (1, 8, 64))
    assert passed.agreement is not None
    assert passed.agreement > 0.94
    assert passed.error is not None
    assert 1e-4 < passed.error < 0.1


def test_int8_that_answers_otherwise_is_refused(int8: Subject, evaluation_path: Path) -> None:
    evaluation = EvaluationSet.load(evaluation_path)
    shuffled = np.roll(evaluation.references["dense"], 1, axis=1)
    wrong = replace(evaluation, references={"dense": shuffled})
    with built(int8) as engine, pytest.raises(ParityError, match=r"dense: int8 names the class .* on \d.*% of 40"):
        pass_gate(engine, wrong, int8, (8,))


def test_int8_that_was_exported_with_less_agreement_is_held_to_that(int8: Subject, evaluation_path: Path) -> None:
    evaluation = EvaluationSet.load(evaluation_path)
    outputs = evaluation.references["dense"].copy()
    # A fifth of the references name another class.
    outputs[:8] = np.roll(outputs[:8], 1, axis=1)
    other = replace(evaluation, references={"dense": outputs})
    with built(int8) as engine:
        with pytest.raises(ParityError):
            pass_gate(engine, other, int8, (8,))
        assert pass_gate(engine, other, replace(int8, agreement=0.85), (8,)).agreement == pytest.approx(0.8, abs=0.06)


def test_int8_that_gives_no_numbers_is_refused(int8: Subject, evaluation_path: Path) -> None:
    evaluation = EvaluationSet.load(evaluation_path)
    references = np.full_like(evaluation.references["dense"], np.nan)
    with built(int8) as engine, pytest.raises(ParityError, match="not all numbers"):
        pass_gate(engine, replace(evaluation, references={"dense": references}), int8, (8,))


def test_without_references_nothing_is_known(fp32: Subject, evaluation_path: Path) -> None:
    with built(fp32) as engine:
        for evaluation in (None, replace(EvaluationSet.load(evaluation_path), references={})):
            passed = pass_gate(engine, evaluation, fp32, (1,))
            assert (passed.error, passed.agreement) == (None, None)


def test_fp16_on_an_engine_that_widens_it_is_never_timed(fp32: Subject, evaluation_path: Path) -> None:
    request = request_for(halved(fp32), evaluation_path)
    with pytest.raises(EngineError, match=r"dense on ort-cpu: .*fp16 and holds no fp16 layer \(fp32 100% of FLOPs\)"):
        measure_build(
            BuildJob(request=request, build=0, cpus=None, budget_seconds=None), engine_named("ort-cpu"), tell=silent
        )


def test_int8_is_measured_and_its_rows_say_how_near_it_is(int8: Subject, evaluation_path: Path) -> None:
    result = run_bench(request_for(int8, evaluation_path))
    (fact, copy) = result.samples[0].engines
    assert fact["agreement"] > 0.94
    assert fact["details"]["census"]["layers"]["int8"] == 3
    assert copy["details"] == {}
    assert all(row.parity_max_error is not None for row in result.rows)
