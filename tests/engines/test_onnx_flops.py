"""FLOPs and precisions of an ONNX file's layers, on networks written by hand and on those that torch exports."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from prune2deploy.engines.onnx_flops import layer_costs, layer_precisions
from prune2deploy.errors import InputError
from prune2deploy.export.onnx_from_model import export_onnx
from prune2deploy.graph.trace import trace
from prune2deploy.model.spec import ModelSpec, build_model

IR_VERSION = 10


def network(
    nodes: list[onnx.NodeProto],
    weights: dict[str, tuple[int, ...]],
    *,
    shape: tuple[int | str, ...] = ("batch", 4, 6, 6),
    element: int = TensorProto.FLOAT,
    output: int | None = None,
) -> onnx.ModelProto:
    """A network from ``input`` to ``output`` with weights of zeros; the shape of the output is left open."""
    dtype = helper.tensor_dtype_to_np_dtype(element)
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("input", element, shape)],
        [helper.make_tensor_value_info("output", output or element, None)],
        [numpy_helper.from_array(np.zeros(sizes, dtype), name) for name, sizes in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=IR_VERSION)


def conv(**attributes: object) -> list[onnx.NodeProto]:
    return [helper.make_node("Conv", ["input", "kernel"], ["output"], name="conv", **attributes)]


def test_a_convolution_costs_two_flops_a_multiply_add():
    model = network(conv(strides=[2, 2], pads=[1, 1, 1, 1]), {"kernel": (8, 4, 3, 3)})
    (layer,) = layer_costs(model)
    assert layer.flops == 2 * (3 * 3) * (3 * 3) * 4 * 8
    assert (layer.name, layer.operator, layer.weight) == ("conv", "Conv", "kernel")
    assert (layer.input_width, layer.output_width, layer.groups) == (4, 8, 1)
    assert (layer.kernel, layer.positions, layer.precision) == ((3, 3), 9, "fp32")


def test_groups_divide_the_cost():
    (layer,) = layer_costs(network(conv(group=4), {"kernel": (8, 1, 3, 3)}))
    assert (layer.groups, layer.input_width, layer.output_width) == (4, 4, 8)
    assert layer.flops == 2 * 16 * 9 * 1 * 8


def test_a_transposed_convolution_is_applied_at_its_inputs():
    node = helper.make_node("ConvTranspose", ["input", "kernel"], ["output"], strides=[2, 2], group=2)
    (layer,) = layer_costs(network([node], {"kernel": (4, 3, 2, 2)}))
    assert layer.flops == 2 * 36 * 4 * (4 // 2) * 6
    assert (layer.input_width, layer.output_width, layer.positions) == (4, 6, 36)
    assert layer.name == "output"


def test_the_asked_batch_takes_the_place_of_a_free_one():
    model = network(conv(), {"kernel": (8, 4, 1, 1)})
    assert [layer_costs(model, batch)[0].flops for batch in (1, 7)] == [2 * 36 * 32, 7 * 2 * 36 * 32]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch", "the model was changed"


def test_a_fixed_batch_stays():
    model = network(conv(), {"kernel": (8, 4, 1, 1)}, shape=(3, 4, 6, 6))
    assert layer_costs(model, batch=1)[0].flops == 3 * 2 * 36 * 32


def test_a_batch_without_a_name_is_free():
    model = network(conv(), {"kernel": (8, 4, 1, 1)})
    model.graph.input[0].type.tensor_type.shape.dim[0].ClearField("dim_param")
    assert layer_costs(model, batch=5)[0].positions == 5 * 36


def test_a_reshape_by_computed_sizes_is_followed():
    nodes = [
        helper.make_node("Shape", ["input"], ["sizes"], start=0, end=1),
        helper.make_node("Concat", ["sizes", "rest"], ["wanted"], axis=0),
        helper.make_node("Reshape", ["input", "wanted"], ["rows"]),
        helper.make_node("MatMul", ["rows", "head"], ["output"], name="head"),
    ]
    model = network(nodes, {"head": (24, 5)})
    model.graph.initializer.append(numpy_helper.from_array(np.array([6, 24]), "rest"))
    (layer,) = layer_costs(model, batch=2)
    assert (layer.positions, layer.input_width, layer.output_width) == (12, 24, 5)


def test_a_product_of_activations_has_no_weight():
    nodes = [
        helper.make_node("Transpose", ["input"], ["turned"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["input", "turned"], ["output"], name="scores"),
    ]
    (layer,) = layer_costs(network(nodes, {}, shape=("batch", 4, 6, 8)))
    assert layer.weight is None
    assert layer.flops == 2 * 4 * 6 * 8 * 6
    assert (layer.input_width, layer.output_width, layer.positions) == (8, 6, 24)


@pytest.mark.parametrize(("turned", "shape"), [(0, (8, 5)), (1, (5, 8))])
def test_gemm_is_counted_either_way_round(turned, shape):
    node = helper.make_node("Gemm", ["input", "head"], ["output"], name="head", transB=turned)
    (layer,) = layer_costs(network([node], {"head": shape}, shape=("batch", 8)), batch=3)
    assert (layer.input_width, layer.output_width, layer.positions, layer.flops) == (8, 5, 3, 2 * 3 * 8 * 5)


def test_a_contraction_by_einsum_is_a_product():
    node = helper.make_node("Einsum", ["input", "head"], ["output"], equation="bchw,cd->bhwd")
    (layer,) = layer_costs(network([node], {"head": (4, 9)}))
    assert (layer.input_width, layer.output_width, layer.positions) == (4, 9, 36)
    assert layer.flops == 2 * 36 * 4 * 9


def test_a_product_with_a_vector_is_not_counted():
    node = helper.make_node("MatMul", ["input", "vector"], ["output"])
    assert layer_costs(network([node], {"vector": (6,)})) == ()


@pytest.mark.parametrize(
    ("element", "precision"),
    [(TensorProto.FLOAT, "fp32"), (TensorProto.FLOAT16, "fp16"), (TensorProto.BFLOAT16, "bf16")],
)
def test_the_type_of_the_data_is_the_precision(element, precision):
    model = network(conv(), {"kernel": (8, 4, 1, 1)}, element=element)
    assert layer_precisions(model) == (("conv", precision),)


def test_a_layer_between_casts_computes_in_the_inner_type():
    nodes = [
        helper.make_node("Cast", ["input"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["kernel"], ["half_kernel"], to=TensorProto.FLOAT16),
        helper.make_node("Conv", ["half", "half_kernel"], ["output"], name="conv"),
    ]
    model = network(nodes, {"kernel": (8, 4, 1, 1)}, output=TensorProto.FLOAT16)
    (layer,) = layer_costs(model)
    assert (layer.precision, layer.weight) == ("fp16", "kernel")


def quantized(*, data: bool, weight: bool) -> onnx.ModelProto:
    """A convolution whose data and weight come out of DequantizeLinear, or do not; the weight after a transpose."""
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "scale", "zero"], ["levels"]),
        helper.make_node("DequantizeLinear", ["levels", "scale", "zero"], ["restored"]),
        helper.make_node("DequantizeLinear", ["kernel_levels", "scale", "zero"], ["restored_kernel"]),
        helper.make_node("Transpose", ["restored_kernel"], ["turned_kernel"], perm=[1, 0, 2, 3]),
        helper.make_node(
            "Conv",
            ["restored" if data else "input", "turned_kernel" if weight else "kernel"],
            ["output"],
            name="conv",
        ),
    ]
    model = network(nodes, {"kernel": (8, 4, 1, 1)})
    for name, array in (
        ("scale", np.array(0.1, np.float32)),
        ("zero", np.array(0, np.int8)),
        ("kernel_levels", np.zeros((4, 8, 1, 1), np.int8)),
    ):
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


@pytest.mark.parametrize(
    ("data", "weight", "precision"), [(True, True, "int8"), (True, False, "fp32"), (False, True, "fp32")]
)
def test_int8_takes_a_dequantised_activation_and_a_dequantised_weight(data, weight, precision):
    (layer,) = layer_costs(quantized(data=data, weight=weight))
    assert layer.precision == precision
    assert layer.flops == 2 * 36 * 4 * 8
    assert layer.weight == ("kernel_levels" if weight else "kernel")


def test_quantised_operators_are_int8():
    nodes = [helper.make_node("ConvInteger", ["input", "kernel"], ["output"], name="conv")]
    model = network(nodes, {"kernel": (8, 4, 1, 1)}, element=TensorProto.INT8, output=TensorProto.INT32)
    (layer,) = layer_costs(model)
    assert (layer.precision, layer.flops) == ("int8", 2 * 36 * 4 * 8)


def test_a_free_image_size_is_refused_by_the_name_of_the_layer():
    model = network(conv(), {"kernel": (8, 4, 1, 1)}, shape=("batch", 4, "height", 6))
    with pytest.raises(InputError, match=r"the shapes of conv \(Conv\) do not follow .* only the batch may be free"):
        layer_costs(model)
    assert layer_precisions(model) == (("conv", "fp32"),)


def test_a_type_behind_an_operator_of_a_plugin_is_that_of_the_weight():
    nodes = [
        helper.make_node("Warp", ["input"], ["warped"], domain="custom"),
        helper.make_node("Conv", ["warped", "kernel"], ["output"], name="conv"),
    ]
    model = network(nodes, {"kernel": (8, 4, 1, 1)}, element=TensorProto.FLOAT16)
    model.opset_import.append(helper.make_opsetid("custom", 1))
    assert layer_precisions(model) == (("conv", "fp16"),)
    with pytest.raises(InputError, match="conv"):
        layer_costs(model)


def test_no_file_is_one_line(tmp_path: Path):
    with pytest.raises(InputError, match="there is no such file"):
        layer_costs(tmp_path / "none.onnx")


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        ("resnet20", (3, 32, 32)),
        ("torchvision:resnet18", (3, 32, 32)),
        ("torchvision:mobilenet_v2", (3, 32, 32)),
        ("torchvision:densenet121", (3, 32, 32)),
        ("timm:vit_tiny_patch16_224?img_size=32&depth=2", (3, 32, 32)),
    ],
)
def test_an_exported_file_costs_what_torch_and_the_channel_graph_count(spec, shape, tmp_path: Path):
    if spec.startswith("timm:"):
        pytest.importorskip("timm")
    model = build_model(ModelSpec.parse(spec), seed=0).eval()
    path = tmp_path / "model.onnx"
    export_onnx(model, path, input_shape=shape)
    found = {batch: sum(layer.flops for layer in layer_costs(path, batch)) for batch in (1, 3)}
    images = torch.zeros(1, *shape)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(images)
    assert found == {1: counter.get_total_flops(), 3: 3 * counter.get_total_flops()}
    assert found[1] == trace(model, images).graph.cost.dense_flops


def test_weights_beside_the_file_are_not_needed(write_network: Callable[..., Path]):
    path = write_network()
    inside = layer_costs(path)
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (path.parent / "weights.bin").unlink()
    assert layer_costs(path) == inside
    assert [layer.name for layer in inside] == ["conv", "head"]
