"""Weights in a file beside the model: the pair is whole or absent, deterministic, and read by every engine."""

import errno
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from prune2deploy.engines.engine import BuildOptions
from prune2deploy.engines.onnx_file import read_onnx_file
from prune2deploy.engines.registry import engine_named
from prune2deploy.errors import ParityError, StorageError
from prune2deploy.export import external_data
from prune2deploy.export.onnx_from_model import ExportedFile, export_onnx
from prune2deploy.storage import sha256_of_file

SHAPE = (3, 6, 6)


def classifier() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 40), nn.Linear(40, 10)).eval()


def exported(path: Path, *, external: bool = True) -> ExportedFile:
    return export_onnx(classifier(), path, input_shape=SHAPE, metadata={"variant": "dense"}, external_data=external)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> ExportedFile:
    return exported(tmp_path_factory.mktemp("pair") / "net.onnx")


def images_and_outputs() -> tuple[np.ndarray, np.ndarray]:
    images = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return images.numpy(), classifier()(images).numpy()


def test_weights_lie_in_one_file_beside_and_shapes_stay(pair: ExportedFile) -> None:
    beside = external_data.data_path(pair.path)
    assert sorted(entry.name for entry in pair.path.parent.iterdir()) == ["net.onnx", "net.onnx.data"]
    graph = onnx.load(pair.path, load_external_data=False).graph
    outside = {tensor.name for tensor in graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL}
    assert {"0.weight", "3.weight", "4.weight"} <= outside
    assert all(entry.value == "net.onnx.data" for t in graph.initializer for entry in t.external_data[:1])
    assert beside.stat().st_size >= 4 * (16 * 27 + 256 * 40 + 40 * 10)
    assert pair.bytes_total == pair.path.stat().st_size + beside.stat().st_size


def test_the_file_reads_back_with_a_digest_and_size_of_both(pair: ExportedFile) -> None:
    file = read_onnx_file(pair.path)
    assert file.data_files == (external_data.data_path(pair.path),)
    assert (file.sha256, file.bytes_total) == (pair.sha256, pair.bytes_total)
    assert file.metadata["data_sha256"] == sha256_of_file(file.data_files[0])
    assert file.metadata["variant"] == "dense"


def test_the_same_weights_give_the_same_pair_and_other_weights_another_digest(
    pair: ExportedFile, tmp_path: Path
) -> None:
    again = exported(tmp_path / "net.onnx")
    assert again.sha256 == pair.sha256
    assert external_data.data_path(again.path).read_bytes() == external_data.data_path(pair.path).read_bytes()
    changed = classifier()
    with torch.no_grad():
        changed[0].weight[0, 0, 0, 0] += 1
    other = export_onnx(changed, tmp_path / "net.onnx", input_shape=SHAPE, external_data=True)
    assert other.sha256 != pair.sha256


def test_onnx_runtime_and_openvino_compute_what_torch_computes(pair: ExportedFile) -> None:
    openvino = pytest.importorskip("openvino")
    images, expected = images_and_outputs()
    session = onnxruntime.InferenceSession(pair.path, providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"input": images})[0], expected, rtol=1e-4, atol=1e-5)
    compiled = openvino.compile_model(pair.path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    np.testing.assert_allclose(compiled(images)[0], expected, rtol=1e-4, atol=1e-5)


def test_tensorrt_builds_from_the_pair(pair: ExportedFile, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    engine = tmp_path / "net.engine"
    summary = engine_named("trt-rtx").build_file(pair.path, engine, BuildOptions(batches=(1,)))
    assert summary.bytes_total > 4 * 256 * 40


def test_the_next_export_into_one_file_takes_the_data_file_away(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    exported(path)
    whole = exported(path, external=False)
    assert [entry.name for entry in tmp_path.iterdir()] == ["net.onnx"]
    assert read_onnx_file(path).data_files == ()
    assert whole.bytes_total == path.stat().st_size


def test_weights_over_the_limit_of_one_file_go_beside_it_by_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pair: ExportedFile
) -> None:
    # Stands in for 2 GB. What does not fit into one message, is inferred and checked without weights, too.
    monkeypatch.setattr(external_data, "BYTES_LIMIT", 20_000)
    large = exported(tmp_path / "net.onnx", external=False)
    assert read_onnx_file(large.path).data_files
    assert large.sha256 == pair.sha256
    images, expected = images_and_outputs()
    session = onnxruntime.InferenceSession(large.path, providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"input": images})[0], expected, rtol=1e-4, atol=1e-5)


def test_a_gate_that_refuses_leaves_the_old_pair(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    before = exported(path)
    seen = []

    def gate(partial: Path) -> float:
        seen.append(sorted(entry.name for entry in partial.parent.iterdir()))
        raise ParityError("wrong")

    with pytest.raises(ParityError):
        export_onnx(nn.Conv2d(3, 16, 3), path, input_shape=SHAPE, external_data=True, gate=gate)
    assert seen == [["net.onnx", "net.onnx.data"]]
    assert read_onnx_file(path).sha256 == before.sha256
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["net.onnx", "net.onnx.data"]


def test_a_full_disk_leaves_the_old_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.onnx"
    before = exported(path)

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(external_data, "write_external_data_tensors", full)
    with pytest.raises(StorageError, match=r"net\.onnx: cannot be written \(No space left"):
        exported(path)
    assert read_onnx_file(path).sha256 == before.sha256
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["net.onnx", "net.onnx.data"]


def test_a_network_without_weights_has_no_data_file(tmp_path: Path) -> None:
    file = export_onnx(nn.Flatten(), tmp_path / "net.onnx", input_shape=SHAPE, external_data=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["net.onnx"]
    assert "data_sha256" not in read_onnx_file(file.path).metadata
