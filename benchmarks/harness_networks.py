"""Networks whose speeds differ by a known amount: chains of equal convolutions, of various lengths."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CHANNELS, SIZE = 32, 28

BASE_LAYERS = 200
"""10 ms and more on one CPU core."""
SAME_LAYERS = 20
SMALL_LAYERS = 15
"""About 1 ms."""

KNOWN = {"2%": 204, "5%": 210, "20%": 240, "2x": 400}
"""Layers of the slower networks, by how much longer they should take than ``BASE_LAYERS``."""


def write_chain(path: Path, layers: int) -> Path:
    """Write ``layers`` 3x3 convolutions of 32 channels on 28x28 pixels, each with a ReLU, and a mean over space."""
    generator = np.random.default_rng(layers)
    nodes, weights, value = [], [], "input"
    for layer in range(layers):
        # Weights of this size keep the activations at the size of the input, so that no value becomes denormal.
        kernel = generator.standard_normal((CHANNELS, CHANNELS, 3, 3)) * np.sqrt(2 / (CHANNELS * 9))
        weights.append(numpy_helper.from_array(kernel.astype(np.float32), f"weight{layer}"))
        nodes.append(helper.make_node("Conv", [value, f"weight{layer}"], [f"conv{layer}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"conv{layer}"], [f"relu{layer}"]))
        value = f"relu{layer}"
    nodes.append(helper.make_node("GlobalAveragePool", [value], ["output"]))
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", CHANNELS, SIZE, SIZE])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", CHANNELS, 1, 1])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path
