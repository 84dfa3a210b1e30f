"""Small networks written with onnx.helper, so that these tests need no torch."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_static

from prune2deploy.evaluation import EvaluationSet

IMAGE = (3, 8, 8)
CLASSES = 5

WriteNetwork = Callable[..., Path]

_ELEMENT = {"fp32": (TensorProto.FLOAT, np.float32), "fp16": (TensorProto.FLOAT16, np.float16)}


def reference_outputs(inputs: np.ndarray) -> np.ndarray:
    """What the network of ``write_network`` computes, by NumPy alone. Shape: (N, 3, 8, 8) -> (N, 5)."""
    kernel, head = weights()
    features = np.einsum("nchw,oc->nohw", inputs.astype(np.float64), kernel[:, :, 0, 0].astype(np.float64))
    return np.maximum(features, 0).mean((2, 3)) @ head.astype(np.float64)


def weights() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    return (
        rng.standard_normal((16, 3, 1, 1)).astype(np.float32),
        rng.standard_normal((16, CLASSES)).astype(np.float32),
    )


@pytest.fixture
def write_network(tmp_path: Path) -> WriteNetwork:
    """Write a network: pointwise convolution, ReLU, global average, linear head."""

    def write(name: str = "net.onnx", *, batch: int | str = "batch", precision: str = "fp32") -> Path:
        element, dtype = _ELEMENT[precision]
        kernel, head = weights()
        graph = helper.make_graph(
            [
                helper.make_node("Conv", ["input", "kernel"], ["features"], name="conv"),
                helper.make_node("Relu", ["features"], ["active"], name="relu"),
                helper.make_node("GlobalAveragePool", ["active"], ["pooled"], name="pool"),
                helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"),
                helper.make_node("MatMul", ["flat", "head"], ["output"], name="head"),
            ],
            "net",
            [helper.make_tensor_value_info("input", element, [batch, *IMAGE])],
            [helper.make_tensor_value_info("output", element, [batch, CLASSES])],
            [
                numpy_helper.from_array(kernel.astype(dtype), "kernel"),
                numpy_helper.from_array(head.astype(dtype), "head"),
            ],
        )
        return save(graph, tmp_path / name)

    return write


@pytest.fixture
def write_quantised(write_network: WriteNetwork, tmp_path: Path) -> WriteNetwork:
    """Write that network with bytes for weights and activations, calibrated on normal numbers."""

    def write(name: str = "int8.onnx") -> Path:
        batches = iter([{"input": np.random.default_rng(5).standard_normal((64, *IMAGE)).astype(np.float32)}])
        quantize_static(
            write_network(),
            tmp_path / name,
            SimpleNamespace(get_next=lambda: next(batches, None)),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
        )
        return tmp_path / name

    return write


@pytest.fixture
def write_nodes(tmp_path: Path) -> WriteNetwork:
    """Write a network of any nodes from ``input`` to ``output``, both (batch, 3, 8, 8)."""

    def write(nodes: list[onnx.NodeProto], *, element: int = TensorProto.FLOAT, opset: int = 20) -> Path:
        shape = ["batch", *IMAGE]
        graph = helper.make_graph(
            nodes,
            "net",
            [helper.make_tensor_value_info("input", element, shape)],
            [helper.make_tensor_value_info("output", element, shape)],
        )
        return save(graph, tmp_path / "nodes.onnx", opset=opset)

    return write


def save(graph: onnx.GraphProto, path: Path, *, opset: int = 20) -> Path:
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("custom", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    model.producer_name = "tests"
    helper.set_model_props(model, {"variant": "dense"})
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def reference() -> Callable[[np.ndarray], np.ndarray]:
    """What the network of ``write_network`` computes, by NumPy alone."""
    return reference_outputs


@pytest.fixture
def evaluation() -> EvaluationSet:
    """Forty images with the true outputs as references, and as labels the class that these outputs name."""
    inputs = np.random.default_rng(3).standard_normal((40, *IMAGE)).astype(np.float32)
    outputs = reference_outputs(inputs).astype(np.float32)
    return EvaluationSet(inputs=inputs, labels=outputs.argmax(axis=1), references={"dense": outputs})
