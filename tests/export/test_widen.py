"""The float32 copy of a bfloat16 file rounds where bfloat16 would, and ONNX Runtime keeps the rounding."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper

from prune2deploy.export.widen import widened, write_widened


def bfloat16(values: np.ndarray) -> np.ndarray:
    """Rounded to the nearest bfloat16, by torch."""
    return torch.from_numpy(values).bfloat16().float().numpy()


def product_network(factor: np.ndarray) -> onnx.ModelProto:
    """bf16(x) @ factor, then + 1/3, then relu, in bfloat16, from and to float32."""
    kind = TensorProto.BFLOAT16
    constants = [
        helper.make_tensor("factor", kind, factor.shape, factor.flatten().tolist()),
        helper.make_tensor("third", kind, (), [1 / 3]),
    ]
    nodes = [
        helper.make_node("Cast", ["x"], ["x_half"], "down", to=kind),
        helper.make_node("MatMul", ["x_half", "factor"], ["product"], "product"),
        helper.make_node("Add", ["product", "third"], ["total"], "total"),
        helper.make_node("Relu", ["total"], ["relu"], "relu"),
        helper.make_node("Cast", ["relu"], ["y"], "up", to=TensorProto.FLOAT),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in (("x", 8), ("y", 4))]
    graph = helper.make_graph(nodes, "products", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def test_every_result_is_rounded_as_bfloat16_is(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    factor, x = rng.standard_normal((8, 4)).astype(np.float32), rng.standard_normal((5, 8)).astype(np.float32)
    onnx.save(product_network(factor), tmp_path / "half.onnx")
    write_widened(tmp_path / "half.onnx", tmp_path / "wide.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "wide.onnx", providers=["CPUExecutionProvider"])
    [found] = session.run(None, {"x": x})
    product = bfloat16(bfloat16(x) @ bfloat16(factor))
    expected = np.maximum(bfloat16(product + bfloat16(np.float32([1 / 3]))), 0)
    np.testing.assert_array_equal(found, expected)
    assert np.abs(found - np.maximum(x @ factor + 1 / 3, 0)).max() > 1e-3


def test_nothing_is_bfloat16_in_the_copy_but_between_the_casts() -> None:
    copy = widened(product_network(np.ones((8, 4), dtype=np.float32)))
    onnx.checker.check_model(copy, full_check=True)
    assert all(tensor.data_type == TensorProto.FLOAT for tensor in copy.graph.initializer)
    rounded = [node.output[0] for node in copy.graph.node if node.op_type == "Cast" and node.attribute[0].i == 16]
    # The input, the product and the sum; a maximum with zero rounds nothing, and the last is float32 already.
    assert len(rounded) == 3
    inferred = onnx.shape_inference.infer_shapes(copy, strict_mode=True)
    halves = {v.name for v in inferred.graph.value_info if v.type.tensor_type.elem_type == TensorProto.BFLOAT16}
    assert halves == set(rounded)


def test_a_file_without_bfloat16_stays_as_it_is() -> None:
    node = helper.make_node("Relu", ["x"], ["y"], "relu")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "y")]
    model = helper.make_model(helper.make_graph([node], "relu", ends[:1], ends[1:]))
    assert widened(model) == model
