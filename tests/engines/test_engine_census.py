"""From what a runtime tells of its layers to a census."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from prune2deploy.engines.engine_census import EngineLayer, census_of_engine
from prune2deploy.engines.onnxruntime.census import optimised_census

# FLOPs of the network of write_network at batch 1: 2 * 64 pixels * 3 * 16, and 2 * 16 * 5.
CONV, HEAD = 6144, 160


def census(layers: list[tuple[str, tuple[str, ...]]], path: Path) -> dict:
    found = census_of_engine((EngineLayer(precision=precision, names=names) for precision, names in layers), path)
    return found.to_document()


def test_layers_cost_what_the_nodes_of_their_names_cost(write_network) -> None:
    found = census([("fp16", ("conv", "relu")), ("fp32", ("head",))], write_network())
    assert found["layers"] == {"fp16": 1, "fp32": 1}
    assert found["flops"] == pytest.approx({"fp16": CONV / (CONV + HEAD), "fp32": HEAD / (CONV + HEAD)})
    assert found["origin"] == "engine"


def test_a_value_stands_for_the_layer_before_it(write_network) -> None:
    # "active" is what the ReLU behind the convolution makes; "output" is the head's own.
    found = census([("int8", ("active",)), ("fp32", ("output",))], write_network())
    assert found["flops"] == pytest.approx({"int8": CONV / (CONV + HEAD), "fp32": HEAD / (CONV + HEAD)})


def test_what_no_name_claims_belongs_to_the_nameless(write_network) -> None:
    found = census([("int8", ()), ("fp32", ("head",))], write_network())
    assert found["flops"] == pytest.approx({"int8": CONV / (CONV + HEAD), "fp32": HEAD / (CONV + HEAD)})


def test_without_names_in_several_precisions_only_layers_are_counted(write_network) -> None:
    found = census([("int8", ()), ("fp32", ())], write_network())
    assert (found["layers"], found["flops"]) == ({"int8": 1, "fp32": 1}, {})


def test_a_network_without_layers_has_none(write_nodes) -> None:
    path = write_nodes([helper.make_node("Relu", ["input"], ["output"])])
    assert census([], path) == {"layers": {}, "flops": {}, "origin": "engine"}


@pytest.mark.parametrize(
    ("node", "counted"),
    [
        (helper.make_node("Conv", ["input", "half"], ["output"]), "fp16"),
        (helper.make_node("Conv", ["input", "single"], ["output"], domain="com.microsoft.nchwc"), "fp32"),
        (helper.make_node("QLinearConv", ["input", "s", "z", "bytes"], ["output"]), "int8"),
        (helper.make_node("MatMul", ["widened", "widened"], ["output"]), "fp32"),
        (helper.make_node("MatMul", ["input", "input"], ["output"]), "fp16"),
    ],
)
def test_kernels_of_onnxruntime_compute_in_what_they_read(write_network, node: onnx.NodeProto, counted: str) -> None:
    weights = [
        numpy_helper.from_array(np.zeros((16, 3, 1, 1), dtype), name)
        for name, dtype in (("half", np.float16), ("single", np.float32), ("bytes", np.int8))
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, [1, 3, 8, 8]) for name in ("input", "output")]
    cast = helper.make_node("Cast", ["input"], ["widened"], to=TensorProto.FLOAT)
    model = helper.make_model(helper.make_graph([cast, node], "optimised", ends[:1], ends[1:], weights))
    assert optimised_census(model, write_network()).layers == {counted: 1}
