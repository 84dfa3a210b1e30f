"""The torch engines, on a real bundle and the interface of the ONNX file that would lie beside it."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from prune2deploy.checkpoint.bundle import save_bundle
from prune2deploy.engines.capabilities import DeviceClock, InputCopies, Queue
from prune2deploy.engines.engine import BuildOptions
from prune2deploy.engines.torch.engine import TorchEngine
from prune2deploy.errors import CheckpointError, EngineError, InputError
from prune2deploy.model.spec import ModelSpec, build_model

SHAPE = (3, 16, 16)
EAGER = TorchEngine("eager")
CPU_ONLY = pytest.mark.skipif(torch.cuda.is_available(), reason="says what is refused without a GPU")
_STORED = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return build_model(ModelSpec.parse("resnet20"), seed=1).eval()


@pytest.fixture(scope="module")
def bundle(model: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "dense"
    save_bundle(path, model, spec=ModelSpec.parse("resnet20"), plan=None, input_shape=SHAPE)
    return path


@pytest.fixture
def onnx_file(tmp_path: Path) -> Callable[..., Path]:
    """A file that states an interface; its one node is not what the bundle computes, and is never run."""

    def write(*, stored: str = "fp32", ends: str = "fp32", batch: int | str = "batch", **metadata: str) -> Path:
        weight = numpy_helper.from_array(np.zeros((3072, 10), dtype=np.float32), "weight")
        weight.data_type = _STORED[stored]
        graph = helper.make_graph(
            [helper.make_node("Flatten", ["input"], ["flat"]), helper.make_node("MatMul", ["flat", "weight"], ["out"])],
            "interface",
            [helper.make_tensor_value_info("input", _STORED[ends], [batch, *SHAPE])],
            [helper.make_tensor_value_info("output", _STORED[ends], [batch, 10])],
            [weight],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
        helper.set_model_props(model, metadata)
        path = tmp_path / "network.onnx"
        path.write_bytes(model.SerializeToString())
        return path

    return write


def images(batch: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, *SHAPE)).astype(np.float32)


def outputs_of(model: torch.nn.Module, inputs: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(inputs)).numpy()


def test_it_computes_what_the_module_computes_at_every_batch(onnx_file, bundle, model) -> None:
    built = EAGER.build(onnx_file(), BuildOptions(bundle=bundle))
    for batch in (1, 4, 4, 1):
        inputs = images(batch, seed=batch)
        built.bind({"input": inputs})
        built.run()
        np.testing.assert_allclose(built.read()["output"], outputs_of(model, inputs), rtol=1e-4, atol=1e-5)
    built.close()


def test_arrays_of_the_caller_and_outputs_that_were_read_are_not_shared(onnx_file, bundle, model) -> None:
    built = EAGER.build(onnx_file(), BuildOptions(bundle=bundle))
    inputs = images(2, seed=1)
    built.bind({"input": inputs})
    inputs[:] = 0
    built.run()
    first = built.read()["output"]
    np.testing.assert_allclose(first, outputs_of(model, images(2, seed=1)), rtol=1e-4, atol=1e-5)
    kept = first.copy()
    built.bind({"input": images(2, seed=2)})
    built.run()
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_allclose(built.read()["output"], outputs_of(model, images(2, seed=2)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("precision", "gate"), [("fp16", 1e-2), ("bf16", 3e-2)])
@pytest.mark.parametrize("ends", ["fp32", "same"])
def test_half_precisions_compute_in_half_and_give_what_the_file_gives(
    onnx_file, bundle, model, precision: str, gate: float, ends: str
) -> None:
    path = onnx_file(stored=precision, ends=precision if ends == "same" else "fp32")
    built = EAGER.build(path, BuildOptions(precision=precision, bundle=bundle))
    dtype = np.dtype(built.inputs[0].dtype)
    built.bind({"input": images(4).astype(dtype)})
    built.run()
    outputs = built.read()["output"]
    assert outputs.dtype == dtype
    expected = outputs_of(model, images(4))
    error = np.linalg.norm(outputs.astype(np.float64) - expected) / np.linalg.norm(expected)
    assert 1e-5 < error < gate
    assert built.inspect()["census"]["layers"] == {precision: 22}


def test_the_census_counts_operators_as_they_run(onnx_file, bundle) -> None:
    built = EAGER.build(onnx_file(), BuildOptions(bundle=bundle, threads=1))
    built.bind({"input": images(1)})
    told = built.inspect()
    assert told["census"] == {"layers": {"fp32": 22}, "flops": {"fp32": 1.0}, "origin": "engine"}
    assert (told["mode"], told["threads"]) == ("eager", 1)


@pytest.mark.slow
def test_the_compiled_module_computes_the_same_for_each_shape_and_engine(onnx_file, bundle, model) -> None:
    engine = TorchEngine("compile")
    if not engine.availability().runs:
        pytest.skip(str(engine.availability().reason))
    for _ in range(2):
        built = engine.build(onnx_file(), BuildOptions(bundle=bundle))
        for batch in (1, 3):
            inputs = images(batch, seed=batch)
            built.bind({"input": inputs})
            built.run()
            np.testing.assert_allclose(built.read()["output"], outputs_of(model, inputs), rtol=1e-4, atol=1e-4)
        built.close()


def test_a_compiler_that_is_missing_is_told_before_anything_is_compiled(
    monkeypatch, tmp_path: Path, onnx_file, bundle
) -> None:
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    monkeypatch.setattr("shutil.which", lambda name: None)
    found = TorchEngine("compile").availability()
    assert not found.runs
    assert found.reason is not None
    assert found.reason.startswith("torch.compile finds no ")
    with pytest.raises(EngineError, match=r"torch-compile: torch.compile finds no .*compiler.*; install"):
        TorchEngine("compile").build(onnx_file(), BuildOptions(bundle=bundle))


def test_headers_of_python_that_are_missing_are_told(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    found = TorchEngine("compile").availability()
    assert not found.runs
    assert "Python.h" in str(found.reason)
    (tmp_path / "Python.h").touch()
    assert "Python.h" not in str(TorchEngine("compile").availability().reason)


def test_a_bare_onnx_file_is_refused_with_what_to_do(onnx_file) -> None:
    with pytest.raises(
        EngineError, match="torch runs bundles, and no bundle is known for this ONNX file; bench the run"
    ):
        EAGER.build(onnx_file(), BuildOptions())


@pytest.mark.parametrize(
    ("key", "value", "option"),
    [
        ("normalize", "[[0.5], [0.2]]", "--normalize"),
        ("softmax", "true", "--softmax"),
        ("top_k", "5", "--top-k"),
        ("input_format", '"uint8-nhwc"', "--input"),
    ],
)
def test_a_file_that_does_more_than_the_module_is_refused(onnx_file, bundle, key: str, value: str, option: str) -> None:
    with pytest.raises(InputError, match=f"was exported with {option}, .*; export again without {option}, or"):
        EAGER.build(onnx_file(**{key: value}), BuildOptions(bundle=bundle))


def test_passes_that_were_not_asked_for_are_no_hindrance(onnx_file, bundle) -> None:
    path = onnx_file(normalize="null", softmax="false", top_k="null", input_format='"nchw"')
    EAGER.build(path, BuildOptions(bundle=bundle)).close()


def test_a_file_of_other_weights_is_refused(onnx_file, bundle) -> None:
    with pytest.raises(InputError, match=r"was exported from other weights than .*; export it again"):
        EAGER.build(onnx_file(weights_sha256="0" * 64), BuildOptions(bundle=bundle))


def test_a_damaged_bundle_is_named(onnx_file, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere: does not exist"):
        EAGER.build(onnx_file(), BuildOptions(bundle=tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"input": images(3)}, "input is 3x3x16x16 float32, not 2x3x16x16 float32"),
        ({"input": images(2).astype(np.float64)}, "float64"),
        ({"other": images(2)}, "input input is missing"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(onnx_file, bundle, arrays: dict, said: str) -> None:
    built = EAGER.build(onnx_file(batch=2), BuildOptions(bundle=bundle))
    with pytest.raises(InputError, match=said):
        built.bind(arrays)


def test_a_layer_that_fails_is_named_in_one_line(onnx_file, bundle) -> None:
    built = EAGER.build(onnx_file(), BuildOptions(bundle=bundle))
    built._model.layer2[1].conv1 = torch.nn.Conv2d(7, 7, 3)
    with pytest.raises(
        EngineError, match=r"torch cannot run it in fp32 on \w+ in layer 'layer2.1.conv1' \(Given groups"
    ):
        built.bind({"input": images(1)})


def test_closing_twice_is_harmless_and_a_closed_engine_says_so(onnx_file, bundle) -> None:
    built = EAGER.build(onnx_file(), BuildOptions(bundle=bundle))
    built.close()
    built.close()
    with pytest.raises(EngineError, match="closed"):
        built.bind({"input": images(1)})


@CPU_ONLY
def test_what_needs_a_gpu_says_so(onnx_file, bundle) -> None:
    found = TorchEngine("cuda-graph").availability()
    assert not found.runs
    with pytest.raises(EngineError, match="torch-cuda-graph: torch sees no GPU"):
        TorchEngine("cuda-graph").build(onnx_file(), BuildOptions(bundle=bundle))
    with pytest.raises(EngineError, match="tf32 is a way of GPUs"):
        EAGER.build(onnx_file(), BuildOptions(precision="tf32", bundle=bundle))


def test_int8_and_stored_engines_are_refused(onnx_file, bundle, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="torch: has no precision int8"):
        EAGER.build(onnx_file(), BuildOptions(precision="int8", bundle=bundle))
    with pytest.raises(EngineError, match="has no stored engine"):
        EAGER.build_file(onnx_file(), tmp_path / "net.engine", BuildOptions(bundle=bundle))


def test_a_torch_that_does_not_load_is_told_and_not_raised() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from prune2deploy.engines.torch import engine\n"
        "engine.find_spec = lambda name: object()\n"
        "found = engine.TorchEngine('eager').availability()\n"
        "print(found.runs, found.reason)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("False torch cannot be loaded (")


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["eager", "compile", "cuda-graph"])
@pytest.mark.parametrize(("precision", "gate"), [("fp32", 1e-4), ("tf32", 5e-3), ("fp16", 1e-2), ("bf16", 3e-2)])
def test_on_a_gpu_every_mode_and_precision_is_within_its_gate(
    onnx_file, bundle, model, mode, precision: str, gate: float
) -> None:
    stored = "fp32" if precision == "tf32" else precision
    built = TorchEngine(mode).build(onnx_file(stored=stored), BuildOptions(precision=precision, bundle=bundle))
    for batch in (1, 4, 1):
        for seed in (1, 2):
            inputs = images(batch, seed=seed)
            built.bind({"input": inputs})
            built.run()
            expected = outputs_of(model, inputs)
            assert np.linalg.norm(built.read()["output"] - expected) < gate * np.linalg.norm(expected)
    told = built.inspect()
    assert told["cuda_graph"] == (mode == "cuda-graph")
    assert told["census"]["layers"] == {stored: 22}
    built.close()


@CPU_ONLY
def test_on_the_cpu_there_is_no_device_clock_no_copy_and_no_queue(onnx_file, bundle) -> None:
    built = EAGER.build(onnx_file(), BuildOptions(bundle=bundle))
    assert not isinstance(built, DeviceClock)
    assert not isinstance(built, InputCopies)
    assert not isinstance(built, Queue)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["eager", "cuda-graph"])
def test_on_a_gpu_device_time_copies_and_a_queue_leave_the_engine_as_it_was(onnx_file, bundle, model, mode) -> None:
    built = TorchEngine(mode).build(onnx_file(), BuildOptions(bundle=bundle))
    assert isinstance(built, DeviceClock)
    assert isinstance(built, InputCopies)
    assert isinstance(built, Queue)
    inputs = images(4)
    built.bind({"input": inputs})
    times = built.time_on_device(50)
    assert len(times) == 50
    assert all(0 < time < 1e9 for time in times)
    assert len(built.time_copies(5)) == 5
    built.run_queued(200)
    np.testing.assert_allclose(built.read()["output"], outputs_of(model, inputs), rtol=1e-3, atol=1e-4)
