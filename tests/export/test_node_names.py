"""Nodes are called after the modules that they come from."""

from collections.abc import Sequence
from pathlib import Path

import onnx
import onnx_graphsurgeon as gs
import pytest
import torch
from torch import Tensor, nn

from prune2deploy.export.onnx_from_model import export_onnx
from prune2deploy.export.passes.node_names import modules_of_nodes, rename_nodes


class Block(nn.Module):
    """A residual block that uses its one activation twice, as ResNets do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU()
        self.swish = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.swish(self.act(x + self.act(self.norm(self.conv(x)))))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Linear(4, 3)
        self.tokens = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(x)
        return self.head(self.tokens(x).mean((2, 3)))


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("names") / "net.onnx"
    export_onnx(Net(), path, input_shape=(4, 5, 5))
    return [node.name for node in onnx.load(path).graph.node]


def test_layers_have_the_paths_of_their_modules(names: Sequence[str]) -> None:
    # A batch norm is folded: the convolution keeps its own name. A product in front of a bias is the layer itself.
    assert {"blocks.0.conv", "blocks.1.conv", "head", "tokens"} <= set(names)
    assert "tokens/Add" in names


def test_an_operator_of_a_container_says_what_it_is(names: Sequence[str]) -> None:
    assert {"blocks.0/Add", "blocks.1/Add"} <= set(names)
    assert not {"blocks", "blocks.0", ""} & set(names)


def test_modules_that_act_twice_are_numbered_and_several_operators_named(names: Sequence[str]) -> None:
    assert {"blocks.0.act", "blocks.0.act_2"} <= set(names)
    assert {"blocks.0.swish/Sigmoid", "blocks.0.swish/Mul"} <= set(names)


def test_names_are_unique(names: Sequence[str]) -> None:
    assert len(set(names)) == len(names)


def hand_made(modules: Sequence[str | None], operators: Sequence[str]) -> onnx.ModelProto:
    nodes = []
    for number, (module, operator) in enumerate(zip(modules, operators, strict=True)):
        node = onnx.helper.make_node(operator, [f"t{number}"], [f"t{number + 1}"], name=f"node_{number}")
        if module is not None:
            scopes = ["", *([module] if module else []), "call"]
            node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=str(scopes))
        nodes.append(node)
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("t0", f"t{len(nodes)}")]
    return onnx.helper.make_model(onnx.helper.make_graph(nodes, "net", ends[:1], ends[1:]))


def renamed(model: onnx.ModelProto) -> list[str]:
    modules = modules_of_nodes(model)
    graph = gs.import_onnx(model)
    rename_nodes(graph, modules)
    return [node.name for node in graph.nodes]


def test_nodes_of_no_module_keep_their_names_and_others_make_room() -> None:
    model = hand_made([None, "node_0", ""], ["Relu", "Relu", "Neg"])
    assert renamed(model) == ["node_0", "node_0_2", "Neg"]


def test_the_exporters_stand_in_for_a_missing_module_is_the_model_itself() -> None:
    model = hand_made(["_empty_nn_module_stack_from_metadata_hook"], ["Relu"])
    assert modules_of_nodes(model) == {"node_0": ""}
    assert renamed(model) == ["Relu"]


def test_weights_that_two_layers_share_name_neither(tmp_path: Path) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 3, 1, bias=False)
            self.second = nn.Conv2d(3, 3, 1, bias=False)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x).relu())

    path = export_onnx(Shared(), tmp_path / "net.onnx", input_shape=(3, 4, 4)).path
    assert [node.name for node in onnx.load(path).graph.node] == ["first", "Relu", "second"]
