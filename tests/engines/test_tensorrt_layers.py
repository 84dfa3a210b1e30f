"""What the engine inspector tells, in the forms of TensorRT 10 and 11, read into layers and a census."""

import json
from typing import Any

import pytest

from prune2deploy.engines.tensorrt.layers import engine_census, engine_layers, layer_summary, node_flops

FP32 = "Row major linear FP32 format (kLINEAR)"
FP16 = "Channel major FP16 format where channel % 8 == 0 and every 8 channels (kHWC8)"
INT8 = "Thirty-two wide channel vectorized row major Int8 format"


def layer(name: str, *, kind: str, reads: list[str], writes: list[str], **more: Any) -> dict[str, Any]:
    return {
        "Name": name,
        "LayerType": kind,
        "Inputs": [{"Name": f"in{number}", "Format/Datatype": text} for number, text in enumerate(reads)],
        "Outputs": [{"Name": f"out{number}", "Format/Datatype": text} for number, text in enumerate(writes)],
        **more,
    }


def document(*layers: Any, **more: Any) -> str:
    return json.dumps({"Layers": list(layers), **more})


TEN = document(
    layer("Reformat of input", kind="Reformat", reads=[FP32], writes=[FP16]),
    layer(
        "stem + relu",
        kind="CaskConvolution",
        reads=[FP16],
        writes=[FP16],
        Weights={"Type": "Half", "Count": 432},
        TacticName="sm80_xmma_fprop_implicit_gemm_f16f16",
        Metadata="[ONNX Layer: stem]\x1e[ONNX Layer: relu]",
    ),
    layer("__myl_Fc_0x1", kind="gemm", reads=["Half", "Half"], writes=["Float"], Metadata="[ONNX Layer: head]"),
    Bindings=["input", "output"],
)
ELEVEN = json.dumps(json.loads(TEN) | {"I/O Tensors": [{"Name": "input", "IOMode": "Input", "DataType": "Float"}]})


@pytest.mark.parametrize("text", [TEN, ELEVEN])
def test_flops_go_to_the_layer_that_tells_of_their_node(text: str) -> None:
    census = engine_census(engine_layers(text), {"stem": 300, "head": 100, "elsewhere": 5})
    assert census.origin == "engine"
    assert census.layers == {"fp16": 2}
    assert census.flops == {"fp16": 1.0}


def test_layers_are_counted_by_type_and_output() -> None:
    summary = layer_summary(engine_layers(TEN))
    assert summary["layers"] == 3
    assert summary["layers_by_type"] == {"CaskConvolution": 1, "Reformat": 1, "gemm": 1}
    assert summary["outputs_by_type"] == {FP16: 2, "Float": 1}


@pytest.mark.parametrize(
    ("told", "precision"),
    [
        (FP32, "fp32"),
        ("Float", "fp32"),
        ("TF32", "fp32"),
        (FP16, "fp16"),
        ("Half", "fp16"),
        ("kHALF", "fp16"),
        ("BFloat16", "bf16"),
        ("Row major linear BF16 format (kLINEAR)", "bf16"),
        ("FP8", "fp8"),
        (INT8, "int8"),
        ("Int64", None),
        ("Bool", None),
        ("", None),
    ],
)
def test_types_are_known_by_all_their_names(told: str, precision: str | None) -> None:
    (found,) = engine_layers(document(layer("conv", kind="CaskConvolution", reads=[told], writes=[FP32])))
    assert found.precision == precision


def test_a_layer_computes_in_the_narrowest_type_that_it_reads() -> None:
    entry = layer("conv + add", kind="CaskConvolution", reads=[INT8, FP16], writes=[FP16], Weights={"Type": "Int8"})
    assert engine_layers(document(entry))[0].precision == "int8"


def test_without_metadata_the_names_of_fused_layers_tell_their_nodes() -> None:
    text = document(
        layer("/stem/Conv + /relu/Relu", kind="CaskConvolution", reads=[FP16], writes=[FP16]),
        layer("{ForeignNode[/block/Conv.../head/MatMul]}", kind="Myelin", reads=[FP32], writes=[FP32]),
    )
    census = engine_census(engine_layers(text), {"/stem/Conv": 1, "/head/MatMul": 3})
    assert census.layers == {"fp16": 1, "fp32": 1}
    assert census.flops == {"fp16": 0.25, "fp32": 0.75}


def test_of_several_layers_of_a_node_the_one_that_computes_counts() -> None:
    told = {"Metadata": "[ONNX Layer: conv]"}
    text = document(
        layer("copy", kind="Reformat", reads=[FP32], writes=[FP16], **told),
        layer("x", kind="kgen", reads=[FP16], writes=[FP16], TacticName="__myl_ConvRelu_0x2", **told),
        layer("copy back", kind="Reformat", reads=[FP16], writes=[FP32], **told),
    )
    assert engine_census(engine_layers(text), {"conv": 7}).layers == {"fp16": 1}


def test_where_no_layer_tells_of_nodes_those_that_compute_are_counted_without_flops() -> None:
    text = document(
        layer("__myl_a", kind="gemm", reads=[FP16], writes=[FP16]), layer("b", kind="Reformat", reads=[FP32], writes=[])
    )
    census = engine_census(engine_layers(text), {"conv": 7})
    assert (census.layers, census.flops) == ({"fp16": 1}, {})


@pytest.mark.parametrize("text", ["", "[]", "{}", "not JSON", '{"Layers": []}', '{"Layers": ["conv", 3, null]}'])
def test_what_tells_nothing_gives_an_empty_census(text: str) -> None:
    assert engine_census(engine_layers(text), {"conv": 7}).layers == {}


def test_costs_of_nodes_are_those_of_the_file(write_network) -> None:
    assert node_flops(write_network()) == {"conv": 2 * 3 * 16 * 64, "head": 2 * 16 * 5}
