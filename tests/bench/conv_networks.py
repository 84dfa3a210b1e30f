"""Small real ONNX files to time, and what a torch-free reference says they compute."""

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from prune2deploy.bench.subjects import Subject
from prune2deploy.storage import sha256_of_file


def write_network(path: Path, *, channels: int, size: int = 16, layers: int = 2, batch: int | str = "batch") -> Path:
    """``layers`` 3x3 convolutions of ``channels`` channels with ReLU, a mean over space and 10 scores."""
    generator = np.random.default_rng(channels)
    weights, nodes, value, width = [], [], "input", 3
    for layer in range(layers):
        kernel = generator.standard_normal((channels, width, 3, 3)).astype(np.float32) / np.sqrt(width * 9)
        weights.append(numpy_helper.from_array(kernel, f"weight{layer}"))
        nodes.append(helper.make_node("Conv", [value, f"weight{layer}"], [f"conv{layer}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"conv{layer}"], [f"relu{layer}"]))
        value, width = f"relu{layer}", channels
    classifier = generator.standard_normal((channels, 10)).astype(np.float32)
    weights.append(numpy_helper.from_array(classifier, "classifier"))
    nodes += [
        helper.make_node("GlobalAveragePool", [value], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "classifier"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, 3, size, size])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [batch, 10])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path)
    return path


def outputs_of(path: Path, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the network should give, by ONNX's own reference implementation."""
    from onnx.reference import ReferenceEvaluator

    return np.asarray(ReferenceEvaluator(str(path)).run(None, {"input": inputs})[0], dtype=np.float32)


def subject(variant: str, path: Path, **facts: float) -> Subject:
    """A subject for a file at fp32."""
    return Subject(variant=variant, precision="fp32", onnx_path=path, sha256=sha256_of_file(path), **facts)
