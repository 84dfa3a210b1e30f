"""The precision census: what is counted, how it is worded, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from prune2deploy.engines.census import Census, file_census, require_layers_of
from prune2deploy.errors import EngineError, InputError

CONV_FLOPS, HEAD_FLOPS = 2 * 64 * 3 * 16, 2 * 16 * 5


def test_a_file_is_counted_by_layers_and_by_flops(write_network: Callable[..., Path]):
    census = file_census(write_network(precision="fp16"))
    assert (census.layers, census.flops, census.origin) == ({"fp16": 2}, {"fp16": 1.0}, "file")


def test_layers_of_two_precisions_share_the_flops(write_network: Callable[..., Path]):
    model = onnx.load(write_network(precision="fp16"))
    head = next(node for node in model.graph.node if node.name == "head")
    for position, name in enumerate(list(head.input)):
        cast = helper.make_node("Cast", [name], [f"{name}_wide"], to=TensorProto.FLOAT)
        model.graph.node.insert(0 if name == "head" else len(model.graph.node) - 1, cast)
        head.input[position] = f"{name}_wide"
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    path = write_network("mixed.onnx")
    onnx.save(model, path)
    census = file_census(path)
    total = CONV_FLOPS + HEAD_FLOPS
    assert census.layers == {"fp16": 1, "fp32": 1}
    assert census.flops == {"fp16": CONV_FLOPS / total, "fp32": HEAD_FLOPS / total}
    assert census.in_words() == "fp16 97.5%, fp32 2.5% of FLOPs"


def test_without_sizes_only_layers_are_counted(write_nodes: Callable[..., Path]):
    nodes = [
        helper.make_node("Warp", ["input"], ["warped"], domain="custom"),
        helper.make_node("MatMul", ["warped", "input"], ["output"], name="product"),
    ]
    census = file_census(write_nodes(nodes))
    assert (census.layers, census.flops) == ({"fp32": 1}, {})
    assert census.in_words() == "fp32 1 of 1 layers"


def test_a_census_comes_back_from_its_document():
    census = Census.of([("fp16", 30), ("int8", 70), ("int8", 0)], origin="engine")
    assert Census.from_document(census.to_document()) == census
    assert census.leading == "int8"


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([], "no layers"),
        ([("fp32", 5)], "fp32 100% of FLOPs"),
        ([("fp32", 1), ("fp16", 9999)], "fp16 >99.9%, fp32 <0.1% of FLOPs"),
        ([("fp32", 0), ("fp16", 0), ("fp16", 0)], "fp16 2, fp32 1 of 3 layers"),
    ],
)
def test_shares_are_never_rounded_to_all_or_nothing(layers, words):
    assert Census.of(layers, origin="file").in_words() == words


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_tf32_computes_fp32_layers(precision):
    require_layers_of(Census.of([("fp32", 1)], origin="engine"), precision, where="net.onnx")


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_an_engine_without_a_layer_of_its_precision_is_refused(precision):
    census = Census.of([("fp32", 1), ("fp32", 2)], origin="engine")
    with pytest.raises(EngineError) as refused:
        require_layers_of(census, precision, where="net.onnx")
    message = str(refused.value)
    assert message.startswith(
        f"net.onnx: the engine was to be {precision} and holds no {precision} layer (fp32 100% of FLOPs); "
    )
    assert message.endswith("or call it fp32")
    assert refused.value.exit_code == 5


def test_one_layer_of_the_precision_is_enough_and_none_at_all_is_no_lie():
    require_layers_of(Census.of([("fp32", 99), ("fp16", 1)], origin="engine"), "fp16", where="net.onnx")
    require_layers_of(Census.of([], origin="file"), "fp16", where="net.onnx")


def test_a_file_is_told_to_be_exported_anew(write_network: Callable[..., Path]):
    with pytest.raises(EngineError, match=r"the file was to be int8 .*; export it with --precision int8"):
        require_layers_of(file_census(write_network()), "int8", where="net.onnx")


def test_no_onnx_file_is_refused(tmp_path: Path):
    path = tmp_path / "net.onnx"
    path.write_bytes(b"")
    with pytest.raises(InputError, match="is empty"):
        file_census(path)
