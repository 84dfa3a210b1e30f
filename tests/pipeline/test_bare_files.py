"""Files that belong to no run: names, shapes, inputs that differ, and what the files cost."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from prune2deploy.errors import InputError
from prune2deploy.pipeline.bare_files import BareFiles, bare_files

Shape = Sequence[int | str]


def write_convolution(path: Path, *, channels: int = 8, shape: Shape = ("batch", 3, 8, 8), name: str = "input") -> Path:
    """One 3x3 convolution and a mean over space."""
    kernel = np.random.default_rng(0).standard_normal((channels, 3, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", [name, "kernel"], ["features"], pads=[1, 1, 1, 1]),
            helper.make_node("GlobalAveragePool", ["features"], ["output"]),
        ],
        "network",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [shape[0], channels, 1, 1])],
        [numpy_helper.from_array(kernel, "kernel")],
    )
    return save(graph, path)


def write_two_inputs(path: Path, *, width: int = 8, masked: bool = True) -> Path:
    """Tokens looked up in a table, times a mask, times a matrix. Free: batch and length of both inputs."""
    generator = np.random.default_rng(0)
    table = generator.standard_normal((10, width)).astype(np.float32)
    matrix = generator.standard_normal((width, width)).astype(np.float32)
    nodes = [helper.make_node("Gather", ["table", "tokens"], ["embedded"])]
    if masked:
        nodes += [
            helper.make_node("Unsqueeze", ["mask", "last"], ["column"]),
            helper.make_node("Mul", ["embedded", "column"], ["kept"]),
        ]
    nodes += [helper.make_node("MatMul", ["kept" if masked else "embedded", "matrix"], ["output"])]
    inputs = [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["batch", "length"])]
    if masked:
        inputs.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["batch", "length"]))
    graph = helper.make_graph(
        nodes,
        "network",
        inputs,
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", "length", width])],
        [
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(matrix, "matrix"),
            numpy_helper.from_array(np.array([2]), "last"),
        ],
    )
    return save(graph, path)


def save(graph: onnx.GraphProto, path: Path) -> Path:
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def read(
    *paths: Path, batches: tuple[int, ...] | None = None, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> BareFiles:
    return bare_files(paths, precisions=None, batches=batches, shapes=shapes or {})


def test_files_are_called_by_their_stems_and_cost_shares_of_the_first(tmp_path):
    files = read(write_convolution(tmp_path / "wide.onnx"), write_convolution(tmp_path / "narrow.onnx", channels=2))
    assert [subject.variant for subject in files.subjects] == ["wide", "narrow"]
    assert [subject.flops_fraction for subject in files.subjects] == [1.0, 0.25]
    assert [subject.parameters_fraction for subject in files.subjects] == [1.0, 0.25]
    assert [subject.accuracy for subject in files.subjects] == [None, None]
    assert (files.batches, files.notes) == ((1, 32), ())


def test_files_of_one_name_are_called_by_their_paths(tmp_path):
    (tmp_path / "other").mkdir()
    paths = write_convolution(tmp_path / "net.onnx"), write_convolution(tmp_path / "other/net.onnx")
    assert [subject.variant for subject in read(*paths).subjects] == [str(path) for path in paths]
    with pytest.raises(InputError, match="is named twice; name each file once"):
        read(paths[0], paths[0])


def test_a_fixed_batch_is_the_default(tmp_path):
    fixed = write_convolution(tmp_path / "fixed.onnx", shape=(4, 3, 8, 8))
    free = write_convolution(tmp_path / "free.onnx")
    assert read(fixed, free).batches == read(free, fixed).batches == (4,)
    with pytest.raises(InputError, match=r"fixed.onnx: input input is fixed to batch size 4, not 1; use --batch 4"):
        read(free, fixed, batches=(1,))
    other = write_convolution(tmp_path / "other.onnx", shape=(2, 3, 8, 8))
    with pytest.raises(InputError, match=r"other.onnx: is fixed to batch size 2, and .*fixed.onnx to 4"):
        read(fixed, other)


def test_given_shapes_say_the_batch(tmp_path):
    path = write_two_inputs(tmp_path / "a.onnx")
    shapes = {"tokens": (2, 16), "mask": (2, 16)}
    files = read(path, write_two_inputs(tmp_path / "b.onnx", width=4), shapes=shapes)
    assert (files.batches, files.shapes) == ((2,), shapes)
    # Two for each multiply-add of a matrix product: a quarter of the first file's, at any shape.
    assert [subject.flops_fraction for subject in files.subjects] == [1.0, 0.25]
    assert read(path, batches=(2,), shapes=shapes).batches == (2,)
    with pytest.raises(InputError, match=r"--batch 1,32: contradicts --shape, whose batch is 2; leave it out"):
        read(path, batches=(1, 32), shapes=shapes)


def test_a_free_size_without_a_shape_is_refused_with_the_option_that_gives_it(tmp_path):
    with pytest.raises(
        InputError, match=r"a.onnx: input tokens has a free size besides the batch: \?x\?; pass --shape"
    ):
        read(write_two_inputs(tmp_path / "a.onnx"))


def test_files_with_other_inputs_are_refused_by_name(tmp_path):
    first = write_convolution(tmp_path / "first.onnx")
    renamed = write_convolution(tmp_path / "renamed.onnx", name="x")
    with pytest.raises(InputError, match=r"renamed.onnx: takes x=\?x3x8x8, and .*first.onnx takes input=\?x3x8x8"):
        read(first, renamed)
    larger = write_convolution(tmp_path / "larger.onnx", shape=("batch", 3, 16, 16))
    with pytest.raises(InputError, match=r"larger.onnx: input input is 1x3x16x16 float32, and that of .* is 1x3x8x8"):
        read(first, larger)
    both, alone = write_two_inputs(tmp_path / "both.onnx"), write_two_inputs(tmp_path / "alone.onnx", masked=False)
    with pytest.raises(
        InputError, match=r"alone.onnx: takes tokens=\?x\?, and .*both.onnx takes tokens=\?x\?, mask=\?x\?;"
    ):
        read(both, alone, shapes={"tokens": (1, 4), "mask": (1, 4)})


def test_a_free_image_size_is_given_by_shape_to_files_that_fix_it(tmp_path):
    free = write_convolution(tmp_path / "free.onnx", shape=("batch", 3, "height", "width"))
    fixed = write_convolution(tmp_path / "fixed.onnx", channels=4, shape=(1, 3, 8, 8))
    files = read(free, fixed, shapes={"input": (1, 3, 8, 8)})
    assert files.batches == (1,)
    assert [subject.flops_fraction for subject in files.subjects] == [1.0, 0.5]
    with pytest.raises(InputError, match=r"fixed.onnx: input input is 1x3x8x8, not 1x3x9x9"):
        read(free, fixed, shapes={"input": (1, 3, 9, 9)})


def test_flops_that_only_a_run_tells_are_said_to_be_unknown(tmp_path):
    # The number of rows that are kept depends on the values of the input.
    matrix = np.eye(4, dtype=np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("NonZero", ["input"], ["places"]),
            helper.make_node("Transpose", ["places"], ["turned"], perm=[1, 0]),
            helper.make_node("Cast", ["turned"], ["rows"], to=TensorProto.FLOAT),
            helper.make_node("MatMul", ["rows", "matrix"], ["output"]),
        ],
        "network",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 2, 3, 4])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["found", 4])],
        [numpy_helper.from_array(matrix, "matrix")],
    )
    files = read(save(graph, tmp_path / "rows.onnx"))
    assert files.subjects[0].flops_fraction is None
    assert files.subjects[0].parameters_fraction == 1.0
    assert "FLOPs are not known" in files.notes[0]
