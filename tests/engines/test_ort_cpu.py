"""ONNX Runtime on the CPU, on real sessions."""

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from prune2deploy.engines.census import Census, require_layers_of
from prune2deploy.engines.engine import BuildOptions
from prune2deploy.engines.onnxruntime.cpu import OrtCpuEngine
from prune2deploy.errors import EngineError, InputError

ENGINE = OrtCpuEngine()


def images(batch: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, 3, 8, 8)).astype(np.float32)


def test_it_is_available_and_says_its_version() -> None:
    found = ENGINE.availability()
    assert found.runs
    assert found.builds
    assert found.version


def test_it_computes_the_network_at_every_batch_that_is_bound(write_network, reference) -> None:
    built = ENGINE.build(write_network(), BuildOptions())
    for batch in (1, 4, 1):
        inputs = images(batch, seed=batch)
        built.bind({"input": inputs})
        built.run()
        np.testing.assert_allclose(built.read()["output"], reference(inputs), rtol=1e-4, atol=1e-5)
    built.close()


def test_outputs_that_were_read_are_not_overwritten_by_the_next_run(write_network, reference) -> None:
    built = ENGINE.build(write_network(), BuildOptions())
    built.bind({"input": images(2, seed=1)})
    built.run()
    first = built.read()["output"]
    kept = first.copy()
    built.bind({"input": images(2, seed=2)})
    built.run()
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_allclose(built.read()["output"], reference(images(2, seed=2)), rtol=1e-4, atol=1e-5)


def test_what_happens_to_an_array_after_it_was_bound_changes_nothing(write_network, reference) -> None:
    built = ENGINE.build(write_network(), BuildOptions())
    inputs = images(1)
    built.bind({"input": inputs})
    inputs[:] = 0
    built.run()
    np.testing.assert_allclose(built.read()["output"], reference(images(1)), rtol=1e-4, atol=1e-5)


def test_inspection_counts_the_optimised_graph(write_network) -> None:
    told = ENGINE.build(write_network(), BuildOptions(threads=2)).inspect()
    assert told["operators_in_file"]["Conv"] == 1
    assert told["nodes"] == sum(told["operators"].values())
    # The ReLU is fused into the convolution before it.
    assert "Relu" not in told["operators"]
    assert told["threads"] == 2


def test_closing_twice_is_harmless_and_a_closed_session_says_so(write_network) -> None:
    built = ENGINE.build(write_network(), BuildOptions())
    built.close()
    built.close()
    with pytest.raises(EngineError, match="closed"):
        built.bind({"input": images(1)})


def test_arrays_that_do_not_fit_are_refused_in_one_line(write_network) -> None:
    built = ENGINE.build(write_network(batch=2), BuildOptions())
    for arrays in ({"input": images(3)}, {"other": images(2)}, {"input": images(2).astype(np.float64)}):
        with pytest.raises(InputError, match="does not take these arrays") as caught:
            built.bind(arrays)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("node", "element", "said"),
    [
        (
            {"op_type": "Foo", "name": "my_foo", "domain": "custom"},
            TensorProto.FLOAT,
            r"operator Foo \(node 'my_foo'\)",
        ),
        ({"op_type": "Foo", "name": "my_foo"}, TensorProto.FLOAT, r"operator Foo \(node 'my_foo'\)"),
        ({"op_type": "Selu", "name": "my_selu"}, TensorProto.BFLOAT16, r"operator Selu \(node 'my_selu'\)"),
    ],
)
def test_an_operator_it_lacks_is_named_with_its_node(write_nodes, node: dict, element: int, said: str) -> None:
    made = helper.make_node(inputs=["input"], outputs=["output"], **node)
    with pytest.raises(EngineError, match=said):
        ENGINE.build(write_nodes([made], element=element, opset=22), BuildOptions())


def test_a_broken_network_is_bad_input_and_nothing_is_printed(write_nodes, capfd: pytest.CaptureFixture[str]) -> None:
    path = write_nodes([helper.make_node("Relu", ["nowhere"], ["output"], name="r")])
    with pytest.raises(InputError, match=r"is no valid ONNX network .*'nowhere'") as caught:
        ENGINE.build(path, BuildOptions())
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_an_opset_of_the_future_is_an_engine_error(write_nodes) -> None:
    with pytest.raises(EngineError, match="cannot run this opset"):
        ENGINE.build(write_nodes([helper.make_node("Relu", ["input"], ["output"])], opset=999), BuildOptions())


def test_another_precision_is_refused(write_network) -> None:
    with pytest.raises(EngineError, match="has no precision bf16"):
        ENGINE.build(write_network(), BuildOptions(precision="bf16"))
    with pytest.raises(InputError, match="its weights are fp16"):
        ENGINE.build(write_network(precision="fp16"), BuildOptions())


def test_half_files_run_and_the_census_says_that_they_are_widened(write_network, reference) -> None:
    built = ENGINE.build(write_network(precision="fp16"), BuildOptions(precision="fp16"))
    inputs = images(2).astype(np.float16)
    built.bind({"input": inputs})
    built.run()
    np.testing.assert_allclose(built.read()["output"], reference(inputs), rtol=2e-2, atol=2e-2)
    census = Census.from_document(built.inspect()["census"])
    assert census.origin == "engine"
    assert census.layers == {"fp32": 2}
    assert census.flops == {"fp32": 1.0}
    with pytest.raises(EngineError, match=r"was to be fp16 and holds no fp16 layer \(fp32 100% of FLOPs\)"):
        require_layers_of(census, "fp16", where="net")


def test_quantised_files_run_on_integer_kernels(write_quantised, reference) -> None:
    built = ENGINE.build(write_quantised(), BuildOptions(precision="int8"))
    built.bind({"input": images(4)})
    built.run()
    outputs, expected = built.read()["output"], reference(images(4))
    assert np.linalg.norm(outputs - expected) < 0.1 * np.linalg.norm(expected)
    told = built.inspect()
    assert told["census"]["layers"] == {"int8": 2}
    assert told["census"]["flops"] == {"int8": 1.0}
    with pytest.raises(InputError, match="its weights are int8"):
        ENGINE.build(write_quantised(), BuildOptions())


def test_it_has_no_stored_engine(write_network, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="has no stored engine"):
        ENGINE.build_file(write_network(), tmp_path / "net.engine", BuildOptions())


@pytest.mark.parametrize(
    "wrong", [{"precision": "fp4"}, {"batches": ()}, {"batches": (0,)}, {"batches": (1, -2)}, {"threads": 0}]
)
def test_options_that_make_no_sense_are_refused(wrong: dict) -> None:
    with pytest.raises(InputError):
        BuildOptions(**wrong)
