"""Files of half precision: no float32 weight, the model's outputs, and what NVIDIA's parser says of them."""

from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torchvision
from torch import Tensor, nn

from prune2deploy.engines.parity import GATES
from prune2deploy.engines.tensorrt.check import check_parses
from prune2deploy.export.onnx_from_model import ExportedFile, export_onnx
from prune2deploy.export.passes.graph import GraphPasses
from prune2deploy.export.widen import write_widened

SHAPE = (3, 16, 16)
ONNX_TYPES = {"fp32": "FLOAT", "tf32": "FLOAT", "fp16": "FLOAT16", "bf16": "BFLOAT16"}


class PreactBlock(nn.Module):
    """As in DenseNet: a norm before the convolution, and one between two of them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm1, self.conv1 = nn.BatchNorm2d(8), nn.Conv2d(8, 16, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(16), nn.Conv2d(16, 8, 3, padding=1, bias=False)
        self.last, self.head = nn.BatchNorm2d(16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.conv2(self.norm2(self.conv1(self.norm1(x).relu())).relu())], 1)
        return self.head(self.last(x).relu().mean((2, 3)))


class Transformer(nn.Module):
    """LayerNorm, attention and GELU over patches, with positions that the code counts in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, 32, 4, 4), nn.LayerNorm(32)
        self.qkv, self.proj = nn.Linear(32, 96), nn.Linear(32, 32)
        self.mlp = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
        self.head = nn.Linear(32, 5)

    def positions(self, x: Tensor) -> Tensor:
        return torch.zeros((), dtype=x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.positions(x)
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4).unbind(0)
        seen = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(seen.transpose(1, 2).flatten(2))
        return self.head((x + self.mlp(x)).mean(1))


class CountedPositions(Transformer):
    def positions(self, x: Tensor) -> Tensor:
        return torch.arange(16, dtype=torch.float32).div(16).unsqueeze(-1)


class UnregisteredTable(Transformer):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.linspace(-1, 1, 16).unsqueeze(-1)

    def positions(self, x: Tensor) -> Tensor:
        return self.table


class Float32Softmax(nn.Module):
    """Code that asks for float32 where it matters, and comes back."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).mean((2, 3))
        return self.second(x.float().softmax(1).to(x.dtype))


class Float32Head(Float32Softmax):
    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).mean((2, 3))
        return nn.functional.linear(x.float(), self.second.weight.float(), self.second.bias.float())


def with_random_statistics(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.normal_(module.bias, 0, 0.1)
    return model.eval()


def made(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return with_random_statistics(make())


def weight_types(path: Path) -> Counter[str]:
    """Elements of the floating-point weights by ONNX type."""
    counted: Counter[str] = Counter()
    for tensor in onnx.load(path).graph.initializer:
        name = onnx.TensorProto.DataType.Name(tensor.data_type)
        if "FLOAT" in name:
            counted[name] += int(np.prod(tensor.dims))
    return counted


def end_types(path: Path) -> list[str]:
    graph = onnx.load(path).graph
    return [onnx.TensorProto.DataType.Name(v.type.tensor_type.elem_type) for v in (*graph.input, *graph.output)]


def run(path: Path, inputs: np.ndarray) -> np.ndarray:
    """Through ONNX Runtime; bfloat16 files through their float32 copy."""
    if weight_types(path)["BFLOAT16"]:
        write_widened(path, path.with_suffix(".wide"))
        path = path.with_suffix(".wide")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    [only] = session.get_inputs()
    kind = {"tensor(float16)": np.float16, "tensor(float)": np.float32, "tensor(uint8)": np.uint8}[only.type]
    return session.run(None, {only.name: inputs.astype(kind)})[0]


def error(path: Path, model: nn.Module, size: tuple[int, ...] = SHAPE) -> float:
    images = torch.randn(3, *size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = model(images).double().numpy()
    found = run(path, images.numpy()).astype(np.float64)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def require_parser(path: Path) -> None:
    """NVIDIA's parser reads the file as a strongly typed network, where it is installed."""
    if find_spec("tensorrt_rtx"):
        check_parses(path)


def exported(model: nn.Module, folder: Path, precision: str, **options: object) -> ExportedFile:
    return export_onnx(model, folder / f"{precision}.onnx", input_shape=SHAPE, precision=precision, **options)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("make", [PreactBlock, Transformer, CountedPositions, UnregisteredTable])
def test_a_half_file_holds_no_float32_weight_and_computes_the_model(
    make: Callable[[], nn.Module], precision: str, tmp_path: Path
) -> None:
    model = made(make)
    file = exported(model, tmp_path, precision)
    assert set(weight_types(file.path)) == {ONNX_TYPES[precision]}
    assert file.float32_layers == ()
    assert end_types(file.path) == ["FLOAT", "FLOAT"]
    # Rounding must be seen, or the file is not what it is called; and within the gate.
    assert GATES[precision] / 300 < error(file.path, model) < GATES[precision]
    operators = {node.op_type for node in onnx.load(file.path).graph.node}
    assert "BatchNormalization" not in operators
    require_parser(file.path)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_resnet18_becomes_half_throughout(precision: str, tmp_path: Path) -> None:
    model = made(torchvision.models.resnet18)
    path = tmp_path / "resnet18.onnx"
    file = export_onnx(model, path, input_shape=(3, 64, 64), precision=precision)
    assert set(weight_types(path)) == {ONNX_TYPES[precision]}
    assert Counter(node.op_type for node in onnx.load(path).graph.node)["Conv"] == 20
    assert file.unfolded_batch_norms == file.float32_layers == ()
    assert error(path, model, (3, 64, 64)) < GATES[precision]
    require_parser(path)


def test_tf32_is_a_file_of_float32(tmp_path: Path) -> None:
    model = made(PreactBlock)
    files = [exported(model, tmp_path, precision) for precision in ("fp32", "tf32")]
    assert files[0].sha256 == files[1].sha256
    assert set(weight_types(files[1].path)) == {"FLOAT"}


def test_a_model_in_half_precision_gives_a_file_of_float32_where_that_is_asked_for(tmp_path: Path) -> None:
    model = made(PreactBlock).half()
    file = exported(model, tmp_path, "fp32")
    assert set(weight_types(file.path)) == {"FLOAT"}
    assert next(model.parameters()).dtype == torch.float16


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_inputs_and_outputs_take_the_precision_where_asked(precision: str, tmp_path: Path) -> None:
    model = made(PreactBlock)
    file = exported(model, tmp_path, precision, io_precision="same")
    assert end_types(file.path) == [ONNX_TYPES[precision]] * 2
    assert not any(node.op_type == "Cast" for node in onnx.load(file.path).graph.node)
    require_parser(file.path)
    assert error(file.path, model) < GATES[precision]


def test_what_is_built_in_around_a_half_network_computes_in_float32(tmp_path: Path) -> None:
    model = made(PreactBlock)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    passes = GraphPasses(normalize=(mean, std), softmax=True)
    images = torch.rand(3, *SHAPE)
    with torch.inference_mode():
        normalised = (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        expected = model(normalised).softmax(1).numpy()
    for io_precision, end in (("fp32", "FLOAT"), ("same", "FLOAT16")):
        file = exported(model, tmp_path, "fp16", passes=passes, io_precision=io_precision)
        assert end_types(file.path) == [end, end]
        graph = onnx.load(file.path).graph
        types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
        [softmax] = [node for node in graph.node if node.op_type == "Softmax"]
        assert types[softmax.output[0]] == onnx.TensorProto.FLOAT
        np.testing.assert_allclose(run(file.path, images.numpy()), expected, atol=2e-3)


def test_bytes_as_input_stay_bytes_in_a_half_file(tmp_path: Path) -> None:
    passes = GraphPasses(normalize=((0.5,) * 3, (0.25,) * 3), input_format="uint8-nhwc", top_k=2)
    file = exported(made(PreactBlock), tmp_path, "bf16", passes=passes, io_precision="same")
    assert end_types(file.path) == ["UINT8", "BFLOAT16", "INT64"]
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    assert run(file.path, images).shape == (2, 2)


def test_code_that_asks_for_float32_keeps_it(tmp_path: Path) -> None:
    model = made(Float32Softmax)
    file = exported(model, tmp_path, "fp16")
    assert Counter(node.op_type for node in onnx.load(file.path).graph.node)["Cast"] == 4
    assert set(weight_types(file.path)) == {"FLOAT16"}
    assert error(file.path, model) < GATES["fp16"]


def test_layers_that_the_code_keeps_in_float32_are_named(tmp_path: Path) -> None:
    file = exported(made(Float32Head), tmp_path, "fp16")
    assert len(file.float32_layers) == 1


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_same_weights_give_the_same_bytes(precision: str, tmp_path: Path) -> None:
    first = exported(made(PreactBlock), tmp_path, precision)
    again = exported(made(PreactBlock), tmp_path, precision)
    assert first.sha256 == again.sha256
    assert str(Path(__file__).name).encode() not in first.path.read_bytes()


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = made(PreactBlock).train()
    exported(model, tmp_path, "bf16")
    assert model.training
    for name, tensor in made(PreactBlock).state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])
