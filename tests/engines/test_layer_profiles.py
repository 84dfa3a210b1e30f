"""What engines tell of their layers: real profiles of ONNX Runtime and OpenVINO, and of TensorRT what is parsed."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from prune2deploy.engines.capabilities import LayerProfile, LayerProfiler
from prune2deploy.engines.engine import BuildOptions
from prune2deploy.engines.onnx_nodes import FileNodes
from prune2deploy.engines.onnx_work import FileWork
from prune2deploy.engines.onnxruntime.cuda import OrtCudaRun
from prune2deploy.engines.onnxruntime.profile import profile_from_trace
from prune2deploy.engines.registry import engine_named
from prune2deploy.engines.tensorrt.layers import engine_layers
from prune2deploy.engines.tensorrt.profile import profile_from_times
from prune2deploy.errors import EngineError, InputError


def block(path: Path, *, width: int = 16, size: int = 12, named: bool = True) -> Path:
    """Two convolutions with ReLUs and a shortcut around the second, a pooling and a product of 5 classes."""
    rng = np.random.default_rng(0)

    def node(operator: str, reads: list[str], makes: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(operator, reads, [makes], name=f"n_{makes}" if named else "", **attributes)

    weights = {
        "w1": rng.standard_normal((width, 3, 3, 3)),
        "w2": rng.standard_normal((width, width, 3, 3)),
        "head": rng.standard_normal((width, 5)),
    }
    nodes = [
        node("Conv", ["input", "w1"], "c1", pads=[1, 1, 1, 1]),
        node("Relu", ["c1"], "r1"),
        node("Conv", ["r1", "w2"], "c2", pads=[1, 1, 1, 1]),
        node("Add", ["c2", "r1"], "a2"),
        node("Relu", ["a2"], "r2"),
        node("GlobalAveragePool", ["r2"], "pooled"),
        node("Flatten", ["pooled"], "flat"),
        node("MatMul", ["flat", "head"], "output"),
    ]
    graph = helper.make_graph(
        nodes,
        "block",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, size, size])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 5])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def profiled(engine: str, path: Path, *, batch: int = 2, runs: int = 5, precision: str = "fp32") -> LayerProfile:
    if engine == "openvino":
        pytest.importorskip("openvino")
    built = engine_named(engine).build(path, BuildOptions(batches=(batch,), precision=precision))
    assert isinstance(built, LayerProfiler)
    shape = (batch, *[size or 1 for size in built.inputs[0].shape[1:]])
    built.bind({built.inputs[0].name: np.random.default_rng(1).standard_normal(shape).astype(np.float32)})
    built.run()
    before = {name: value.copy() for name, value in built.read().items()}
    found = built.profile_layers(runs)
    built.run()
    for name, value in built.read().items():
        np.testing.assert_array_equal(value, before[name])
    built.close()
    return found


@pytest.mark.parametrize("engine", ["ort-cpu", "openvino"])
@pytest.mark.parametrize("named", [True, False])
def test_the_layers_of_a_real_engine_are_mapped_to_the_nodes_of_the_file(
    engine: str, named: bool, tmp_path: Path
) -> None:
    found = profiled(engine, block(tmp_path / "net.onnx", size=48, named=named))
    prefix = "n_" if named else ""
    owners = {node: layer.name for layer in found.layers for node in layer.nodes}
    # OpenVINO leaves out what takes less than a microsecond.
    assert {f"{prefix}{name}" for name in ("c1", "r1", "c2")} <= set(owners)
    assert len(owners) == sum(len(layer.nodes) for layer in found.layers)
    # Engines fuse the ReLU into what is before it; ONNX Runtime the shortcut as well.
    assert owners[f"{prefix}c1"] == owners[f"{prefix}r1"] != owners[f"{prefix}c2"]
    assert owners.get(f"{prefix}a2") == owners.get(f"{prefix}r2")
    if engine == "ort-cpu":
        assert owners[f"{prefix}c2"] == owners[f"{prefix}a2"] != owners[f"{prefix}pooled"]
        assert f"{prefix}output" in owners
    assert all(layer.latency_ns >= 0 for layer in found.layers)
    assert found.run_ns is not None
    assert 0 < sum(layer.latency_ns for layer in found.layers) <= found.run_ns
    assert "node by node" in found.told_by
    assert found.left_out


@pytest.mark.parametrize("engine", ["ort-cpu", "openvino"])
def test_what_an_engine_puts_in_has_no_nodes(engine: str, tmp_path: Path) -> None:
    # Eight channels fill no block of sixteen: ONNX Runtime turns its blocked layout back after each convolution.
    found = profiled(engine, block(tmp_path / "net.onnx", width=8))
    put_in = [layer for layer in found.layers if layer.operator in ("ReorderInput", "ReorderOutput", "Reorder")]
    assert put_in
    assert all(layer.nodes == () for layer in put_in)


@pytest.mark.parametrize("engine", ["ort-cpu", "openvino"])
def test_integer_layers_keep_their_products(engine: str, write_quantised) -> None:
    found = profiled(engine, write_quantised(), precision="int8")
    computing = [layer for layer in found.layers if {"conv", "head"} & set(layer.nodes)]
    assert [next(node for node in layer.nodes if node in ("conv", "head")) for layer in computing] == ["conv", "head"]


@pytest.mark.parametrize("engine", ["ort-cpu", "openvino"])
def test_profiling_without_inputs_or_runs_is_refused(engine: str, write_network) -> None:
    if engine == "openvino":
        pytest.importorskip("openvino")
    built = engine_named(engine).build(write_network(), BuildOptions())
    assert isinstance(built, LayerProfiler)
    with pytest.raises(InputError, match="has no inputs bound; call bind before profiling"):
        built.profile_layers(3)
    built.bind({"input": np.zeros((1, 3, 8, 8), np.float32)})
    with pytest.raises(InputError, match="positive, not 0"):
        built.profile_layers(0)


def test_a_trace_that_is_damaged_or_too_short_is_refused_in_one_line(write_network, tmp_path: Path) -> None:
    network, trace = write_network(), tmp_path / "trace.json"
    event = {"cat": "Node", "name": "conv_kernel_time", "ts": 1, "dur": 2, "args": {"op_name": "Conv"}}
    run = {"cat": "Session", "name": "model_run", "ts": 0, "dur": 4, "args": {}}
    for text in ("", "{", "[1]", json.dumps([event, run]), json.dumps([event, run, run])):
        trace.write_text(text)
        with pytest.raises(EngineError, match="profile cannot be read") as caught:
            profile_from_trace(trace, onnx.ModelProto(), network, runs=2)
        assert "\n" not in str(caught.value)


def test_one_slow_run_changes_nothing(write_network, tmp_path: Path) -> None:
    def run(duration: int, whole: int) -> list[dict[str, Any]]:
        event = {"cat": "Node", "name": "conv_kernel_time", "ts": 1, "dur": duration, "args": {"op_name": "Conv"}}
        return [event, {"cat": "Session", "name": "model_run", "ts": 0, "dur": whole, "args": {}}]

    trace = tmp_path / "trace.json"
    # The first run settles; one of the three that count met another process, inside its node.
    trace.write_text(json.dumps([*run(999, 1000), *run(20, 25), *run(900, 906), *run(22, 26)]))
    found = profile_from_trace(trace, onnx.ModelProto(), write_network(), runs=3)
    assert [layer.latency_ns for layer in found.layers] == [22_000]
    assert found.run_ns == 22_000 + 5_000


def test_ort_cuda_and_the_torch_engines_tell_no_layers() -> None:
    with pytest.raises(EngineError, match="do not time the layers on a GPU"):
        OrtCudaRun.profile_layers(object.__new__(OrtCudaRun), 5)
    torch_engine = importlib.import_module("prune2deploy.engines.torch.engine")
    assert not any(hasattr(value, "profile_layers") for value in vars(torch_engine).values())


def test_a_layer_named_by_its_last_node_reaches_back_to_its_operator_and_no_further(tmp_path: Path) -> None:
    nodes = FileNodes(block(tmp_path / "net.onnx"))
    assert "n_c1" in nodes
    operators = ["Conv", "QLinearConv", "GlobalAveragePool", "Copy", "FusedMatMul"]
    found = nodes.shared_out([("r1",), ("c2",), ("pooled",), (), ("output",)], operators)
    assert found == [("n_c1", "n_r1"), ("n_c2", "n_a2", "n_r2"), ("n_pooled", "n_flat"), (), ("n_output",)]
    # A layer of another kind takes no product that no layer tells of, and what engines call a product may be either.
    assert nodes.shared_out([("pooled",)], ["Subgraph"]) == [("n_r1", "n_a2", "n_r2", "n_pooled", "n_flat")]
    assert nodes.shared_out([("output",)], ["Gemm"]) == [("n_output",)]
    # A product that no layer tells of belongs to none.
    assert "n_output" not in {node for owned in nodes.shared_out([("r1",), ("pooled",)]) for node in owned}


def test_the_work_of_a_fused_layer_counts_what_enters_and_leaves_it(tmp_path: Path) -> None:
    work = FileWork(block(tmp_path / "net.onnx"), {"input": (2, 3, 12, 12)})
    image, features, kernel = 2 * 3 * 144 * 4, 2 * 16 * 144 * 4, 16 * 16 * 9 * 4
    assert work.bytes_moved(["n_c1", "n_r1"]) == image + 16 * 3 * 9 * 4 + features
    # The shortcut reads what the convolution reads: it is moved once.
    assert work.bytes_moved(["n_c2", "n_a2", "n_r2"]) == features + kernel + features
    assert work.costs["n_c2"].flops == 2 * 2 * 144 * 9 * 16 * 16
    assert work.operators(["n_c2", "n_a2"]) == {"Conv", "Add"}
    assert work.bytes_moved([]) is None


def test_tensorrt_layers_are_mapped_by_their_metadata_and_reformatting_by_none(tmp_path: Path) -> None:
    inspected = {
        "Layers": [
            {
                "Name": "n_c1 + n_r1",
                "LayerType": "CaskConvolution",
                "Metadata": "[ONNX Layer: n_c1]\x1e[ONNX Layer: n_r1]",
            },
            {"Name": "Reformatting CopyNode for Input Tensor 0 to n_c2", "LayerType": "Reformat"},
            {
                "Name": "n_c2",
                "LayerType": "CaskConvolution",
                "Metadata": "[ONNX Layer: n_c2]\x1e[ONNX Layer: n_a2]\x1e[ONNX Layer: n_r2]",
            },
        ]
    }
    times = {
        "n_c1 + n_r1": [1.0, 3.0, 2.0],
        "Reformatting CopyNode for Input Tensor 0 to n_c2": [0.5, 0.5, 0.5],
        "n_c2": [4.0, 4.0, 4.0, 4.0, 4.0, 4.0],
        "n_pooled + n_flat": [0.1, 0.1, 0.1],
    }
    found = profile_from_times(times, engine_layers(json.dumps(inspected)), block(tmp_path / "net.onnx"), runs=3)
    assert [layer.nodes for layer in found.layers] == [
        ("n_c1", "n_r1"), (), ("n_c2", "n_a2", "n_r2"), ("n_pooled", "n_flat"),
    ]  # fmt: skip
    assert [layer.latency_ns for layer in found.layers] == pytest.approx([2e6, 0.5e6, 8e6, 0.1e6])
    assert found.layers[1].operator == "Reformat"
