"""Export of small networks: names, folding, determinism, and what a model that cannot be exported says."""

import errno
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from prune2deploy.errors import ModelError, ParityError, StorageError
from prune2deploy.export.onnx_from_model import ExportedFile, export_onnx
from prune2deploy.export.passes.graph import GraphPasses

SHAPE = (3, 12, 12)


class ResidualNet(nn.Module):
    """Two convolutions with batch norms and a skip, so that folding has something to do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(x + self.bn2(self.conv2(x)))
        return self.head(x.mean((2, 3)))


def residual_net() -> ResidualNet:
    torch.manual_seed(0)
    network = ResidualNet()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 2.0)
            nn.init.normal_(module.bias)
    return network


def tiny_net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())


def run(path: Path, inputs: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: inputs})[0]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, ExportedFile]:
    network = residual_net().train()
    path = tmp_path_factory.mktemp("plain") / "net.onnx"
    return network, export_onnx(network, path, input_shape=SHAPE, metadata={"variant": "dense", "a": "1"})


def test_the_exported_file_computes_what_the_model_computes_at_any_batch(
    exported: tuple[nn.Module, ExportedFile],
) -> None:
    _, file = exported
    reference = residual_net().eval()
    for batch in (1, 2, 5):
        inputs = torch.randn(batch, *SHAPE)
        with torch.inference_mode():
            expected = reference(inputs).numpy()
        np.testing.assert_allclose(run(file.path, inputs.numpy()), expected, rtol=1e-4, atol=1e-5)


def test_input_and_output_have_plain_names_and_a_free_batch(exported: tuple[nn.Module, ExportedFile]) -> None:
    _, file = exported
    graph = onnx.load(file.path).graph
    assert [value.name for value in graph.input] == ["input"] == list(file.input_names)
    assert [value.name for value in graph.output] == ["output"] == list(file.output_names)
    assert [size.dim_param or size.dim_value for size in graph.input[0].type.tensor_type.shape.dim] == ["batch", *SHAPE]
    assert [size.dim_param or size.dim_value for size in graph.output[0].type.tensor_type.shape.dim] == ["batch", 10]


def test_batch_norms_behind_convolutions_are_folded(exported: tuple[nn.Module, ExportedFile]) -> None:
    _, file = exported
    operators = [node.op_type for node in onnx.load(file.path).graph.node]
    assert operators.count("Conv") == 2
    assert "BatchNormalization" not in operators
    assert file.unfolded_batch_norms == ()


def test_metadata_is_written_and_no_path_of_the_machine_is(exported: tuple[nn.Module, ExportedFile]) -> None:
    _, file = exported
    proto = onnx.load(file.path)
    assert {entry.key: entry.value for entry in proto.metadata_props} == {"a": "1", "variant": "dense"}
    assert str(Path(__file__).name).encode() not in file.path.read_bytes()
    assert all(not node.metadata_props and node.name for node in proto.graph.node)


def test_every_tensor_has_a_shape(exported: tuple[nn.Module, ExportedFile]) -> None:
    _, file = exported
    graph = onnx.load(file.path).graph
    known = {value.name for value in (*graph.value_info, *graph.output)}
    assert {output for node in graph.node for output in node.output} <= known


def test_the_model_is_left_as_it_was(exported: tuple[nn.Module, ExportedFile]) -> None:
    network, _ = exported
    assert all(module.training for module in network.modules())
    assert all(parameter.requires_grad for parameter in network.parameters())
    for name, tensor in residual_net().state_dict().items():
        assert torch.equal(tensor, network.state_dict()[name])


def test_the_same_weights_give_the_same_bytes(exported: tuple[nn.Module, ExportedFile], tmp_path: Path) -> None:
    _, file = exported
    again = export_onnx(
        residual_net(), tmp_path / "again.onnx", input_shape=SHAPE, metadata={"a": "1", "variant": "dense"}
    )
    assert again.sha256 == file.sha256


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    export_onnx(tiny_net(), tmp_path / "net.onnx", input_shape=SHAPE)
    assert capfd.readouterr() == ("", "")


def test_a_static_export_has_a_batch_of_one(tmp_path: Path) -> None:
    passes = GraphPasses(batch=1)
    file = export_onnx(tiny_net(), tmp_path / "net.onnx", input_shape=SHAPE, passes=passes)
    sizes = onnx.load(file.path).graph.input[0].type.tensor_type.shape.dim
    assert [size.dim_value for size in sizes] == [1, *SHAPE]


def test_normalization_and_softmax_are_built_into_the_graph(tmp_path: Path) -> None:
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    passes = GraphPasses(normalize=(mean, std), softmax=True)
    file = export_onnx(residual_net(), tmp_path / "net.onnx", input_shape=SHAPE, passes=passes)
    images = torch.rand(3, *SHAPE)
    normalised = (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    with torch.inference_mode():
        expected = residual_net().eval()(normalised).softmax(1).numpy()
    np.testing.assert_allclose(run(file.path, images.numpy()), expected, rtol=1e-4, atol=1e-6)
    assert file.input_names == ("input",)
    assert file.output_names == ("output",)


class DataDependentBranch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x * 2
        return x


class NoOnnxForm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.svdvals(x)


class FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, 432)


class RaisingForward(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise KeyError("no such stage")


class NoBatchInOutput(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean()


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (DataDependentBranch, r"test_onnx_from_model\.py:\d+ in forward: if x\.sum\(\) > 0"),
        (NoOnnxForm, r"operator aten\._linalg_svd has no ONNX form"),
        (FixedBatch, r"FixedBatch: .*its forward fixes the batch size"),
        (RaisingForward, r"no such stage.*test_onnx_from_model\.py:\d+ in forward: raise KeyError"),
        (NoBatchInOutput, r"'output' has no batch dimension"),
    ],
)
def test_a_model_that_cannot_be_exported_names_the_operator_or_the_line(
    module: Callable[[], nn.Module], said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ModelError, match=said) as caught:
        export_onnx(module(), tmp_path / "net.onnx", input_shape=SHAPE)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_softmax_needs_class_scores(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="--softmax"):
        export_onnx(nn.Flatten(2), tmp_path / "net.onnx", input_shape=SHAPE, passes=GraphPasses(softmax=True))
    assert list(tmp_path.iterdir()) == []


def test_a_gate_that_raises_leaves_no_file(tmp_path: Path) -> None:
    seen = []

    def gate(path: Path) -> float:
        seen.append(onnx.load(path).graph.input[0].name)
        raise ParityError("wrong")

    with pytest.raises(ParityError):
        export_onnx(tiny_net(), tmp_path / "net.onnx", input_shape=SHAPE, gate=gate)
    assert seen == ["input"]
    assert list(tmp_path.iterdir()) == []


def test_what_the_gate_measures_is_recorded(tmp_path: Path) -> None:
    file = export_onnx(tiny_net(), tmp_path / "net.onnx", input_shape=SHAPE, gate=lambda path: 0.25)
    assert file.parity_max_error == 0.25
    assert [entry.name for entry in tmp_path.iterdir()] == ["net.onnx"]


def test_a_full_disk_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match="No space left"):
        export_onnx(tiny_net(), tmp_path / "net.onnx", input_shape=SHAPE)
    assert list(tmp_path.iterdir()) == []
