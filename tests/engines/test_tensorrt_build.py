"""Real engines, built by TensorRT for RTX on a machine that need not have a GPU."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

from prune2deploy.engines.cuda import CudaDevice, NoCudaDevice, find_device
from prune2deploy.engines.engine import BuildOptions
from prune2deploy.engines.onnx_file import read_onnx_file
from prune2deploy.engines.tensorrt import family as tensorrt_family
from prune2deploy.engines.tensorrt.engine_file import read_engine, sidecar_path
from prune2deploy.engines.tensorrt.family import TensorRTEngine, TensorRTRTXEngine
from prune2deploy.errors import EngineError, InputError

library = pytest.importorskip("tensorrt_rtx")

ENGINE = TensorRTRTXEngine()
SHAPE = (3, 8, 8)
without_gpu = pytest.mark.skipif(not isinstance(find_device(), NoCudaDevice), reason="this machine has a GPU")


@pytest.fixture
def files(tmp_path_factory: pytest.TempPathFactory, write_network) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("onnx")
    return {
        "dynamic": write_network(str(folder / "dynamic.onnx")),
        "static": write_network(str(folder / "static.onnx"), batch=1),
        "half": write_network(str(folder / "half.onnx"), precision="fp16"),
    }


@pytest.fixture
def stored(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("engines") / "dynamic.engine"
    ENGINE.build_file(files["dynamic"], path, BuildOptions(batches=(32, 1)))
    return path


def read(path: Path, **expected: object) -> object:
    options = {"engine": "trt-rtx", "library_version": library.__version__, "device": None} | expected
    return read_engine(path, **options)


def test_a_dynamic_batch_gets_a_profile_for_each_batch_size(stored: Path) -> None:
    _, record = read(stored)
    assert record.batches == (1, 32)
    assert record.profiles == tuple({"input": ((batch, *SHAPE),) * 3} for batch in (1, 32))


def test_a_static_batch_needs_no_profile(files: dict[str, Path], tmp_path: Path) -> None:
    summary = ENGINE.build_file(files["static"], tmp_path / "static.engine", BuildOptions(batches=(1,)))
    assert summary.bytes_total == (tmp_path / "static.engine").stat().st_size > 10_000
    _, record = read(tmp_path / "static.engine")
    assert (record.batches, record.profiles) == ((1,), ())


def test_a_static_batch_cannot_be_built_for_another(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="fixed batch of 1, and 1, 8 is asked for"):
        ENGINE.build_file(files["static"], tmp_path / "static.engine", BuildOptions(batches=(1, 8)))
    assert list(tmp_path.iterdir()) == []


def test_the_sidecar_says_what_the_engine_is(stored: Path, files: dict[str, Path]) -> None:
    document = json.loads(sidecar_path(stored).read_text())
    assert document["schema_version"] == 2
    assert document["engine"] == "trt-rtx"
    assert document["precision"] == "fp32"
    assert document["onnx_sha256"] == read_onnx_file(files["dynamic"]).sha256
    assert document["library_version"] == library.__version__
    assert document["device"] is None
    assert document["build_seconds"] > 0
    assert document["details"]["layers_by_type"]["CONVOLUTION"] == 1
    assert document["details"]["outputs_by_type"]["FLOAT"] > 4
    census = document["details"]["census"]
    assert (census["layers"], census["flops"]) == ({"fp32": 2}, {"fp32": 1.0})


def quantised(path: Path, target: Path, *, symmetric: bool) -> Path:
    images = np.random.default_rng(5).standard_normal((32, *SHAPE)).astype(np.float32)

    class Images(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter([{"input": images}])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.batches, None)

    options = {"ActivationSymmetric": symmetric, "WeightSymmetric": True, "QuantizeBias": False}
    kinds = {"activation_type": QuantType.QInt8, "weight_type": QuantType.QInt8}
    quantize_static(path, target, Images(), per_channel=True, extra_options=options, **kinds)
    return target


def test_a_symmetric_int8_file_gives_an_engine_that_counts_its_int8_layers(write_network, tmp_path: Path) -> None:
    path = quantised(write_network(), tmp_path / "int8.onnx", symmetric=True)
    summary = ENGINE.build_file(path, tmp_path / "int8.engine", BuildOptions(precision="int8"))
    assert summary.details["layers_by_type"]["QUANTIZE"] > 0
    assert summary.details["census"]["layers"]["int8"] > 0


def test_an_int8_file_made_for_cpus_is_refused_with_how_to_make_one(write_network, tmp_path: Path) -> None:
    path = quantised(write_network(), tmp_path / "int8.onnx", symmetric=False)
    with pytest.raises(EngineError, match=r"operator QuantizeLinear \(node '.*zero point.*export it with --engine trt"):
        ENGINE.build_file(path, tmp_path / "int8.engine", BuildOptions(precision="int8"))


def test_a_half_precision_file_gives_a_strongly_typed_half_precision_engine(
    files: dict[str, Path], tmp_path: Path
) -> None:
    summary = ENGINE.build_file(files["half"], tmp_path / "half.engine", BuildOptions(precision="fp16"))
    types = summary.details["outputs_by_type"]
    assert types["HALF"] >= summary.details["layers_by_type"]["CONVOLUTION"]
    assert types["HALF"] > types.get("FLOAT", 0)


def test_a_float_file_is_not_built_under_the_name_of_another_precision(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="its weights are fp32, so it cannot be run as fp16"):
        ENGINE.build_file(files["dynamic"], tmp_path / "wrong.engine", BuildOptions(precision="fp16"))
    with pytest.raises(InputError, match="its weights are fp32, so it cannot be run as int8"):
        ENGINE.build_file(files["dynamic"], tmp_path / "wrong.engine", BuildOptions(precision="int8"))
    assert list(tmp_path.iterdir()) == []


def test_tf32_is_a_build_of_its_own(files: dict[str, Path], stored: Path, tmp_path: Path) -> None:
    ENGINE.build_file(files["dynamic"], tmp_path / "tf32.engine", BuildOptions(precision="tf32", batches=(1, 32)))
    _, record = read(tmp_path / "tf32.engine", precision="tf32")
    assert record.engine_sha256 != read(stored)[1].engine_sha256


def test_bfloat16_networks_are_built(write_nodes, tmp_path: Path) -> None:
    path = write_nodes([helper.make_node("Relu", ["input"], ["output"], name="r")], element=TensorProto.BFLOAT16)
    summary = ENGINE.build_file(path, tmp_path / "bf16.engine", BuildOptions(precision="bf16"))
    assert set(summary.details["outputs_by_type"]) == {"BF16"}


@pytest.mark.parametrize(
    ("node", "said"),
    [
        ({"op_type": "BitShift", "name": "shift", "direction": "LEFT"}, r"operator BitShift \(node 'shift'\)"),
        (
            {"op_type": "Foo", "name": "my_foo", "domain": "custom"},
            r"operator Foo \(node 'my_foo'\).*[Pp]lugin not found",
        ),
    ],
)
def test_an_operator_it_lacks_is_named_with_its_node(write_nodes, node: dict, said: str, tmp_path: Path) -> None:
    inputs = ["input", "input"] if node["op_type"] == "BitShift" else ["input"]
    path = write_nodes([helper.make_node(inputs=inputs, outputs=["output"], **node)])
    with pytest.raises(EngineError, match=said) as caught:
        ENGINE.build_file(path, tmp_path / "out" / "net.engine", BuildOptions())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_weights_beside_the_file_are_built_in_and_missed_when_they_are_gone(write_network, tmp_path: Path) -> None:
    path = tmp_path / "beside" / "net.onnx"
    path.parent.mkdir()
    onnx.save_model(onnx.load(write_network()), path, save_as_external_data=True, location="net.data", size_threshold=0)
    first = ENGINE.build_file(path, tmp_path / "net.engine", BuildOptions())
    assert first.details["layers_by_type"]["CONVOLUTION"] == 1
    data = path.with_name("net.data")
    content = data.read_bytes()
    # Other weights of the same size are another network, though the file itself is the same.
    data.write_bytes(bytes(len(content)))
    assert not ENGINE.build_file(path, tmp_path / "net.engine", BuildOptions()).reused
    data.write_bytes(content[:-4])
    with pytest.raises(InputError, match=r"net\.data is truncated"):
        ENGINE.build_file(path, tmp_path / "other.engine", BuildOptions())
    data.unlink()
    with pytest.raises(InputError, match=r"its weights lie in net\.data, which is not there"):
        ENGINE.build_file(path, tmp_path / "other.engine", BuildOptions())
    assert not (tmp_path / "other.engine").exists()


def test_a_dynamic_image_size_is_refused(tmp_path: Path) -> None:
    shape = ["batch", 3, "height", "width"]
    graph = helper.make_graph(
        [helper.make_node("Relu", ["input"], ["output"])],
        "net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, shape)],
    )
    path = tmp_path / "any-size.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]).SerializeToString())
    with pytest.raises(EngineError, match="needs all sizes but the batch fixed"):
        ENGINE.build_file(path, tmp_path / "net.engine", BuildOptions())


def test_a_broken_network_is_bad_input_and_nothing_is_printed(
    write_nodes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_nodes([helper.make_node("Relu", ["nowhere"], ["output"], name="r")])
    with pytest.raises((InputError, EngineError)) as caught:
        ENGINE.build_file(path, tmp_path / "net.engine", BuildOptions())
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_damaged_engine_is_refused_before_the_library_sees_it(stored: Path, tmp_path: Path) -> None:
    content = bytearray(stored.read_bytes())
    content[len(content) // 2] ^= 1
    copy = tmp_path / "dynamic.engine"
    copy.write_bytes(content)
    sidecar_path(copy).write_bytes(sidecar_path(stored).read_bytes())
    with pytest.raises(InputError, match="is damaged"):
        read(copy)
    copy.write_bytes(content[:1000])
    with pytest.raises(InputError, match="is damaged"):
        read(copy)


@pytest.mark.parametrize(
    ("expected", "error", "said"),
    [
        ({"library_version": "0.1"}, EngineError, "here is 0.1"),
        ({"engine": "trt"}, EngineError, "was built by trt-rtx, not trt"),
        ({"onnx_sha256": "0" * 64}, InputError, "built from another ONNX file"),
        ({"precision": "fp16"}, InputError, "was built as fp32, not fp16"),
        ({"batches": (1, 8)}, EngineError, "was built for batches of 1, 32, and 8 is asked for"),
    ],
)
def test_a_foreign_engine_is_refused(stored: Path, expected: dict, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        read(stored, **expected)


def test_an_engine_of_another_gpu_is_refused(stored: Path, tmp_path: Path) -> None:
    copy = tmp_path / "dynamic.engine"
    copy.write_bytes(stored.read_bytes())
    document = json.loads(sidecar_path(stored).read_text()) | {"device": "NVIDIA A100 sm_80"}
    sidecar_path(copy).write_text(json.dumps(document))
    with pytest.raises(EngineError, match="was built for NVIDIA A100 sm_80, here is NVIDIA L4 sm_89"):
        read(copy, device="NVIDIA L4 sm_89")
    with pytest.raises(EngineError, match="here is no GPU"):
        read(copy)


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", '{"schema_version": 1}', '{"schema_version": 2}', '{"schema_version": 3}']
)
def test_a_damaged_sidecar_is_refused(stored: Path, content: str, tmp_path: Path) -> None:
    copy = tmp_path / "dynamic.engine"
    copy.write_bytes(stored.read_bytes())
    with pytest.raises(InputError):
        read(copy)
    sidecar_path(copy).write_text(content)
    with pytest.raises(InputError):
        read(copy)


@without_gpu
def test_without_a_gpu_it_builds_and_does_not_run(files: dict[str, Path], stored: Path) -> None:
    found = ENGINE.availability()
    assert (found.runs, found.builds, found.version) == (False, True, library.__version__)
    assert found.reason
    with pytest.raises(EngineError, match="--engine ort-cpu"):
        ENGINE.build(files["dynamic"], BuildOptions())
    with pytest.raises(EngineError, match="--engine ort-cpu"):
        ENGINE.load_file(files["dynamic"], stored, BuildOptions(batches=(1, 32)))


@pytest.mark.parametrize(("capability", "runs"), [((9, 0), False), ((8, 9), True), ((12, 0), True), ((13, 0), True)])
def test_a_gpu_without_kernels_can_build_only(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], runs: bool
) -> None:
    gpu = CudaDevice(name="NVIDIA H200", compute_capability=capability, driver_version=13000)
    monkeypatch.setattr(tensorrt_family, "find_device", lambda: gpu)
    found = ENGINE.availability()
    assert (found.runs, found.builds) == (runs, True)
    assert runs or found.reason == "has nothing for NVIDIA H200 sm_90"


def test_tensorrt_says_how_to_install_it(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TensorRTEngine, "module", "no_such_tensorrt")
    engine = TensorRTEngine()
    found = engine.availability()
    assert (found.runs, found.builds) == (False, False)
    assert "prune2deploy[trt]" in (found.hint or "")
    for attempt in (
        lambda: engine.build(files["dynamic"], BuildOptions()),
        lambda: engine.build_file(files["dynamic"], tmp_path / "net.engine", BuildOptions()),
    ):
        with pytest.raises(EngineError, match=r"not installed; pip install 'prune2deploy\[trt\]'"):
            attempt()
