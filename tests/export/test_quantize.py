"""INT8 files: what computes in bytes, that it is near fp32, what NVIDIA's parser takes, and what bad images say."""

import errno
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from prune2deploy.errors import DataError, InputError, ModelError, StorageError
from prune2deploy.export.int8.quantize import STYLES, QuantizationOptions, Quantized, quantize_onnx, style_for
from prune2deploy.export.onnx_from_model import export_onnx
from prune2deploy.export.passes.graph import BYTE_IMAGES, GraphPasses

SHAPE = (3, 12, 12)
METADATA = {"variant": "dense", "precision": "int8"}


class Residual(nn.Module):
    """A stem and two residual blocks, the second of which widens, so that both branches end in a convolution."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.conv3 = nn.Conv2d(width, 2 * width, 3, padding=1, stride=2)
        self.conv4 = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.shortcut = nn.Conv2d(width, 2 * width, 1, stride=2)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.stem(x)))
        x = torch.relu(self.conv2(torch.relu(self.conv1(x))) + x)
        x = torch.relu(self.conv4(torch.relu(self.conv3(x))) + self.shortcut(x))
        return self.head(x.mean((2, 3)))


class Attention(nn.Module):
    """One head over the pixels: two products of activations, four with stored weights, a norm and a GELU."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(3)
        self.query, self.key, self.value = (nn.Linear(3, width) for _ in range(3))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x.flatten(2).transpose(1, 2))
        weights = (self.query(x) @ self.key(x).transpose(1, 2)).softmax(-1)
        return self.head(nn.functional.gelu(weights @ self.value(x)).mean(1))


def write(module: nn.Module, path: Path, passes: GraphPasses | None = None) -> Path:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.1)
    return export_onnx(module, path, input_shape=SHAPE, passes=passes, metadata=METADATA).path


def pictures(count: int = 24, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, *SHAPE), dtype=np.float32)


def run(path: Path, inputs: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: inputs})[0]


def noise_db(path: Path, source: Path, inputs: np.ndarray) -> float:
    reference = run(source, inputs).astype(np.float64)
    return 10 * np.log10(np.square(reference).sum() / np.square(reference - run(path, inputs)).sum())


def makers_of(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    return {output: node for node in graph.node for output in node.output}


def readers_of(graph: onnx.GraphProto, name: str) -> list[str]:
    return [node.op_type for node in graph.node if name in node.input]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(Residual(), tmp_path_factory.mktemp("fp32") / "net-fp32.onnx")


@pytest.fixture(scope="module")
def int8(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The residual network in a style, made once."""
    folder = tmp_path_factory.mktemp("int8")

    def made(style: str) -> Path:
        path = folder / f"net-{style}.onnx"
        if not path.exists():
            quantize_onnx(source, path, pictures(), QuantizationOptions(style=style))
        return path

    return made


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("batch", [1, 5])
def test_an_int8_file_computes_nearly_what_fp32_computes(style, batch, source, int8):
    assert noise_db(int8(style), source, pictures(batch, seed=9)) > 25


@pytest.mark.parametrize("style", STYLES)
def test_weights_are_bytes_by_output_channel_and_the_file_shrinks(style, source, int8):
    graph = onnx.load(int8(style)).graph
    stored = {entry.name: entry for entry in graph.initializer}
    kernels = [entry for entry in graph.initializer if len(entry.dims) == 4]
    assert {entry.data_type for entry in kernels} == {TensorProto.INT8}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in {kernel.name for kernel in kernels}:
            scale = numpy_helper.to_array(stored[node.input[1]])
            assert scale.shape == (stored[node.input[0]].dims[0],)
            assert not numpy_helper.to_array(stored[node.input[2]]).any()
    assert int8(style).stat().st_size < 0.4 * source.stat().st_size


def test_a_symmetric_file_is_signed_without_zero_points_and_keeps_float_biases(int8):
    graph = onnx.load(int8("symmetric")).graph
    stored = {entry.name: numpy_helper.to_array(entry) for entry in graph.initializer}
    zeros = [stored[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"]
    assert {zero.dtype for zero in zeros} == {np.dtype(np.int8)}
    assert not any(zero.any() for zero in zeros)
    assert {stored[node.input[2]].dtype for node in graph.node if node.op_type == "Conv"} == {np.dtype(np.float32)}


def test_an_affine_file_is_unsigned_and_its_biases_are_integers(int8):
    graph = onnx.load(int8("affine")).graph
    stored = {entry.name: numpy_helper.to_array(entry) for entry in graph.initializer}
    makers = makers_of(graph)
    zeros = [stored[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"]
    assert {zero.dtype for zero in zeros} == {np.dtype(np.uint8)}
    biases = [makers[node.input[2]] for node in graph.node if node.op_type == "Conv"]
    assert {stored[bias.input[0]].dtype for bias in biases} == {np.dtype(np.int32)}


def test_in_a_symmetric_file_a_convolution_is_followed_by_what_it_fuses_with(int8):
    graph = onnx.load(int8("symmetric")).graph
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    followers = Counter(tuple(readers_of(graph, node.output[0])) for node in convolutions)
    # The shortcut is the residual of the widening block, so it is quantised; no other result is.
    assert followers == {("Relu",): 3, ("Add",): 2, ("QuantizeLinear",): 1}


def test_in_a_symmetric_file_the_skip_of_a_residual_add_is_quantised(int8):
    graph = onnx.load(int8("symmetric")).graph
    makers = makers_of(graph)
    adds = [node for node in graph.node if node.op_type == "Add"]
    assert len(adds) == 2
    for add in adds:
        assert sorted(makers[name].op_type for name in add.input) == ["Conv", "DequantizeLinear"]


def test_onnx_runtime_computes_every_layer_of_an_affine_file_in_bytes(int8, tmp_path):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(int8("affine"), options, providers=["CPUExecutionProvider"])
    operators = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert operators["QLinearConv"] == 6
    assert operators["QLinearAdd"] == 2
    assert operators["QGemm"] == 1
    assert operators["Conv"] == operators["FusedConv"] == operators["Relu"] == operators["Gemm"] == 0


@contextmanager
def parsed_by_tensorrt(path: Path) -> Iterator[tuple[bool, str]]:
    tensorrt = pytest.importorskip("tensorrt_rtx")
    logger = tensorrt.Logger(tensorrt.Logger.INTERNAL_ERROR)
    builder = tensorrt.Builder(logger)
    network = builder.create_network(0)
    parser = tensorrt.OnnxParser(network, logger)
    accepted = parser.parse_from_file(str(path))
    yield accepted, " ".join(parser.get_error(number).desc() for number in range(parser.num_errors))


def test_nvidias_parser_takes_symmetric_files(int8):
    with parsed_by_tensorrt(int8("symmetric")) as (accepted, said):
        assert accepted, said


def test_nvidias_parser_refuses_affine_files(int8):
    # Why there are two styles: if this ever passes, one may be enough.
    with parsed_by_tensorrt(int8("affine")) as (accepted, said):
        assert not accepted
        assert "zero" in said


@pytest.mark.parametrize("style", STYLES)
def test_identity_of_the_source_is_kept(style, source, int8):
    before, after = onnx.load(source), onnx.load(int8(style))
    assert {entry.key: entry.value for entry in after.metadata_props} == METADATA
    assert after.producer_name == before.producer_name
    assert after.opset_import == before.opset_import
    assert [after.graph.input[0], after.graph.output[0]] == [before.graph.input[0], before.graph.output[0]]
    layers = {node.name for node in before.graph.node if node.op_type in ("Conv", "Gemm")}
    assert layers <= {node.name for node in after.graph.node}


PROGRAM = """
import sys
from pathlib import Path
import numpy as np
from prune2deploy.export.int8.quantize import QuantizationOptions, quantize_onnx
images = np.random.default_rng(0).standard_normal((24, 3, 12, 12), dtype=np.float32)
quantize_onnx(Path(sys.argv[1]), Path(sys.argv[2]), images, QuantizationOptions(style=sys.argv[3]))
"""


@pytest.mark.parametrize("style", STYLES)
def test_the_same_file_and_images_give_the_same_bytes_in_every_process(style, source, int8, tmp_path):
    again = tmp_path / "again.onnx"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", PROGRAM, source, again, style], check=True, env=environment)
    assert again.read_bytes() == int8(style).read_bytes()


@pytest.mark.parametrize("style", STYLES)
def test_without_its_ends_the_first_and_last_layers_stay_float(style, source, tmp_path):
    made = quantize_onnx(source, tmp_path / "net.onnx", pictures(), QuantizationOptions(style=style, ends=False))
    assert sorted(made.floating) == ["head", "stem"]
    stored = {entry.name: entry.data_type for entry in onnx.load(tmp_path / "net.onnx").graph.initializer}
    assert stored["stem.weight"] == stored["head.weight"] == TensorProto.FLOAT
    assert "conv1.weight" not in stored
    assert noise_db(tmp_path / "net.onnx", source, pictures(seed=9)) > 25


@pytest.mark.parametrize("calibration", ["entropy", "percentile"])
@pytest.mark.parametrize("style", STYLES)
def test_other_calibrations_give_networks_that_work_too(style, calibration, source, tmp_path):
    options = QuantizationOptions(style=style, calibration=calibration)
    quantize_onnx(source, tmp_path / "net.onnx", pictures(), options)
    assert noise_db(tmp_path / "net.onnx", source, pictures(seed=9)) > 20


def input_scale(path: Path) -> float:
    graph = onnx.load(path).graph
    stored = {entry.name: numpy_helper.to_array(entry) for entry in graph.initializer}
    return next(float(stored[node.input[1]]) for node in graph.node if node.input[0] == "input")


def test_calibrations_treat_an_outlier_as_they_say(source, tmp_path):
    images = pictures(64)
    images[3, 0, 0, 0] = 1000.0
    scales = {}
    for calibration in ("minmax", "entropy", "percentile"):
        path = tmp_path / f"{calibration}.onnx"
        quantize_onnx(source, path, images, QuantizationOptions(calibration=calibration))
        scales[calibration] = input_scale(path)
    assert scales["minmax"] == pytest.approx(1000 / 127.5, rel=0.01)
    assert scales["entropy"] < 0.3 * scales["minmax"]
    assert scales["percentile"] <= scales["minmax"]


def test_ranges_come_from_all_images_and_not_only_the_first_ones(source, tmp_path):
    images = pictures(40)
    images[-1] *= 50
    quantize_onnx(source, tmp_path / "net.onnx", images, QuantizationOptions())
    assert input_scale(tmp_path / "net.onnx") == pytest.approx(np.abs(images).max() / 127.5, rel=0.01)


class Dead(nn.Module):
    """A rectifier that never fires, and a filter of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.dead, self.alive = nn.Conv2d(3, 32, 3), nn.Conv2d(3, 32, 3)
        self.head = nn.Conv2d(32, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.dead(x))) + self.alive(x)


@pytest.mark.parametrize("calibration", ["minmax", "entropy", "percentile"])
@pytest.mark.parametrize("style", STYLES)
def test_what_is_always_zero_does_not_break_the_network(style, calibration, dead, tmp_path):
    made = tmp_path / "int8.onnx"
    quantize_onnx(dead, made, pictures(), QuantizationOptions(style=style, calibration=calibration))
    assert noise_db(made, dead, pictures(seed=9)) > 20


@pytest.fixture(scope="module")
def dead(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = Dead()
    with torch.no_grad():
        network.dead.bias.fill_(-1e3)
        network.alive.weight[:4] = 0
    return export_onnx(network, tmp_path_factory.mktemp("dead") / "net.onnx", input_shape=SHAPE).path


@pytest.fixture(scope="module")
def attention(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(Attention(), tmp_path_factory.mktemp("attention") / "net.onnx")


@pytest.mark.parametrize("style", STYLES)
def test_products_of_activations_softmax_and_norms_stay_float(style, attention, tmp_path):
    made = quantize_onnx(attention, tmp_path / "int8.onnx", pictures(), QuantizationOptions(style=style))
    assert len(made.layers) == 4
    graph = onnx.load(tmp_path / "int8.onnx").graph
    makers = makers_of(graph)
    products = [node for node in graph.node if node.op_type == "MatMul"]
    read = [tuple(makers[name].op_type for name in node.input) for node in products]
    assert sum(pair != ("DequantizeLinear", "DequantizeLinear") for pair in read) == 2
    for node in graph.node:
        if node.op_type in ("Softmax", "LayerNormalization", "Gelu", "Erf"):
            assert "DequantizeLinear" not in {makers[name].op_type for name in node.input if name in makers}
    assert noise_db(tmp_path / "int8.onnx", attention, pictures(seed=9)) > 20


def test_symmetric_products_of_transformers_pass_nvidias_parser(attention, tmp_path):
    quantize_onnx(attention, tmp_path / "int8.onnx", pictures(), QuantizationOptions())
    with parsed_by_tensorrt(tmp_path / "int8.onnx") as (accepted, said):
        assert accepted, said


@pytest.mark.parametrize("style", STYLES)
def test_files_that_take_bytes_are_calibrated_on_bytes(style, tmp_path):
    passes = GraphPasses(normalize=((0.5,) * 3, (0.25,) * 3), input_format=BYTE_IMAGES)
    path = write(Residual(), tmp_path / "net.onnx", passes)
    images = np.random.default_rng(0).integers(0, 256, (16, 12, 12, 3), dtype=np.uint8)
    made = quantize_onnx(path, tmp_path / "int8.onnx", images, QuantizationOptions(style=style))
    assert made.narrow == ()
    assert noise_db(tmp_path / "int8.onnx", path, images) > 25


def test_a_fixed_batch_is_filled(tmp_path):
    path = write(Residual(), tmp_path / "net.onnx", GraphPasses(batch=5))
    quantize_onnx(path, tmp_path / "int8.onnx", pictures(7), QuantizationOptions())
    assert noise_db(tmp_path / "int8.onnx", path, pictures(5, seed=9)) > 25


def test_weights_beside_the_source_are_read(source, tmp_path):
    model = onnx.load(source)
    onnx.save(model, tmp_path / "net.onnx", save_as_external_data=True, size_threshold=0, location="net.data")
    quantize_onnx(tmp_path / "net.onnx", tmp_path / "alone" / "int8.onnx", pictures(), QuantizationOptions())
    assert noise_db(tmp_path / "alone" / "int8.onnx", source, pictures(seed=9)) > 25


class Notes:
    """Keeps what is noted."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.steps = 0.0
        self.total: float | None = None

    @contextmanager
    def task(self, description: str, *, total: float | None = None) -> Iterator["Notes"]:
        self.total = total
        yield self

    def advance(self, steps: float = 1) -> None:
        self.steps += steps

    def describe(self, text: str) -> None:
        pass

    def note(self, text: str) -> None:
        self.notes.append(text)


def quantized(path: Path, folder: Path, progress: Notes) -> Quantized:
    return quantize_onnx(path, folder / "int8.onnx", pictures(20), QuantizationOptions(), progress=progress)


def test_layers_under_the_granule_are_counted_in_one_note(tmp_path):
    progress = Notes()
    made = quantized(write(Residual(width=8), tmp_path / "net.onnx"), tmp_path, progress)
    assert len(made.layers) == 7
    assert len(made.narrow) == 7
    (note,) = progress.notes
    assert note.startswith("int8.onnx: 7 of 7 int8 layers have fewer than 32 channels (fewest: stem with 8)")


def test_wide_networks_are_not_noted_and_the_bar_counts_images(source, tmp_path):
    progress = Notes()
    made = quantized(source, tmp_path, progress)
    assert made.narrow == ()
    assert progress.notes == []
    assert (progress.steps, progress.total) == (20, 20)


def test_nothing_is_printed(source, tmp_path, capfd):
    for calibration in ("minmax", "entropy", "percentile"):
        quantize_onnx(source, tmp_path / "net.onnx", pictures(), QuantizationOptions(calibration=calibration))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (pictures(0), "--data: holds no image to calibrate int8 on"),
        (np.zeros((4, *SHAPE), np.float32), "--data: every calibration image is of one value"),
        (np.ones((4, *SHAPE), np.float32) * np.arange(4)[:, None, None, None], "--data: every calibration image is"),
        (np.full((4, *SHAPE), np.nan, np.float32), "--data: the calibration images hold NaN"),
        (pictures()[:, :, :8], r"--data: .* have shape \(3, 8, 12\), the network takes \(3, 12, 12\); set .* --input"),
        (pictures()[0], r"--data: .* have shape \(12, 12\)"),
    ],
)
def test_images_that_cannot_calibrate_are_refused(images, said, source, tmp_path):
    with pytest.raises(DataError, match=said):
        quantize_onnx(source, tmp_path / "int8.onnx", images, QuantizationOptions())
    assert list(tmp_path.iterdir()) == []


class NoWeights(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x).mean((2, 3))


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x)))


@pytest.mark.parametrize(
    ("module", "ends", "said"), [(NoWeights, True, "another precision"), (Pair, False, "let the ends be quantised")]
)
def test_a_network_without_anything_to_quantise_is_refused(module, ends, said, tmp_path):
    path = export_onnx(module(), tmp_path / "net.onnx", input_shape=SHAPE).path
    with pytest.raises(ModelError, match=f"no convolution or product with stored weights.*{said}"):
        quantize_onnx(path, tmp_path / "int8.onnx", pictures(), QuantizationOptions(ends=ends))
    assert not (tmp_path / "int8.onnx").exists()


def test_two_inputs_are_refused(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("Add", ["a", "b"], ["c"], name="add")],
        "net",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in "ab"],
        [helper.make_tensor_value_info("c", TensorProto.FLOAT, ["batch", 3])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), tmp_path / "net.onnx")
    with pytest.raises(ModelError, match=r"net\.onnx: has 2 inputs"):
        quantize_onnx(tmp_path / "net.onnx", tmp_path / "int8.onnx", pictures(), QuantizationOptions())


@pytest.mark.parametrize("content", [None, b"", b"no network"])
def test_a_source_that_is_no_network_is_refused(content, tmp_path):
    path = tmp_path / "net.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"net\.onnx"):
        quantize_onnx(path, tmp_path / "int8.onnx", pictures(), QuantizationOptions())
    assert not (tmp_path / "int8.onnx").exists()


@pytest.mark.parametrize("name", ["int8.onnx", "network.onnx"])
def test_a_full_disk_leaves_no_file(name, source, tmp_path, monkeypatch):
    def full(self: Path, data: bytes) -> int:
        if self.name == name or self.parent == tmp_path:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(self, data)

    original = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match="No space left"):
        quantize_onnx(source, tmp_path / "int8.onnx", pictures(), QuantizationOptions())
    assert list(tmp_path.iterdir()) == []


def test_the_source_is_left_as_it_was(source, tmp_path):
    before = source.read_bytes()
    quantize_onnx(source, tmp_path / "int8.onnx", pictures(), QuantizationOptions())
    assert source.read_bytes() == before
    assert [entry.name for entry in source.parent.iterdir()] == [source.name]


@pytest.mark.parametrize("options", [{"calibration": "guess"}, {"style": "round"}])
def test_unknown_choices_are_refused(options):
    with pytest.raises(InputError, match=r"guess|round"):
        QuantizationOptions(**options)


def test_engines_for_cpus_get_the_affine_style():
    assert {engine: style_for(engine) for engine in (None, "trt", "trt-rtx", "ort-cuda")} == dict.fromkeys(
        (None, "trt", "trt-rtx", "ort-cuda"), "symmetric"
    )
    assert style_for("ort-cpu") == style_for("openvino") == "affine"
