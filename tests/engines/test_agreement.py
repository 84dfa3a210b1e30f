"""The gate of int8 against engines that really run: share of equal classes, noise in decibels, and what is refused."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from prune2deploy.engines.agreement import check_agreement, measure_agreement
from prune2deploy.engines.engine import BuildOptions, BuiltEngine
from prune2deploy.engines.registry import engine_named
from prune2deploy.errors import InputError, ParityError
from prune2deploy.evaluation import EvaluationSet

Write = Callable[..., BuiltEngine]


@pytest.fixture
def linear(tmp_path: Path) -> Write:
    """Builds ``output = input @ matrix``, with other operators after it, on ONNX Runtime."""
    numbers = iter(range(100))

    def write(
        matrix: np.ndarray,
        *,
        after: tuple[tuple[str, dict[str, object]], ...] = (),
        batch: int | str = "batch",
        outputs: tuple[tuple[str, int], ...] = (("output", TensorProto.FLOAT),),
        shape: tuple[int | str, ...] | None = None,
        constants: dict[str, np.ndarray] | None = None,
    ) -> BuiltEngine:
        nodes = [helper.make_node("MatMul", ["input", "matrix"], ["x0" if after else "output"], name="product")]
        for number, (operator, attributes) in enumerate(after):
            last = number == len(after) - 1
            made = [name for name, _ in outputs] if last else [f"x{number + 1}"]
            reads = [f"x{number}", *(constants or {})] if last else [f"x{number}"]
            nodes.append(helper.make_node(operator, reads, made, name=f"after{number}", **attributes))
        graph = helper.make_graph(
            nodes,
            "net",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, matrix.shape[0]])],
            [helper.make_tensor_value_info(name, kind, shape) for name, kind in outputs],
            [
                numpy_helper.from_array(matrix.astype(np.float32), "matrix"),
                *(numpy_helper.from_array(array, name) for name, array in (constants or {}).items()),
            ],
        )
        path = tmp_path / f"net{next(numbers)}.onnx"
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
        model.ir_version = 10
        onnx.save(model, path)
        return engine_named("ort-cpu").build(path, BuildOptions())

    return write


def evaluation(count: int = 40, width: int = 4) -> EvaluationSet:
    inputs = np.random.default_rng(0).standard_normal((count, width), dtype=np.float32)
    return EvaluationSet(inputs=inputs, labels=None)


def test_an_engine_agrees_with_itself_without_noise(linear):
    built = linear(np.eye(4))
    found = measure_agreement(built, built, evaluation(), where="dense")
    assert (found.share, found.sqnr_db, found.images) == (1.0, math.inf, 40)


def test_share_and_noise_are_those_of_the_outputs(linear):
    matrix = np.eye(4)
    other = np.eye(4) + 0.4 * np.random.default_rng(1).standard_normal((4, 4))
    inputs = evaluation(37)
    found = measure_agreement(linear(other), linear(matrix), inputs, where="dense")
    x = inputs.inputs.astype(np.float64)
    expected, given = x @ matrix, x @ other.astype(np.float32)
    assert found.share == (expected.argmax(1) == given.argmax(1)).mean()
    assert 0.5 < found.share < 1
    noise = np.square(expected - given).sum()
    assert found.sqnr_db == pytest.approx(10 * np.log10(np.square(expected).sum() / noise), abs=1e-3)


def test_no_more_images_are_compared_than_asked_for(linear):
    found = measure_agreement(linear(np.eye(4)), linear(np.eye(4)), evaluation(40), where="dense", images=21)
    assert found.images == 21


def test_a_share_under_the_gate_is_refused_and_the_message_says_how_far(linear):
    swapped = np.eye(4)[[1, 0, 2, 3]]
    with pytest.raises(ParityError, match=r"pruned: int8 names .* on \d+\.\d\d% of 40 images .* dB.*99\.00% is asked"):
        check_agreement(linear(swapped), linear(np.eye(4)), evaluation(), min_agreement=0.99, where="pruned")


def test_a_share_at_the_gate_passes(linear):
    inputs = evaluation()
    other, reference = linear(np.eye(4)[[1, 0, 2, 3]]), linear(np.eye(4))
    share = measure_agreement(other, reference, inputs, where="dense").share
    assert share is not None
    assert check_agreement(other, reference, inputs, min_agreement=share, where="dense").share == share


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_outputs_that_are_no_numbers_are_refused_even_without_a_gate(linear, number):
    wrong = np.eye(4)
    wrong[2, 2] = number
    with pytest.raises(ParityError, match="dense: gives NaN or infinity"):
        check_agreement(linear(wrong), linear(np.eye(4)), evaluation(), min_agreement=0.0, where="dense")


def test_other_shapes_are_refused(linear):
    with pytest.raises(ParityError, match=r"dense: its outputs have shape \(16, 3\), those of fp32 \(16, 4\)"):
        measure_agreement(linear(np.eye(4)[:, :3]), linear(np.eye(4)), evaluation(), where="dense")


def test_maps_are_compared_pixel_by_pixel(linear):
    # (N, 12) as two classes on 2x3 pixels; the second network swaps the classes of one pixel.
    reshape = (("Reshape", {}),)
    constants = {"shape": np.array([-1, 2, 2, 3], dtype=np.int64)}
    order = np.arange(12)
    order[[0, 6]] = order[[6, 0]]
    reference = linear(np.eye(12), after=reshape, constants=constants)
    other = linear(np.eye(12)[:, order], after=reshape, constants=constants)
    found = measure_agreement(other, reference, evaluation(width=12), where="dense")
    assert found.share == pytest.approx(5 / 6)


def test_outputs_of_one_value_have_no_classes_and_only_their_noise_is_told(linear):
    notes = []

    class Noting:
        from prune2deploy.progress import SILENT

        task = staticmethod(SILENT.task)
        note = staticmethod(notes.append)

    column = np.ones((4, 1))
    found = check_agreement(
        linear(1.1 * column), linear(column), evaluation(), min_agreement=0.99, where="dense", progress=Noting()
    )
    assert found.share is None
    assert found.sqnr_db == pytest.approx(20, abs=0.1)
    (note,) = notes
    assert "dense: the outputs are no classes" in note
    assert "20.0 dB" in note


def test_of_a_top_k_file_the_best_classes_are_compared(linear):
    def ranked(matrix: np.ndarray) -> BuiltEngine:
        return linear(
            matrix,
            after=(("TopK", {}),),
            constants={"k": np.array([2], dtype=np.int64)},
            outputs=(("scores", TensorProto.FLOAT), ("classes", TensorProto.INT64)),
        )

    inputs = evaluation()
    other = np.eye(4)[[1, 0, 2, 3]]
    found = measure_agreement(ranked(other), ranked(np.eye(4)), inputs, where="dense")
    assert found.share == (inputs.inputs.argmax(1) == (inputs.inputs @ other).argmax(1)).mean()
    # Exchanging two inputs leaves the two best scores what they were.
    assert found.sqnr_db == math.inf


@pytest.mark.parametrize("fixed", [1, 7])
def test_a_fixed_batch_is_filled_and_its_filling_not_counted(linear, fixed):
    inputs = evaluation(17)
    other = np.eye(4)[[1, 0, 2, 3]]
    free = measure_agreement(linear(other), linear(np.eye(4)), inputs, where="dense")
    found = measure_agreement(linear(other, batch=fixed), linear(np.eye(4)), inputs, where="dense")
    assert found.share == free.share
    assert found.sqnr_db == pytest.approx(free.sqnr_db)


def test_two_fixed_batches_cannot_be_compared(linear):
    with pytest.raises(InputError, match=r"fixed batches of 2 and 3.*--batch"):
        measure_agreement(linear(np.eye(4), batch=2), linear(np.eye(4), batch=3), evaluation(), where="dense")


def test_silence_compared_with_noise_is_infinitely_loud(linear):
    found = measure_agreement(linear(np.eye(4)), linear(np.zeros((4, 4))), evaluation(), where="dense")
    assert found.sqnr_db == -math.inf
