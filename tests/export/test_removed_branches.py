"""Networks without some residual branches, as ONNX: right, and without zeros that are computed and added."""

from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime
import pytest
import torch
from torch import nn

from prune2deploy.budget.from_mask import plan_from_mask
from prune2deploy.export.onnx_from_model import export_onnx
from prune2deploy.export.passes.graph import GraphPasses
from prune2deploy.export.passes.zeros import drop_added_zeros
from prune2deploy.graph.trace import trace
from prune2deploy.model.zoo.resnet import resnet20
from prune2deploy.model.zoo.wide_resnet import wrn40_2
from prune2deploy.surgery.apply import pruned_copy
from prune2deploy.surgery.trial import randomised_copy

SHAPE = (3, 16, 16)


def without_branches(model: nn.Module, count: int) -> nn.Module:
    inputs = (torch.randn(1, *SHAPE),)
    graph = trace(model, inputs).graph
    kept = graph.everything()
    for branch in graph.branches[:count]:
        for index in branch.groups:
            kept[graph.groups[index].channels] = False
    return pruned_copy(randomised_copy(model, inputs=inputs), plan_from_mask(graph, kept)).eval()


@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed batch", "dynamic batch"])
@pytest.mark.parametrize(("make", "count"), [(resnet20, 3), (wrn40_2, 15)], ids=["resnet20", "wrn40_2"])
def test_the_file_computes_the_pruned_network_and_adds_no_zeros(
    make: type[nn.Module], count: int, dynamic: bool, tmp_path: Path
) -> None:
    pruned = without_branches(make(), count)
    batch = 3
    passes = GraphPasses(batch=None if dynamic else batch)
    export_onnx(pruned, tmp_path / "model.onnx", input_shape=SHAPE, passes=passes)
    images = torch.randn(batch, *SHAPE)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    [logits] = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(logits, pruned(images).numpy(), rtol=1e-3, atol=1e-4)
    operators = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    blocks = {resnet20: 9, wrn40_2: 18}[make]
    assert operators.count("Add") == blocks - count
    assert "Expand" not in operators


def added(zeros: np.ndarray, shape: tuple[int, ...]) -> gs.Graph:
    """relu(x + zeros), where x has shape (1, 4)."""
    x, total = gs.Variable("x", np.float32, (1, 4)), gs.Variable("total", np.float32, shape)
    result = gs.Variable("result", np.float32, shape)
    nodes = [
        gs.Node("Add", "add", inputs=[gs.Constant("zeros", zeros), x], outputs=[total]),
        gs.Node("Relu", "relu", inputs=[total], outputs=[result]),
    ]
    return gs.Graph(nodes=nodes, inputs=[x], outputs=[result])


def test_zeros_that_broadcast_are_added_still() -> None:
    assert drop_added_zeros(added(np.zeros((1, 4), np.float32), (1, 4))) == 1
    assert drop_added_zeros(added(np.zeros((3, 4), np.float32), (3, 4))) == 0


def test_what_is_not_zero_is_added_still() -> None:
    assert drop_added_zeros(added(np.array([[0, 0, 0, 1e-9]], np.float32), (1, 4))) == 0


def test_a_sum_that_is_an_output_stays() -> None:
    graph = added(np.zeros((1, 4), np.float32), (1, 4))
    graph.outputs = [graph.nodes[0].outputs[0]]
    assert drop_added_zeros(graph) == 0
