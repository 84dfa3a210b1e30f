"""Test networks: they compute what torch computes, and every layer of a profile finds its point."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torchvision
from onnx import numpy_helper
from torch import nn
from torch.nn import functional

from prune2deploy.engines.capabilities import LayerProfile, LayerTime
from prune2deploy.engines.engine import BuildOptions
from prune2deploy.engines.registry import engine_named
from prune2deploy.errors import InputError
from prune2deploy.graph.trace import trace
from prune2deploy.graph.unit import Operator, Unit
from prune2deploy.graph.units import unit_model
from prune2deploy.latency.networks import bytes_of, flops_of, owners_of, write_network
from prune2deploy.latency.operators import RULES
from prune2deploy.latency.points import Point

MAP = (1, -1, 8, 8)


def attributes(**given):
    return tuple(sorted(given.items()))


def convolution(kernel=3, stride=1, **given):
    size = 8 // stride
    square = {name: (value, value) for name, value in (("kernel", kernel), ("stride", stride), ("dilation", 1))}
    return Operator(
        name="conv2d",
        reads=(0,),
        shape=(1, -2, size, size),
        attributes=attributes(**square, padding=(kernel // 2,) * 2, bias=True, **({"groups": 1} | given)),
    )


def alone(name, shape=MAP, result=None, axes=1, inputs=1, **given):
    operator = Operator(name=name, reads=tuple(range(inputs)), shape=result or shape, attributes=attributes(**given))
    return Unit(inputs=(shape,) * inputs, operators=(operator,), axes=axes)


def stored(network, part, tmp_path, *, batch=1):
    """What ONNX Runtime gives for the values of point ``part``: (fed, weights in order, result)."""
    import onnxruntime

    model = onnx.load(save(network, tmp_path))
    nodes = [node for node in model.graph.node if node.name.startswith(f"p{part}/")]
    inner = {value for node in nodes for value in node.output}
    weights = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    fed = list(dict.fromkeys(v for node in nodes for v in node.input if v and v not in inner and v not in weights))
    for value in (*fed, nodes[-1].output[0]):
        model.graph.output.append(onnx.helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = [torch.from_numpy(one) for one in session.run([*fed, nodes[-1].output[0]], network.arrays)]
    own = [torch.from_numpy(weights[v].copy()) for node in nodes for v in node.input if v in weights]
    return found[:-1], own, found[-1]


def save(network, tmp_path) -> Path:
    path = tmp_path / "network.onnx"
    onnx.save(network.model, path)
    onnx.checker.check_model(path, full_check=True)
    return path


def test_a_convolution_with_its_tail_computes_what_torch_computes(tmp_path):
    unit = Unit(
        inputs=(MAP, (1, -2, 4, 4)),
        operators=(
            convolution(stride=2),
            Operator(name="add", reads=(2, 1), shape=(1, -2, 4, 4)),
            Operator(name="silu", reads=(3,), shape=(1, -2, 4, 4)),
        ),
        axes=2,
    )
    network = write_network([Point(unit, (6, 10))], [2], batch=3, precision="fp32")
    (data, residual), (weight, bias), result = stored(network, "0.1", tmp_path)
    expected = functional.silu(functional.conv2d(data, weight, bias, stride=2, padding=1) + residual)
    assert result.shape == (3, 10, 4, 4)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


def test_groups_that_leave_whole_follow_the_width(tmp_path):
    unit = Unit(
        inputs=(MAP,),
        operators=(
            Operator(
                name="conv2d",
                reads=(0,),
                shape=MAP,
                attributes=attributes(
                    kernel=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1), bias=True,
                    channels_per_group=4, outputs_per_group=4,
                ),
            ),
        ),
        axes=1,
    )  # fmt: skip
    network = write_network([Point(unit, (20,))], [1], batch=1, precision="fp32")
    (data,), (weight, bias), result = stored(network, "0.0", tmp_path)
    assert weight.shape == (20, 4, 3, 3)
    expected = functional.conv2d(data, weight, bias, padding=1, groups=5)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, -1), (1, 5, -1), (1, 4, 4, -1)])
def test_a_linear_layer_computes_what_torch_computes(shape, tmp_path):
    unit = alone("linear", shape, result=(*shape[:-1], -2), axes=2, bias=True)
    network = write_network([Point(unit, (6, 10))], [1], batch=2, precision="fp32")
    (data,), (weight, bias), result = stored(network, "0.0", tmp_path)
    weight = weight if len(shape) == 2 else weight.T
    torch.testing.assert_close(result, functional.linear(data, weight, bias), rtol=1e-4, atol=1e-5)


def test_attention_computes_what_torch_computes(tmp_path):
    unit = alone("scaled_dot_product_attention", (1, -1, 5, 8), inputs=3, is_causal=False)
    network = write_network([Point(unit, (3,))], [1], batch=2, precision="fp32")
    (query, key, value), _, result = stored(network, "0.0", tmp_path)
    ordered = {one.shape: one for one in (query, key, value)}
    assert len(ordered) == 1
    # The exporter multiplies the query, then transposes the key: values are met in the order of the graph.
    expected = functional.scaled_dot_product_attention(key, query, value)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


def test_a_concatenation_joins_two_halves_of_its_result(tmp_path):
    network = write_network([Point(alone("cat", dim=1), (48,))], [1], batch=1, precision="fp32")
    halves, _, result = stored(network, "0.0", tmp_path)
    assert [half.shape[1] for half in halves] == [32, 16]
    assert torch.equal(result, torch.cat(halves, 1))


class Everything(nn.Module):
    """Each family of operators that units hold, once."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.up = nn.ConvTranspose2d(16, 16, 2, stride=2)
        self.group, self.batch = nn.GroupNorm(4, 16), nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding="same", groups=16)
        self.norm, self.queries, self.head = nn.LayerNorm(32), nn.Linear(32, 96), nn.Linear(32, 10)
        self.scale = nn.Parameter(torch.ones(32, 1, 1))
        self.rectifiers = nn.ModuleList(
            (nn.ReLU6(), nn.Hardswish(), nn.Hardsigmoid(), nn.Sigmoid(), nn.Tanh(), nn.LeakyReLU(), nn.ELU())
        )

    def forward(self, data):
        first = self.group(functional.relu(self.stem(data)))
        second = functional.silu(self.depthwise(functional.max_pool2d(self.up(first), 2)))
        joined = torch.cat([functional.avg_pool2d(first, 3, 1, 1), self.batch(second)], 1)
        for rectifier in self.rectifiers:
            joined = rectifier(joined) * self.scale
        for mode in ("nearest", "bilinear", "bicubic"):
            joined = functional.avg_pool2d(functional.interpolate(joined, scale_factor=2, mode=mode), 2)
        joined = joined - joined.mean((2, 3), keepdim=True) / 2
        joined = functional.adaptive_avg_pool2d(joined, 4) + 1
        tokens = self.norm(joined.flatten(2).transpose(1, 2))
        query, key, value = self.queries(tokens).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        mixed = mixed + torch.softmax(query @ key.transpose(-2, -1), -1) @ value
        return self.head(functional.gelu(mixed.transpose(1, 2).flatten(2)).mean(1))


@pytest.fixture(scope="module")
def everything():
    model = unit_model(trace(Everything().eval(), torch.randn(1, 3, 8, 8)))
    assert not model.unpriced
    return [Point(unit, widths) for unit, widths in model.widest().items()]


def test_every_operator_of_units_is_written_with_the_shape_that_torch_gives(everything, tmp_path):
    network = write_network(everything, [1] * len(everything), batch=2, precision="fp32")
    inferred = onnx.shape_inference.infer_shapes(onnx.load(save(network, tmp_path)), data_prop=True)
    shapes = {
        value.name: tuple(size.dim_value for size in value.type.tensor_type.shape.dim)
        for value in inferred.graph.value_info
    }
    for number, point in enumerate(everything):
        last = [node for node in inferred.graph.node if node.name.startswith(f"p{number}.0/")][-1]
        expected = point.unit.at(point.unit.operators[-1].shape, point.widths)
        assert shapes[last.output[0]] == (2 * expected[0], *expected[1:]), point
    assert len({operator.name for point in everything for operator in point.unit.operators}) > 25


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_every_point_has_a_time_on_the_cpu(everything, precision, tmp_path):
    network = write_network(everything, [2] * len(everything), batch=1, precision=precision)
    built = engine_named("ort-cpu").build(save(network, tmp_path), BuildOptions(precision=precision))
    built.bind(network.arrays)
    found = network.shared_out(built.profile_layers(5))
    built.close()
    assert all(latency_ns is not None and latency_ns > 0 for latency_ns in found)


def test_a_bf16_network_passes_the_checker(everything, tmp_path):
    network = write_network(everything, [1] * len(everything), batch=1, precision="bf16")
    save(network, tmp_path)
    assert {one.data_type for one in network.model.graph.initializer} == {
        onnx.TensorProto.BFLOAT16,
        onnx.TensorProto.INT64,
    }


def test_convolutions_are_fused_with_their_tails_as_in_a_network(tmp_path):
    unit = Unit(
        inputs=((1, -1, 8, 8), (1, -2, 8, 8)),
        operators=(
            convolution(),
            Operator(name="add", reads=(2, 1), shape=(1, -2, 8, 8)),
            Operator(name="relu", reads=(3,), shape=(1, -2, 8, 8)),
        ),
        axes=2,
    )
    # 20 is no multiple of any block: in a network, such a value still lies in the layout of convolutions.
    points = [Point(unit, (64, 64)), Point(unit, (20, 20))]
    network = write_network(points, [1, 1], batch=1, precision="fp32")
    built = engine_named("ort-cpu").build(save(network, tmp_path), BuildOptions())
    built.bind(network.arrays)
    layers = built.profile_layers(1).layers
    built.close()
    for number in range(2):
        assert len([layer for layer in layers if owners_of(layer) == {number}]) == 1


def test_an_unknown_operator_is_refused_by_name():
    with pytest.raises(InputError, match="sort cannot be timed"):
        write_network([Point(alone("sort"), (8,))], [1], batch=1, precision="fp32")


def test_layers_belong_to_the_point_that_their_name_tells_of():
    fused = LayerTime(name="p3.0/Mul_7/QuickGeluFusion/", operator="QuickGelu", latency_ns=1.0)
    moved = LayerTime(name="p3.0/Conv_1_abcd_acdb_p4.0/Relu_2", operator="Reorder", latency_ns=1.0)
    absorbed = LayerTime(
        name="feed/5.0/MaxPool_1", operator="MaxPool", latency_ns=1.0, nodes=("feed/5.0/MaxPool_1", "p5.0/Relu_2")
    )
    renamed = LayerTime(name="conv_17", operator="Conv", latency_ns=1.0, nodes=("p12.1/Conv_3", "p12.1/Relu_4"))
    assert [owners_of(layer) for layer in (fused, moved, absorbed, renamed)] == [{3}, set(), set(), {12}]


def test_a_layer_of_two_points_tells_nothing_of_either():
    points = [Point(alone("relu"), (width,)) for width in (8, 16, 32)]
    network = write_network(points, [1, 1, 2], batch=1, precision="fp32")
    layers = (
        LayerTime(name="p0.0/Relu_1 + p1.0/Relu_2", operator="PointWise", latency_ns=10.0),
        LayerTime(name="p2.0/Relu_3", operator="PointWise", latency_ns=6.0),
        LayerTime(name="p2.1/Relu_4", operator="PointWise", latency_ns=4.0),
    )
    found = network.shared_out(LayerProfile(layers=layers, run_ns=None, told_by="a test"))
    assert found == [None, None, 5.0]


def test_a_change_of_layout_between_a_unit_and_its_neighbours_is_half_the_units():
    points = [
        Point(alone("mul", inputs=2), (8,)),
        Point(alone("mean", result=(1, -1, 1, 1), dims=(2, 3), keepdim=True), (8,)),
    ]
    network = write_network([*points], [1, 1], batch=1, precision="fp32")

    def layer(name, operator="Conv", latency_ns=8.0):
        return LayerTime(name=name, operator=operator, latency_ns=latency_ns, nodes=(name,) if "/" in name else ())

    of_inputs = [layer("ReorderInput", "ReorderInput"), layer("feed/0.0/Conv_1")]
    of_product = [layer("Reorder_1", "ReorderOutput"), layer("p0.0/Mul_2"), layer("Reorder_2", "ReorderInput")]
    of_mean = [layer("feed/1.0/Conv_5"), layer("Reorder_3", "ReorderOutput"), layer("p1.0/ReduceMean_6")]
    layers = (*of_inputs, *of_product, layer("drain/0.0/Conv_3"), layer("Reorder_4", "ReorderOutput"), *of_mean)
    assert network.shared_out(LayerProfile(layers=layers, run_ns=None, told_by="a test")) == [16.0, 8.0]


def test_work_is_counted_at_the_widths_of_the_point():
    unit = Unit(inputs=(MAP,), operators=(convolution(),), axes=2)
    assert flops_of(Point(unit, (4, 6)), batch=3) == 3 * 2 * 64 * 4 * 9 * 6
    assert bytes_of(Point(unit, (4, 6)), batch=3) == 4 * (3 * 64 * (4 + 6) + 4 * 9 * 6)


def test_weights_are_normal_numbers_and_differ_between_copies(tmp_path):
    point = Point(Unit(inputs=(MAP,), operators=(convolution(),), axes=2), (32, 32))
    network = write_network([point], [2], batch=1, precision="fp32")
    weights = [numpy_helper.to_array(one) for one in network.model.graph.initializer if one.dims[:] == [32, 32, 3, 3]]
    assert len(weights) == 2
    assert not np.array_equal(*weights)
    for weight in weights:
        assert weight.std() * np.sqrt(32 * 9) == pytest.approx(1, abs=0.1)
        assert np.abs(weight[weight != 0]).min() > np.finfo(np.float32).tiny


@pytest.mark.parametrize("name", ["densenet121", "convnext_tiny", "swin_t", "mobilenet_v3_large"])
def test_each_unit_of_an_architecture_has_a_time(name, tmp_path):
    size = 64 if name == "swin_t" else 32
    traced = trace(torchvision.models.get_model(name).eval(), torch.randn(1, 3, size, size))
    points = [Point(unit, widths) for unit, widths in unit_model(traced).widest().items()]
    network = write_network(points, [1] * len(points), batch=2, precision="fp32")
    built = engine_named("ort-cpu").build(save(network, tmp_path), BuildOptions(batches=(2,)))
    built.bind(network.arrays)
    found = network.shared_out(built.profile_layers(1))
    built.close()
    assert [point for point, latency_ns in zip(points, found, strict=True) if latency_ns is None] == []


def test_rules_are_named_as_units_name_operators(everything):
    assert {operator.name for point in everything for operator in point.unit.operators} <= set(RULES)
