"""Optimisation profiles of networks that leave more than the batch free, or have inputs without one."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from prune2deploy.engines.engine import BuildOptions, TensorRTOptions
from prune2deploy.engines.onnx_file import read_onnx_file
from prune2deploy.engines.tensorrt.shapes import shapes_for
from prune2deploy.errors import EngineError


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """(tokens looked up in a table) x mask x (a matrix that is an input of a fixed shape)."""
    table = np.random.default_rng(0).standard_normal((10, 8)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "tokens"], ["embedded"]),
            helper.make_node("Unsqueeze", ["mask", "last"], ["column"]),
            helper.make_node("Mul", ["embedded", "column"], ["kept"]),
            helper.make_node("MatMul", ["kept", "matrix"], ["output"]),
        ],
        "network",
        [
            helper.make_tensor_value_info("matrix", TensorProto.FLOAT, [8, 8]),
            helper.make_tensor_value_info("tokens", TensorProto.INT32, ["batch", "length"]),
            helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["batch", "length"]),
        ],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", "length", 8])],
        [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.array([2]), "last")],
    )
    path = tmp_path / "tokens.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


GIVEN = {"tokens": (2, 16), "mask": (2, 16)}


def test_given_shapes_make_one_profile_of_exactly_these(written):
    shapes = shapes_for(read_onnx_file(written), BuildOptions(batches=(2,), shapes=GIVEN), "trt")
    assert shapes.profiles == ({"matrix": ((8, 8),) * 3, "tokens": ((2, 16),) * 3, "mask": ((2, 16),) * 3},)


def test_a_size_that_is_neither_fixed_nor_given_is_refused_with_the_way_to_give_it(written):
    options = BuildOptions(batches=(2,), shapes={"tokens": (2, 16)})
    with pytest.raises(EngineError, match=r"'mask' has the shape \(None, None\); .* `p2d bench --shape`"):
        shapes_for(read_onnx_file(written), options, "trt")


def test_an_engine_is_built_and_known_by_its_shapes(written, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    from prune2deploy.engines.tensorrt.engine_file import read_record
    from prune2deploy.engines.tensorrt.family import TensorRTRTXEngine

    engine, path = TensorRTRTXEngine(), tmp_path / "tokens.engine"
    options = TensorRTOptions(compute_capabilities=((8, 6),))
    built = engine.build_file(written, path, BuildOptions(batches=(2,), shapes=GIVEN, tensorrt=options))
    assert built.details["profiles"][0]["tokens"] == ((2, 16),) * 3
    assert read_record(path).shapes == GIVEN
    again = BuildOptions(batches=(2,), shapes=GIVEN, tensorrt=options)
    assert engine.build_file(written, path, again).reused
    longer = BuildOptions(batches=(2,), shapes={"tokens": (2, 32), "mask": (2, 32)}, tensorrt=options)
    assert not engine.build_file(written, path, longer).reused
