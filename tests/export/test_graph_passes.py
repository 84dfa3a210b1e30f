"""Graph passes on hand-made graphs, with no torch in sight."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from prune2deploy.errors import InputError, ModelError
from prune2deploy.export.passes.graph import GraphPasses, apply_passes, unfolded_batch_norms, with_metadata


def graph_of(
    nodes: list[onnx.NodeProto],
    *,
    constants: dict[str, np.ndarray] | None = None,
    output: str = "y",
    output_shape: tuple[str | int, ...] = ("s77", 3, 4, 4),
    element: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    stored = [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", element, ["s77", 3, 4, 4])],
        [helper.make_tensor_value_info(output, element, list(output_shape))],
        stored,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(model: onnx.ModelProto, inputs: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"input": inputs})[0]


def test_dead_constants_and_nodes_leave() -> None:
    model = graph_of(
        [
            helper.make_node("Relu", ["x"], ["y"], name="kept"),
            helper.make_node("Add", ["x", "unread"], ["nowhere"], name="dead"),
        ],
        constants={"unread": np.ones((1, 3, 4, 4), np.float32), "orphan": np.ones(9, np.float32)},
    )
    cleaned = apply_passes(model, GraphPasses())
    assert [node.name for node in cleaned.graph.node] == ["kept"]
    assert len(cleaned.graph.initializer) == 0


def test_what_is_constant_is_computed_once() -> None:
    model = graph_of(
        [
            helper.make_node("Mul", ["two", "three"], ["six"], name="fold_me"),
            helper.make_node("Mul", ["x", "six"], ["y"], name="kept"),
        ],
        constants={"two": np.float32([2]), "three": np.float32([3])},
    )
    folded = apply_passes(model, GraphPasses())
    assert [node.name for node in folded.graph.node] == ["kept"]
    inputs = np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(np.float32)
    np.testing.assert_allclose(run(folded, inputs), 6 * inputs, rtol=1e-6)


def test_a_tensor_that_already_has_the_public_name_makes_room() -> None:
    model = graph_of(
        [helper.make_node("Relu", ["x"], ["output"], name="a"), helper.make_node("Neg", ["output"], ["y"], name="b")]
    )
    inputs = np.float32(np.arange(48)).reshape(1, 3, 4, 4) - 20
    np.testing.assert_array_equal(run(apply_passes(model, GraphPasses()), inputs), -np.maximum(inputs, 0))


def test_the_batch_has_one_name_everywhere() -> None:
    renamed = apply_passes(graph_of([helper.make_node("Relu", ["x"], ["y"], name="a")]), GraphPasses())
    for value in (*renamed.graph.input, *renamed.graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"


def test_normalization_is_done_in_the_type_of_the_input() -> None:
    model = graph_of([helper.make_node("Relu", ["x"], ["y"], name="a")], element=TensorProto.FLOAT16)
    passes = GraphPasses(normalize=((0.5, 0.5, 0.5), (0.25, 0.5, 1.0)))
    normalised = apply_passes(model, passes)
    onnx.checker.check_model(normalised, full_check=True)
    result = run(normalised, np.ones((1, 3, 4, 4), np.float16))
    assert result.dtype == np.float16
    np.testing.assert_array_equal(result[0, :, 0, 0], np.float16([2.0, 1.0, 0.5]))


def test_normalization_must_fit_the_channels() -> None:
    model = graph_of([helper.make_node("Relu", ["x"], ["y"], name="a")])
    with pytest.raises(ModelError, match="1 means were given and the input has 3 channels"):
        apply_passes(model, GraphPasses(normalize=((0.5,), (0.5,))))


@pytest.mark.parametrize(
    "values", [((0.5,), (0.0,)), ((0.5,), (-1.0,)), ((0.5, 0.5), (1.0,)), ((float("nan"),), (1.0,)), ((), ())]
)
def test_a_normalization_that_cannot_be_computed_is_refused(
    values: tuple[tuple[float, ...], tuple[float, ...]],
) -> None:
    with pytest.raises(InputError, match="--normalize"):
        GraphPasses(normalize=values)


def test_metadata_replaces_what_was_there() -> None:
    model = graph_of([helper.make_node("Relu", ["x"], ["y"], name="a")])
    model.producer_name, model.producer_version = "other", "9"
    helper.set_model_props(model, {"old": "1"})
    stamped = with_metadata(model, {"b": "2", "a": "1"})
    assert [(entry.key, entry.value) for entry in stamped.metadata_props] == [("a", "1"), ("b", "2")]
    assert (stamped.producer_name, stamped.producer_version) == ("prune2deploy", "")
    assert [entry.key for entry in model.metadata_props] == ["old"]


def test_a_batch_norm_that_should_have_been_folded_is_named() -> None:
    constants = {"w": np.ones((3, 3, 1, 1), np.float32)} | {
        name: np.ones(3, np.float32) for name in ("scale", "shift", "mean", "variance")
    }
    statistics = ["scale", "shift", "mean", "variance"]
    model = graph_of(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
            helper.make_node("BatchNormalization", ["c", *statistics], ["n"], name="after_conv"),
            helper.make_node("Relu", ["n"], ["r"], name="relu"),
            helper.make_node("BatchNormalization", ["r", *statistics], ["y"], name="after_relu"),
        ],
        constants=constants,
    )
    assert unfolded_batch_norms(model) == ("after_conv",)
