"""What is built in behind the network: the best classes, with and without probabilities, and a fixed batch."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from prune2deploy.engines.accuracy import engine_accuracy, predicted_classes
from prune2deploy.engines.engine import BuildOptions
from prune2deploy.engines.parity import check_parity
from prune2deploy.engines.registry import engine_named
from prune2deploy.errors import InputError, ModelError
from prune2deploy.evaluation import EvaluationSet
from prune2deploy.export.evaluation_set import make_evaluation_set
from prune2deploy.export.onnx_from_model import export_onnx
from prune2deploy.export.passes.graph import BYTE_IMAGES, GraphPasses

SHAPE = (3, 6, 6)
CLASSES = 10


def classifier() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, CLASSES)).eval()


def exported(folder: Path, passes: GraphPasses, model: nn.Module | None = None) -> Path:
    return export_onnx(model or classifier(), folder / "net.onnx", input_shape=SHAPE, passes=passes).path


def run(path: Path, images: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"input": images}), strict=True))


@pytest.mark.parametrize("softmax", [False, True])
def test_the_best_classes_are_those_of_torch(softmax: bool, tmp_path: Path) -> None:
    images = torch.randn(5, *SHAPE)
    with torch.inference_mode():
        scores = classifier()(images)
    best = (scores.softmax(1) if softmax else scores).topk(3, dim=1)
    outputs = run(exported(tmp_path, GraphPasses(softmax=softmax, top_k=3)), images.numpy())
    assert list(outputs) == ["scores", "classes"]
    assert (outputs["scores"].dtype, outputs["classes"].dtype) == (np.float32, np.int64)
    np.testing.assert_allclose(outputs["scores"], best.values.numpy(), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(outputs["classes"], best.indices.numpy())


def test_nodes_behind_the_network_say_so(tmp_path: Path) -> None:
    graph = onnx.load(exported(tmp_path, GraphPasses(softmax=True, top_k=CLASSES))).graph
    assert [node.name for node in graph.node][-2:] == ["postprocess/softmax", "postprocess/top_k"]
    shapes = [[size.dim_param or size.dim_value for size in out.type.tensor_type.shape.dim] for out in graph.output]
    assert shapes == [["batch", CLASSES], ["batch", CLASSES]]


def test_more_classes_than_there_are_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--top-k 11: the network has 10 classes; pass at most 10"):
        exported(tmp_path, GraphPasses(top_k=11))
    assert list(tmp_path.iterdir()) == []


def test_the_best_of_a_map_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="--top-k: needs a network with one output of class scores"):
        exported(tmp_path, GraphPasses(top_k=1), nn.Conv2d(3, 5, 1))


def test_tensors_of_these_names_make_room(tmp_path: Path) -> None:
    class Named(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            scores = image.mean((2, 3))
            return scores * 2

    outputs = run(exported(tmp_path, GraphPasses(top_k=2), Named()), np.ones((1, *SHAPE), np.float32))
    np.testing.assert_allclose(outputs["scores"], [[2, 2]])


@pytest.mark.parametrize("top_k", [None, 2])
def test_parity_and_accuracy_hold_through_a_file_with_every_pass(top_k: int | None, tmp_path: Path) -> None:
    model = classifier()
    passes = GraphPasses(
        normalize=((0.5,) * 3, (0.25,) * 3), softmax=True, top_k=top_k, input_format=BYTE_IMAGES, source_size=(13, 9)
    )
    made = make_evaluation_set({"dense": model}, None, input_shape=SHAPE, passes=passes)
    assert made.references["dense"].shape == (64, top_k or CLASSES)
    built = engine_named("ort-cpu").build(exported(tmp_path, passes, model), BuildOptions())
    assert check_parity(built, made, "dense", precision="fp32") < 1e-5
    named = predicted_classes(built, made.inputs)
    labelled = EvaluationSet(inputs=made.inputs, labels=named, references=made.references)
    labelled.save(tmp_path / "evaluation.npz")
    again = EvaluationSet.load(tmp_path / "evaluation.npz")
    assert again.inputs.dtype == np.uint8
    assert engine_accuracy(built, again, batch=7) == 1.0
    built.close()


def test_a_fixed_batch_runs_that_size_alone_and_passes_the_gate(tmp_path: Path) -> None:
    model = classifier()
    path = exported(tmp_path, GraphPasses(batch=4), model)
    graph = onnx.load(path).graph
    sizes = [value.type.tensor_type.shape.dim[0] for value in (*graph.input, *graph.output)]
    assert [(size.dim_value, size.dim_param) for size in sizes] == [(4, ""), (4, "")]
    assert not {"Shape", "Range"} & {node.op_type for node in graph.node}
    made = make_evaluation_set({"dense": model}, None, input_shape=SHAPE)
    built = engine_named("ort-cpu").build(path, BuildOptions(batches=(4,)))
    assert check_parity(built, made, "dense", precision="fp32") < 1e-5
    built.close()


def test_a_model_that_fixes_its_batch_can_be_exported_at_that_batch(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return image.reshape(3, 108)

    with pytest.raises(ModelError, match=r"Fixed: cannot be exported.*reshape"):
        exported(tmp_path, GraphPasses(), Fixed())
    images = np.random.default_rng(0).standard_normal((3, *SHAPE)).astype(np.float32)
    outputs = run(exported(tmp_path, GraphPasses(batch=3), Fixed()), images)
    np.testing.assert_array_equal(outputs["output"], images.reshape(3, 108))


def test_tensorrt_takes_every_pass_at_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    passes = GraphPasses(
        normalize=((0.5,) * 3, (0.25,) * 3), softmax=True, top_k=3, input_format=BYTE_IMAGES, source_size=(13, 9)
    )
    engine = engine_named("trt-rtx")
    summary = engine.build_file(exported(tmp_path, passes), tmp_path / "net.engine", BuildOptions(batches=(1, 4)))
    assert summary.bytes_total > 0
