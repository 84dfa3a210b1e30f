"""Small real ONNX files to time, and what a torch-free reference says they compute."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from prune2deploy.bench.subjects import Subject
from prune2deploy.evaluation import EvaluationSet
from prune2deploy.storage import sha256_of_file


def write_network(path: Path, *, channels: int, size: int = 16, layers: int = 2, batch: int | str = "batch") -> Path:
    """``layers`` 3x3 convolutions of ``channels`` channels with ReLU, a mean over space and 10 scores."""
    generator = np.random.default_rng(channels)
    weights, nodes, value, width = [], [], "input", 3
    for layer in range(layers):
        kernel = (generator.standard_normal((channels, width, 3, 3)) / np.sqrt(width * 9)).astype(np.float32)
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


def reference_outputs(path: Path, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the network should give, by ONNX's own reference implementation."""
    return np.asarray(ReferenceEvaluator(str(path)).run(None, {"input": inputs})[0], dtype=np.float32)


@dataclass(frozen=True)
class Networks:
    """Writes networks into one folder."""

    folder: Path

    def subject(
        self,
        variant: str,
        *,
        channels: int = 8,
        batch: int | str = "batch",
        flops_fraction: float | None = None,
    ) -> Subject:
        """A new network as a subject at fp32."""
        path = write_network(self.folder / f"{variant}.onnx", channels=channels, batch=batch)
        return Subject(
            variant=variant,
            precision="fp32",
            onnx_path=path,
            sha256=sha256_of_file(path),
            flops_fraction=flops_fraction,
            parameters_fraction=flops_fraction,
        )

    def evaluation(self, *subjects: Subject, wrong: str | None = None) -> Path:
        """Forty inputs; the labels are what the first subject says, and ``wrong`` gets false references."""
        inputs = np.random.default_rng(3).standard_normal((40, 3, 16, 16)).astype(np.float32)
        references = {subject.variant: reference_outputs(subject.onnx_path, inputs) for subject in subjects}
        labels = references[subjects[0].variant].argmax(axis=1).astype(np.int64)
        if wrong is not None:
            references[wrong] = references[wrong] + 1
        path = self.folder / "evaluation.npz"
        EvaluationSet(inputs=inputs, labels=labels, references=references).save(path)
        return path


@pytest.fixture
def networks(tmp_path: Path) -> Networks:
    return Networks(tmp_path)
