"""The TensorRT example as a program, on an engine that the product built. With a GPU it runs it too."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from prune2deploy.engines.cuda import CudaDevice, find_device
from prune2deploy.engines.engine import BuildOptions
from prune2deploy.engines.registry import engine_named

pytest.importorskip("tensorrt_rtx")

EXAMPLE = Path(__file__).parents[2] / "examples" / "serve_tensorrt.py"
HAS_GPU = isinstance(find_device(), CudaDevice)
CLASSES = ("dark", "bright")


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """Tells bright images from dark ones: a softmax over (0.5 - mean, mean - 0.5), times eight."""
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["image", "axes"], ["mean"], keepdims=0),
            helper.make_node("Sub", ["mean", "half"], ["centred"]),
            helper.make_node("Mul", ["centred", "signs"], ["scores"]),
            helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
        ],
        "brightness",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 2])],
        [
            numpy_helper.from_array(np.array([2, 3], np.int64), "axes"),
            numpy_helper.from_array(np.array([[0.5]], np.float32), "half"),
            numpy_helper.from_array(np.array([[-8, 8]], np.float32), "signs"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {"class_names": json.dumps(CLASSES)})
    onnx.save(model, tmp_path / "brightness.onnx")
    return tmp_path / "brightness.onnx"


@pytest.fixture
def engine(network: Path, tmp_path: Path) -> Path:
    path = tmp_path / "brightness.engine"
    engine_named("trt-rtx").build_file(network, path, BuildOptions(batches=(1,)))
    return path


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.fromarray(np.full((8, 8), 230, np.uint8)).save(tmp_path / "bright.png")
    return tmp_path / "bright.png"


def example(*arguments: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLE), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def refusal(*arguments: Path) -> str:
    done = example(*arguments)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    return line


@pytest.mark.skipif(HAS_GPU, reason="this machine has a GPU")
def test_without_a_gpu_it_says_so_in_one_line(engine: Path, picture: Path) -> None:
    assert refusal(engine, picture).startswith("CUDA failed: ")


def test_a_damaged_engine_and_one_of_another_version_are_refused_unloaded(engine: Path, picture: Path) -> None:
    sidecar = engine.with_name(engine.name + ".json")
    record = json.loads(sidecar.read_text())
    sidecar.write_text(json.dumps(record | {"library_version": "0.1"}))
    assert "was built by 0.1, here is" in refusal(engine, picture)
    engine.write_bytes(engine.read_bytes()[:-1])
    assert "is damaged; build it again" in refusal(engine, picture)


def test_without_arguments_it_says_how_to_use_it() -> None:
    done = example()
    assert done.returncode == 1
    assert "python serve_tensorrt.py" in done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["trt", "trt-rtx"])
def test_on_a_gpu_it_names_the_class(network: Path, picture: Path, tmp_path: Path, name: str) -> None:
    maker = engine_named(name)
    if not maker.availability().runs:
        pytest.skip(f"{name}: {maker.availability().reason}")
    path = tmp_path / "on-gpu.engine"
    maker.build_file(network, path, BuildOptions(batches=(1,)))
    done = example(path, picture)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.split() == ["99.8%", "bright"]
    assert second.split() == ["0.2%", "dark"]
