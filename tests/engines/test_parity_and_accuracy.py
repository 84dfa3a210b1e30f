"""The parity gate and accuracy through an engine, on real ONNX Runtime sessions."""

from dataclasses import replace

import numpy as np
import pytest

from prune2deploy.engines.accuracy import engine_accuracy
from prune2deploy.engines.engine import BuildOptions, BuiltEngine
from prune2deploy.engines.onnxruntime.cpu import OrtCpuEngine
from prune2deploy.engines.parity import check_parity, relative_error
from prune2deploy.errors import InputError, ParityError
from prune2deploy.evaluation import EvaluationSet


@pytest.fixture
def built(write_network) -> BuiltEngine:
    return OrtCpuEngine().build(write_network(), BuildOptions())


def changed(evaluation: EvaluationSet, outputs: np.ndarray) -> EvaluationSet:
    return replace(evaluation, references={"dense": outputs.astype(np.float32)})


def test_an_engine_that_computes_the_model_passes(built: BuiltEngine, evaluation: EvaluationSet) -> None:
    assert 0 < check_parity(built, evaluation, "dense", precision="fp32") < 1e-5


@pytest.mark.parametrize(("precision", "gate"), [("fp32", 1e-4), ("tf32", 5e-3), ("fp16", 1e-2), ("bf16", 3e-2)])
def test_the_gate_of_each_precision_holds_on_both_sides(
    built: BuiltEngine, evaluation: EvaluationSet, precision: str, gate: float
) -> None:
    true = evaluation.references["dense"]
    worst = check_parity(built, changed(evaluation, true * (1 + 0.9 * gate)), "dense", precision=precision)
    assert worst == pytest.approx(0.9 * gate, rel=0.05)
    with pytest.raises(ParityError, match=f"dense: .*batch 1 .*the {precision} gate is"):
        check_parity(built, changed(evaluation, true * (1 + 1.1 * gate)), "dense", precision=precision)


def test_an_error_in_a_later_batch_is_found(built: BuiltEngine, evaluation: EvaluationSet) -> None:
    wrong = evaluation.references["dense"].copy()
    wrong[20] += 1.0
    with pytest.raises(ParityError, match="batch 7"):
        check_parity(built, changed(evaluation, wrong), "dense", precision="fp32")


def test_a_batch_larger_than_the_references_checks_all_of_them(write_network, evaluation: EvaluationSet) -> None:
    fixed = OrtCpuEngine().build(write_network(batch=64), BuildOptions(batches=(64,)))
    assert check_parity(fixed, evaluation, "dense", precision="fp32", batches=(64,)) < 1e-5
    wrong = evaluation.references["dense"].copy()
    wrong[-1] += 1.0
    with pytest.raises(ParityError, match="batch 64"):
        check_parity(fixed, changed(evaluation, wrong), "dense", precision="fp32", batches=(64,))


def test_an_engine_of_one_batch_size_is_checked_at_that_size(write_network, evaluation: EvaluationSet) -> None:
    fixed = OrtCpuEngine().build(write_network(batch=3), BuildOptions(batches=(3,)))
    wrong = evaluation.references["dense"].copy()
    assert check_parity(fixed, evaluation, "dense", precision="fp32") < 1e-5
    wrong[22] += 1.0
    with pytest.raises(ParityError, match="batch 3"):
        check_parity(fixed, changed(evaluation, wrong), "dense", precision="fp32")


def test_not_a_number_never_passes(built: BuiltEngine, evaluation: EvaluationSet) -> None:
    broken = replace(evaluation, inputs=np.full_like(evaluation.inputs, np.nan))
    with pytest.raises(ParityError, match="nan"):
        check_parity(built, broken, "dense", precision="bf16")


def test_another_output_shape_is_refused(built: BuiltEngine, evaluation: EvaluationSet) -> None:
    narrower = evaluation.references["dense"][:, :-1]
    with pytest.raises(ParityError, match=r"shape \(1, 5\), the model's \(1, 4\)"):
        check_parity(built, changed(evaluation, narrower), "dense", precision="fp32")


def test_a_zero_reference_is_met_by_zero_alone() -> None:
    zero, one = np.zeros(3), np.ones(3)
    assert relative_error(zero, zero, variant="dense") == 0.0
    assert relative_error(one, zero, variant="dense") == float("inf")
    assert relative_error(np.float32([3, 4]), np.float32([0, 5]), variant="dense") == pytest.approx(10**0.5 / 5)


def test_a_variant_without_reference_is_bad_input(built: BuiltEngine, evaluation: EvaluationSet) -> None:
    with pytest.raises(InputError, match="no reference outputs of 'pruned'"):
        check_parity(built, evaluation, "pruned", precision="fp32")
    with pytest.raises(InputError, match="no reference outputs of 'dense'"):
        check_parity(built, changed(evaluation, np.zeros((0, 5))), "dense", precision="fp32")
    with pytest.raises(InputError, match="no parity gate for int8"):
        check_parity(built, evaluation, "dense", precision="int8")


def test_half_precision_networks_are_fed_half_precision_inputs(write_network, evaluation: EvaluationSet) -> None:
    half = OrtCpuEngine().build(write_network(precision="fp16"), BuildOptions(precision="fp16"))
    assert 1e-6 < check_parity(half, evaluation, "dense", precision="fp16") < 1e-2


def test_accuracy_counts_every_label_once(built: BuiltEngine, evaluation: EvaluationSet) -> None:
    assert evaluation.labels is not None
    assert engine_accuracy(built, evaluation, batch=1) == 1.0
    wrong = evaluation.labels.copy()
    wrong[[0, 17, 39]] = (wrong[[0, 17, 39]] + 1) % 5
    relabelled = replace(evaluation, labels=wrong)
    for batch in (1, 7, 40, 64):
        assert engine_accuracy(built, relabelled, batch=batch) == 37 / 40


def test_accuracy_is_unknown_without_labels(built: BuiltEngine, evaluation: EvaluationSet) -> None:
    assert engine_accuracy(built, replace(evaluation, labels=None), batch=4) is None


def test_an_engine_of_one_batch_size_measures_accuracy_on_all_inputs(write_network, evaluation: EvaluationSet) -> None:
    fixed = OrtCpuEngine().build(write_network(batch=7), BuildOptions(batches=(7,)))
    assert engine_accuracy(fixed, evaluation, batch=7) == 1.0
