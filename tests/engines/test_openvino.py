"""OpenVINO on the CPU, on real compiled networks."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from prune2deploy.engines.capabilities import Queue
from prune2deploy.engines.engine import BuildOptions
from prune2deploy.engines.openvino import OpenVINOEngine
from prune2deploy.engines.openvino_requests import outputs_of
from prune2deploy.errors import EngineError, InputError, ParityError

pytest.importorskip("openvino")

ENGINE = OpenVINOEngine()


def images(batch: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, 3, 8, 8)).astype(np.float32)


def test_it_says_its_version_and_what_this_cpu_computes_in() -> None:
    found = ENGINE.availability()
    assert found.runs
    assert found.version
    assert found.device is not None
    assert found.device.startswith("CPU (fp32")


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, write_network) -> None:
    monkeypatch.setattr("prune2deploy.engines.openvino.find_spec", lambda name: None)
    found = ENGINE.availability()
    assert not found.runs
    assert found.hint == "pip install 'prune2deploy[openvino]'"
    with pytest.raises(EngineError, match="openvino: openvino is not installed; pip install"):
        ENGINE.build(write_network(), BuildOptions())


def test_a_package_that_does_not_load_is_told_and_not_raised() -> None:
    code = (
        "import sys; sys.modules['openvino'] = None\n"
        "from prune2deploy.engines import openvino\n"
        "openvino.find_spec = lambda name: object()\n"
        "found = openvino.OpenVINOEngine().availability()\n"
        "print(found.runs, found.reason)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("False openvino cannot be loaded (")


def test_importing_it_reports_nothing_to_its_makers() -> None:
    code = (
        "import sys; from prune2deploy.engines.openvino import OpenVINOEngine; OpenVINOEngine().availability();"
        "print('openvino' in sys.modules, any(name.startswith('openvino_telemetry') for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


@pytest.mark.parametrize("batch_in_file", ["batch", 4])
def test_it_computes_the_network_at_every_batch_that_is_bound(write_network, reference, batch_in_file) -> None:
    built = ENGINE.build(write_network(batch=batch_in_file), BuildOptions(batches=(4,)))
    for batch in (1, 4, 1) if batch_in_file == "batch" else (4,):
        inputs = images(batch, seed=batch)
        built.bind({"input": inputs})
        built.run()
        np.testing.assert_allclose(built.read()["output"], reference(inputs), rtol=1e-4, atol=1e-5)
    built.close()


def test_arrays_of_the_caller_and_outputs_that_were_read_are_not_shared(write_network, reference) -> None:
    built = ENGINE.build(write_network(), BuildOptions())
    inputs = images(2, seed=1)
    built.bind({"input": inputs})
    inputs[:] = 0
    built.run()
    first = built.read()["output"]
    kept = first.copy()
    np.testing.assert_allclose(first, reference(images(2, seed=1)), rtol=1e-4, atol=1e-5)
    built.bind({"input": images(2, seed=2)})
    built.run()
    np.testing.assert_array_equal(first, kept)


def test_fp32_files_compute_in_fp32_even_where_the_cpu_prefers_another_type(write_network) -> None:
    told = ENGINE.build(write_network(), BuildOptions(threads=1)).inspect()
    assert told["census"] == {"layers": {"fp32": 2}, "flops": {"fp32": 1.0}, "origin": "engine"}
    assert told["inference_precision"] == "f32"
    assert told["threads"] == 1
    assert told["operators_in_file"]["Conv"] == 1


def test_half_files_run_and_the_census_is_that_of_the_cpu(write_network, reference) -> None:
    built = ENGINE.build(write_network(precision="fp16"), BuildOptions(precision="fp16"))
    built.bind({"input": images(2).astype(np.float16)})
    built.run()
    np.testing.assert_allclose(built.read()["output"], reference(images(2)), rtol=2e-2, atol=2e-2)
    device = ENGINE.availability().device
    assert device is not None
    computed = "fp16" if "fp16" in device else "fp32"
    assert built.inspect()["census"]["layers"] == {computed: 2}


def test_bfloat16_inputs_and_outputs_pass_through(write_nodes) -> None:
    half = np.dtype(helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16))
    path = write_nodes([helper.make_node("Relu", ["input"], ["output"])], element=TensorProto.BFLOAT16)
    built = ENGINE.build(path, BuildOptions(precision="bf16"))
    built.bind({"input": images(2).astype(half)})
    built.run()
    outputs = built.read()["output"]
    assert outputs.dtype == half
    np.testing.assert_array_equal(outputs, np.maximum(images(2).astype(half), half.type(0)))


def test_quantised_files_run_on_integer_kernels(write_quantised, reference) -> None:
    built = ENGINE.build(write_quantised(), BuildOptions(precision="int8"))
    built.bind({"input": images(4)})
    built.run()
    outputs, expected = built.read()["output"], reference(images(4))
    assert np.linalg.norm(outputs - expected) < 0.1 * np.linalg.norm(expected)
    assert built.inspect()["census"]["layers"] == {"int8": 2}


def test_closing_twice_is_harmless_and_a_closed_engine_says_so(write_network) -> None:
    built = ENGINE.build(write_network(), BuildOptions())
    built.close()
    built.close()
    with pytest.raises(EngineError, match="closed"):
        built.bind({"input": images(1)})


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"input": images(3)}, "input is 3x3x8x8 float32, not 2x3x8x8 float32"),
        ({"input": images(2)[0]}, "input is 3x8x8 float32"),
        ({"input": images(2).astype(np.float64)}, "float64, not 2x3x8x8 float32"),
        ({"other": images(2)}, "input input is missing"),
        ({"input": images(2), "other": images(2)}, "no input other"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_in_one_line(write_network, arrays: dict, said: str) -> None:
    built = ENGINE.build(write_network(batch=2), BuildOptions(batches=(2,)))
    with pytest.raises(InputError, match="does not take these arrays") as caught:
        built.bind(arrays)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("domain", ["custom", ""])
def test_an_operator_it_lacks_is_named_with_its_node(write_nodes, domain: str) -> None:
    made = helper.make_node("Foo", ["input"], ["output"], name="my_foo", domain=domain)
    with pytest.raises(EngineError, match=r"openvino cannot run operator Foo \(node 'my_foo'\)") as caught:
        ENGINE.build(write_nodes([made]), BuildOptions())
    assert "\n" not in str(caught.value)


def test_a_node_that_it_cannot_translate_is_named(write_nodes) -> None:
    nodes = [
        helper.make_node("Cast", ["input"], ["bytes"], to=TensorProto.UINT8),
        helper.make_node("Conv", ["bytes", "input"], ["output"], name="my_conv"),
    ]
    with pytest.raises(EngineError, match=r"openvino cannot run operator Conv \(node 'my_conv'\)"):
        ENGINE.build(write_nodes(nodes), BuildOptions())


def test_a_broken_network_is_bad_input_in_one_line(write_nodes, capfd: pytest.CaptureFixture[str]) -> None:
    path = write_nodes([helper.make_node("Relu", ["nowhere"], ["output"], name="r")])
    with pytest.raises(InputError, match=r"is no valid ONNX network \(.*nowhere") as caught:
        ENGINE.build(path, BuildOptions())
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_another_precision_and_a_stored_engine_are_refused(write_network, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="has no precision tf32"):
        ENGINE.build(write_network(), BuildOptions(precision="tf32"))
    with pytest.raises(InputError, match="its weights are fp16"):
        ENGINE.build(write_network(precision="fp16"), BuildOptions())
    with pytest.raises(EngineError, match="has no stored engine"):
        ENGINE.build_file(write_network(), tmp_path / "net.engine", BuildOptions())


@pytest.mark.parametrize("threads", [1, 2])
def test_its_queue_computes_the_network_on_a_build_for_throughput(write_network, reference, threads: int) -> None:
    built = ENGINE.build(write_network(), BuildOptions(threads=threads))
    assert isinstance(built, Queue)
    inputs = images(3)
    built.bind({"input": inputs})
    assert built.queue_depth() >= 1
    built.run_queued(5 * built.queue_depth() + 1)
    built.run()
    np.testing.assert_allclose(built.read()["output"], reference(inputs), rtol=1e-4, atol=1e-5)
    queue = built._queue()  # type: ignore[attr-defined]
    compiled = queue._queue[0].get_compiled_model()
    assert compiled.get_property("PERFORMANCE_HINT") == "THROUGHPUT"
    assert int(compiled.get_property("INFERENCE_NUM_THREADS")) <= threads
    built.close()


def test_new_inputs_and_new_shapes_reach_every_request_of_the_queue(write_network, reference) -> None:
    built = ENGINE.build(write_network(), BuildOptions(threads=2))
    for batch, seed in ((2, 1), (2, 2), (1, 3), (2, 4)):
        inputs = images(batch, seed=seed)
        built.bind({"input": inputs})
        depth = built.queue_depth()
        built.run_queued(depth)
        for request in built._queue()._queue:
            outputs = outputs_of(request, built.outputs)["output"]
            np.testing.assert_allclose(outputs, reference(inputs), rtol=1e-4, atol=1e-5)


def test_a_queue_that_computes_something_else_is_refused(write_network) -> None:
    built = ENGINE.build(write_network(), BuildOptions())
    built.bind({"input": images(2)})
    built.run()
    expected = built.read()["output"]
    with pytest.raises(ParityError, match=r"net.onnx: openvino's builds for latency and for throughput differ by 0.1 "):
        built._queue().require(expected / 1.1, built.outputs[0], precision="fp32", where="net.onnx")
