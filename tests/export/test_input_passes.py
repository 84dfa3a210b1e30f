"""Images as cameras give them: what the graph makes of bytes is what torch makes of them, on every engine at hand."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch.nn import functional

from prune2deploy.engines.engine import BuildOptions
from prune2deploy.engines.registry import engine_named
from prune2deploy.errors import InputError, ModelError
from prune2deploy.export.external_data import write_onnx
from prune2deploy.export.passes.file_inputs import file_inputs, file_shape, network_inputs
from prune2deploy.export.passes.graph import BYTE_IMAGES, GraphPasses, apply_passes
from prune2deploy.export.passes.resizing import Resizing

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
TARGET = (20, 24)
SIZES = [None, (20, 24), (41, 50), (20, 100), (10, 12), (33, 47), (61, 23), (9, 97)]


def passes_for(size: tuple[int, int] | None) -> GraphPasses:
    return GraphPasses(normalize=(MEAN, STD), input_format=BYTE_IMAGES, source_size=size)


def pictures(count: int, passes: GraphPasses) -> np.ndarray:
    shape = (count, *file_shape((3, *TARGET), passes))
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def exported(folder: Path, passes: GraphPasses) -> Path:
    """A network that gives what it is given, so that the preprocessing alone is seen."""
    shape = ["s77", 3, *TARGET]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"], name="shown")],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path = folder / "net.onnx"
    write_onnx(apply_passes(model, passes), path, external=False)
    onnx.checker.check_model(str(path), full_check=True)
    return path


def run(path: Path, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"input": images})[0]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_graph_makes_of_bytes_what_torch_makes_of_them(size: tuple[int, int] | None, tmp_path: Path) -> None:
    passes = passes_for(size)
    images = pictures(3, passes)
    made = run(exported(tmp_path, passes), images)
    expected = network_inputs(images, passes, TARGET).numpy()
    assert made.shape == (3, 3, *TARGET)
    np.testing.assert_allclose(made, expected, atol=2e-5)


def test_bytes_of_the_networks_own_size_are_only_scaled_and_normalised(tmp_path: Path) -> None:
    path = exported(tmp_path, passes_for(None))
    images = pictures(2, passes_for(None))
    columns = (np.float64(values).reshape(1, 3, 1, 1) for values in (MEAN, STD))
    mean, std = columns
    np.testing.assert_allclose(run(path, images), (images.transpose(0, 3, 1, 2) / 255 - mean) / std, atol=1e-5)
    graph = onnx.load(path).graph
    names = ["preprocess/cast", "preprocess/transpose", "preprocess/subtract", "preprocess/multiply"]
    assert [node.name for node in graph.node][: len(names)] == names
    tensor = graph.input[0].type.tensor_type
    assert tensor.elem_type == onnx.TensorProto.UINT8
    assert [size.dim_param or size.dim_value for size in tensor.shape.dim] == ["batch", *TARGET, 3]


@pytest.mark.parametrize("engine", ["openvino", "trt-rtx"])
@pytest.mark.parametrize("size", [None, (41, 50), (10, 12)], ids=str)
def test_other_engines_take_these_graphs(engine: str, size: tuple[int, int] | None, tmp_path: Path) -> None:
    passes = passes_for(size)
    path = exported(tmp_path, passes)
    if engine == "openvino":
        openvino = pytest.importorskip("openvino")
        images = pictures(2, passes)
        made = openvino.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(images)[0]
        np.testing.assert_allclose(made, network_inputs(images, passes, TARGET).numpy(), atol=2e-5)
    else:
        pytest.importorskip("tensorrt_rtx")
        summary = engine_named(engine).build_file(path, tmp_path / "net.engine", BuildOptions(batches=(2,)))
        assert summary.bytes_total > 0


@pytest.mark.parametrize("size", [(60, 72), (61, 70), (100, 49)], ids=str)
def test_shrinking_is_nearer_to_a_filtered_image_than_plain_interpolation(size: tuple[int, int]) -> None:
    images = torch.from_numpy(np.random.default_rng(1).random((4, 3, *size), dtype=np.float32))
    wanted = functional.interpolate(images, TARGET, mode="bilinear", antialias=True)
    plain = functional.interpolate(images, TARGET, mode="bilinear")
    resized = Resizing(source=size, target=TARGET).apply(images)
    assert (resized - wanted).square().mean() < 0.5 * (plain - wanted).square().mean()


def test_an_even_image_stays_even_at_its_borders() -> None:
    resizing = Resizing(source=(61, 83), target=TARGET)
    assert resizing.pads == (1, 0, 1, 1)
    np.testing.assert_allclose(resizing.apply(torch.full((1, 3, 61, 83), 7.0)).numpy(), 7.0, rtol=1e-6)


def test_images_come_back_as_the_network_saw_them_but_for_rounding() -> None:
    normalised = (torch.rand(5, 3, *TARGET) - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    passes = passes_for(None)
    images = file_inputs(normalised.numpy(), passes)
    assert images.dtype == np.uint8
    assert images.shape == (5, *TARGET, 3)
    rounding = 0.5 / 255 / min(STD) + 1e-5
    np.testing.assert_allclose(network_inputs(images, passes, TARGET).numpy(), normalised.numpy(), atol=rounding)


def test_images_enlarged_for_a_file_come_back_sharp() -> None:
    normalised = (torch.rand(5, 3, *TARGET) - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    passes = passes_for((3 * TARGET[0], 4 * TARGET[1]))
    seen = network_inputs(file_inputs(normalised.numpy(), passes), passes, TARGET)
    np.testing.assert_allclose(seen.numpy(), normalised.numpy(), atol=0.5 / 255 / min(STD) + 1e-5)


def test_what_bytes_cannot_hold_is_cut_off_and_not_wrapped() -> None:
    passes = GraphPasses(normalize=((0.5,), (0.5,)), input_format=BYTE_IMAGES)
    images = file_inputs(np.float32([[[[-9.0, 0.0, 9.0]]]]), passes)
    assert images.ravel().tolist() == [0, 128, 255]


def test_images_for_files_that_resize_have_the_size_of_these_files() -> None:
    passes = passes_for((30, 50))
    assert file_shape((3, *TARGET), passes) == (30, 50, 3)
    assert file_inputs(np.zeros((2, 3, *TARGET), np.float32), passes).shape == (2, 30, 50, 3)


def test_float_files_take_images_as_before() -> None:
    images = np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(np.float32)
    assert file_inputs(images, GraphPasses()) is images
    plain = file_inputs(images, GraphPasses(normalize=(MEAN, STD)))
    np.testing.assert_allclose(plain[:, 1], images[:, 1] * STD[1] + MEAN[1], rtol=1e-6)


def test_the_same_file_is_written_twice(tmp_path: Path) -> None:
    passes = passes_for((41, 50))
    assert exported(tmp_path, passes).read_bytes() == exported(tmp_path, passes).read_bytes()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"input_format": BYTE_IMAGES}, "needs mean and standard deviation"),
        ({"input_format": "nhwc"}, "'nhwc' is no format of images; choose from nchw, uint8-nhwc"),
        ({"source_size": (8, 8)}, "--input: images of size"),
        ({"input_format": BYTE_IMAGES, "normalize": (MEAN, STD), "source_size": (0, 8)}, "--input: images of size"),
        ({"batch": 0}, "--batch 0: must be at least 1"),
        ({"top_k": -1}, "--top-k -1: must be at least 1"),
    ],
)
def test_passes_that_cannot_be_made_are_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        GraphPasses(**values)


def test_constants_must_fit_the_channels(tmp_path: Path) -> None:
    passes = GraphPasses(normalize=((0.5,), (0.5,)), input_format=BYTE_IMAGES)
    with pytest.raises(ModelError, match="--input uint8-nhwc: 1 means were given and the input has 3 channels"):
        exported(tmp_path, passes)
    assert list(tmp_path.iterdir()) == []
