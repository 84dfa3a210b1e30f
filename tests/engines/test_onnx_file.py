"""Reading what an ONNX file says of itself."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from prune2deploy.engines.engine import TensorInfo
from prune2deploy.engines.onnx_file import read_onnx_file, require_precision, stored_precision
from prune2deploy.errors import InputError
from prune2deploy.storage import DATA_DIGEST, sha256_of_file


def test_it_tells_the_interface_the_operators_and_the_metadata(write_network) -> None:
    file = read_onnx_file(write_network())
    assert file.inputs == (TensorInfo(name="input", dtype="float32", shape=(None, 3, 8, 8)),)
    assert file.outputs == (TensorInfo(name="output", dtype="float32", shape=(None, 5)),)
    assert file.operators == {"Conv": 1, "Relu": 1, "GlobalAveragePool": 1, "Flatten": 1, "MatMul": 1}
    assert file.metadata == {"variant": "dense"}
    assert (file.opset, file.producer, file.dynamic_batch) == (20, "tests", True)
    assert file.weights_by_precision == {"fp32": 16 * 3 + 16 * 5}


def test_a_fixed_batch_is_seen(write_network) -> None:
    file = read_onnx_file(write_network(batch=4))
    assert file.inputs[0].shape == (4, 3, 8, 8)
    assert not file.dynamic_batch


def test_initializers_among_the_inputs_are_not_inputs(tmp_path: Path) -> None:
    kernel = numpy_helper.from_array(np.ones((1, 3), np.float32), "kernel")
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "kernel"], ["y"])],
        "net",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3]) for name in ("x", "kernel")],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])],
        [kernel],
    )
    path = tmp_path / "old.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    assert [tensor.name for tensor in read_onnx_file(path).inputs] == ["x"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"import torch\n", "is no ONNX file, or is truncated"),
        (b"\x08\x01" * 30, "holds no ONNX network"),
        (b"PK\x03\x04 a zip of weights", "ONNX"),
    ],
)
def test_what_is_no_onnx_file_is_refused(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match=said) as caught:
        read_onnx_file(path)
    assert str(path) in str(caught.value)


def test_a_truncated_file_is_refused_wherever_it_was_cut(write_network, tmp_path: Path) -> None:
    content = write_network().read_bytes()
    for length in (10, len(content) // 2, len(content) - 1):
        path = tmp_path / "cut.onnx"
        path.write_bytes(content[:length])
        with pytest.raises(InputError):
            read_onnx_file(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_onnx_file(tmp_path / "none.onnx")
    with pytest.raises(InputError, match="is a folder"):
        read_onnx_file(tmp_path)


@pytest.mark.parametrize(("stored", "asked"), [("fp32", "fp32"), ("fp32", "tf32"), ("fp16", "fp16")])
def test_weights_of_the_precision_asked_for_pass(write_network, stored: str, asked: str) -> None:
    require_precision(read_onnx_file(write_network(precision=stored)), asked)


@pytest.mark.parametrize(("stored", "asked"), [("fp32", "fp16"), ("fp32", "bf16"), ("fp16", "fp32"), ("fp32", "int8")])
def test_weights_of_another_precision_are_refused(write_network, stored: str, asked: str) -> None:
    with pytest.raises(InputError, match=f"its weights are {stored}, so it cannot be run as {asked}"):
        require_precision(read_onnx_file(write_network(precision=stored)), asked)


def test_a_file_states_its_own_precision(write_network, write_quantised, write_nodes) -> None:
    assert stored_precision(read_onnx_file(write_network())) == "fp32"
    assert stored_precision(read_onnx_file(write_network(precision="fp16"))) == "fp16"
    assert stored_precision(read_onnx_file(write_quantised())) == "int8"
    bare = read_onnx_file(write_nodes([helper.make_node("Relu", ["input"], ["output"])]))
    assert stored_precision(bare) is None
    require_precision(bare, "bf16")
    with pytest.raises(InputError, match="its weights are no weights at all, so it cannot be run as int8"):
        require_precision(bare, "int8")


@pytest.fixture
def pair(write_network, tmp_path: Path) -> Path:
    """A network with its kernels in ``weights.bin``, as other exporters write them: without a digest."""
    path = tmp_path / "pair.onnx"
    proto = onnx.load(write_network())
    onnx.save(proto, path, save_as_external_data=True, location="weights.bin", size_threshold=100)
    return path


def test_weights_beside_the_file_count_in_size_digest_and_precision(pair: Path) -> None:
    file = read_onnx_file(pair)
    weights = pair.with_name("weights.bin")
    assert file.data_files == (weights,)
    assert file.bytes_total == pair.stat().st_size + weights.stat().st_size
    assert file.weights_by_precision == {"fp32": 16 * 3 + 16 * 5}
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert read_onnx_file(pair).sha256 != file.sha256


def test_missing_weights_are_named(pair: Path) -> None:
    pair.with_name("weights.bin").unlink()
    with pytest.raises(InputError, match=r"pair\.onnx: its weights lie in weights\.bin, which is not there; keep both"):
        read_onnx_file(pair)


def test_truncated_weights_are_refused(pair: Path) -> None:
    weights = pair.with_name("weights.bin")
    content = weights.read_bytes()
    weights.write_bytes(content[:-4])
    said = rf"weights\.bin is truncated: its weights take {len(content)} bytes, and it holds {len(content) - 4}"
    with pytest.raises(InputError, match=said):
        read_onnx_file(pair)


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/hostname", ""])
def test_weights_outside_the_folder_are_not_read(pair: Path, location: str) -> None:
    proto = onnx.load(pair, load_external_data=False)
    (place,) = (entry for entry in proto.graph.initializer[0].external_data if entry.key == "location")
    place.value = location
    pair.write_bytes(proto.SerializeToString())
    with pytest.raises(InputError, match="outside its folder"):
        read_onnx_file(pair)


def test_a_place_that_is_no_number_is_refused(pair: Path) -> None:
    proto = onnx.load(pair, load_external_data=False)
    (place,) = (entry for entry in proto.graph.initializer[0].external_data if entry.key == "offset")
    place.value = "-5"
    pair.write_bytes(proto.SerializeToString())
    with pytest.raises(InputError, match="does not say where 'kernel' lies"):
        read_onnx_file(pair)


def test_weights_of_another_export_are_found_by_the_digest_in_the_file(pair: Path) -> None:
    weights = pair.with_name("weights.bin")
    proto = onnx.load(pair, load_external_data=False)
    helper.set_model_props(proto, {DATA_DIGEST: sha256_of_file(weights)})
    pair.write_bytes(proto.SerializeToString())
    assert read_onnx_file(pair).sha256 == sha256_of_file(pair)
    weights.write_bytes(bytes(len(weights.read_bytes())))
    with pytest.raises(InputError, match=r"weights\.bin does not hold the weights that it was written with"):
        read_onnx_file(pair)
