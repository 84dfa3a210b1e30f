"""Exports of a small trained run at every precision: what is written, what each gate refuses, and what stays."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from prune2deploy.engines.onnx_file import read_onnx_file
from prune2deploy.errors import EngineError, InputError, ParityError, StorageError
from prune2deploy.evaluation import EvaluationSet
from prune2deploy.pipeline import gates
from prune2deploy.pipeline.export import run_export
from prune2deploy.pipeline.gates import LEAST_AGREEMENT, Gates, Source, opened
from prune2deploy.pipeline.measurable import exported_run
from prune2deploy.pipeline.outcomes import ExportedFile
from prune2deploy.pipeline.requests import ExportRequest, TrainingChoices, TrainRequest
from prune2deploy.pipeline.train import run_train
from prune2deploy.run import OnnxRecord, RunFolder

ALL = ("fp32", "tf32", "fp16", "bf16", "int8")

NETWORK = """
from torch import nn

class Digits(nn.Module):
    def __init__(self, num_classes=10, in_channels=1):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(in_channels, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.inner, self.inner_norm = nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.head = nn.Linear(32 * 16, num_classes)

    def forward(self, image):
        image = nn.functional.max_pool2d(self.norm(self.stem(image)).relu(), 2)
        return self.head((image + self.inner_norm(self.inner(image)).relu()).flatten(1))
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run with one trained variant and every precision exported."""
    folder = tmp_path_factory.mktemp("precisions")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        (folder / "network_for_digits.py").write_text(NETWORK)
        training = TrainingChoices(epochs=4, batch_size=32)
        run_train(TrainRequest(model="network_for_digits:Digits", training=training, out=Path("run")))
        run_export(ExportRequest(run=Path("run"), precisions=ALL))
        yield folder / "run"
    torch.set_num_threads(threads)


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return shutil.copytree(trained, tmp_path / "run")


def record(run: Path, precision: str) -> OnnxRecord:
    return RunFolder.open(run).manifest.variants["dense"].onnx[precision]


def moments(run: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (run / "onnx").iterdir()}


def weight_types(path: Path) -> set[str]:
    kinds = {onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in onnx.load(path).graph.initializer}
    return {kind for kind in kinds if "FLOAT" in kind or kind in ("INT8", "UINT8")}


def test_every_precision_is_written_as_what_it_is_called(trained: Path) -> None:
    types = {precision: weight_types(trained / record(trained, precision).file) for precision in ALL}
    assert types["fp32"] == types["tf32"] == {"FLOAT"}
    assert types["fp16"] == {"FLOAT16"}
    assert types["bf16"] == {"BFLOAT16"}
    assert "INT8" in types["int8"]
    assert record(trained, "fp16").bytes_total < 0.6 * record(trained, "fp32").bytes_total
    assert not [path for path in (trained / "onnx").iterdir() if path.name.startswith(".")]


def test_what_was_measured_is_recorded(trained: Path) -> None:
    errors = [record(trained, precision).parity_max_error for precision in ALL]
    # Each coarser than the one before, but tf32, which the gate's engine computes as fp32.
    assert errors[0] == errors[1] < errors[2] < errors[3]
    for precision in ALL:
        checks = record(trained, precision).checks
        assert 0.5 < checks["accuracy"] <= 1
        assert ({"agreement", "sqnr_db"} <= checks.keys()) == (precision == "int8")
    assert errors[4] == pytest.approx(10 ** (-record(trained, "int8").checks["sqnr_db"] / 20))


def test_the_accuracy_is_that_of_the_labels(trained: Path) -> None:
    evaluation = EvaluationSet.load(trained / "onnx/evaluation.npz")
    with opened(trained / record(trained, "fp16").file, "fp16") as built:
        inputs = evaluation.inputs[: gates.ACCURACY_IMAGES]
        built.bind({"input": inputs})
        built.run()
        right = built.read()["output"].argmax(1) == evaluation.labels[: gates.ACCURACY_IMAGES]
    assert record(trained, "fp16").checks["accuracy"] == pytest.approx(right.mean())


def test_exporting_again_changes_nothing(run: Path) -> None:
    before = moments(run)
    outcome = run_export(ExportRequest(run=run, precisions=("fp16",)))
    assert moments(run) == before
    assert [file.precision for file in outcome.files] == list(ALL)
    assert all(isinstance(file, ExportedFile) and file.checks for file in outcome.files)


def test_only_what_an_option_changes_is_exported_anew(run: Path) -> None:
    before = moments(run)
    run_export(ExportRequest(run=run, precisions=("fp16",), io_precision="same"))
    after = moments(run)
    assert {name for name in before if before[name] != after[name]} == {"dense-fp16.onnx"}
    assert read_onnx_file(run / "onnx/dense-fp16.onnx").inputs[0].dtype == "float16"
    # A precision that is not named keeps what is its own.
    run_export(ExportRequest(run=run))
    assert moments(run) == after


def test_int8_files_follow_their_settings_and_their_engine(run: Path) -> None:
    before = record(run, "int8").sha256
    run_export(ExportRequest(run=run, precisions=("int8",), engine="ort-cpu", min_agreement=0))
    affine = record(run, "int8").sha256
    assert affine != before
    assert json.loads(read_onnx_file(run / "onnx/dense-int8.onnx").metadata["style"]) == "affine"
    run_export(ExportRequest(run=run, precisions=("int8",), calibration="percentile", min_agreement=0))
    assert record(run, "int8").sha256 not in (before, affine)
    run_export(ExportRequest(run=run, precisions=("int8",), min_agreement=0))
    assert record(run, "int8").sha256 == before


def test_a_measurement_exports_what_is_missing_as_the_rest_was(run: Path) -> None:
    for file in (run / "onnx").iterdir():
        file.unlink()
    run_export(ExportRequest(run=run, precisions=("fp32",), softmax=True, normalize=True, batch=4))
    before = moments(run)
    (run / "onnx/dense-fp16.onnx").unlink()
    exported_run(run, ("fp16",))
    after = moments(run)
    told = read_onnx_file(run / "onnx/dense-fp16.onnx").metadata
    assert [json.loads(told[name]) for name in ("softmax", "batch")] == [True, 4]
    assert after["dense-fp32.onnx"] == before["dense-fp32.onnx"]


def test_int8_alone_leaves_no_fp32_file(run: Path) -> None:
    shutil.rmtree(run / "onnx")
    folder = RunFolder.open(run)
    folder.save_variant(replace(folder.manifest.variants["dense"], onnx={}))
    run_export(ExportRequest(run=run, precisions=("int8",), max_drop=100))
    assert sorted(path.name for path in (run / "onnx").iterdir()) == ["dense-int8.onnx", "evaluation.npz"]
    assert record(run, "int8").checks["agreement"] >= 0.99


def tampered(path: Path, factor: float) -> None:
    """Scale the first stored weights."""
    model = onnx.load(path)
    weights = max(model.graph.initializer, key=lambda tensor: np.prod(tensor.dims))
    values = numpy_helper.to_array(weights)
    weights.CopyFrom(numpy_helper.from_array((values.astype(np.float32) * factor).astype(values.dtype), weights.name))
    onnx.save(model, path)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16"])
def test_a_file_with_other_weights_fails_its_gate(precision: str, run: Path) -> None:
    folder = RunFolder.open(run)
    evaluation = EvaluationSet.load(folder.evaluation_path)
    path = run / record(run, precision).file
    tampered(path, 1.2)
    with pytest.raises(ParityError, match=f"dense: .*the {precision} gate is"):
        Gates(folder, ExportRequest(), evaluation, gates_progress()).check(path, "dense", precision, None)


def test_int8_that_names_other_classes_fails_its_gate(run: Path) -> None:
    folder = RunFolder.open(run)
    evaluation = EvaluationSet.load(folder.evaluation_path)
    path = run / record(run, "int8").file
    source = Source(path=run / record(run, "fp32").file, accuracy=None)
    model = onnx.load(path)
    weights = max((t for t in model.graph.initializer if t.data_type == 3), key=lambda tensor: np.prod(tensor.dims))
    values = numpy_helper.to_array(weights)
    weights.CopyFrom(numpy_helper.from_array(values[::-1].copy(), weights.name))
    onnx.save(model, path)
    with pytest.raises(ParityError, match=r"dense at int8: int8 names the class .*--min-agreement"):
        Gates(folder, ExportRequest(), evaluation, gates_progress()).check(path, "dense", "int8", source)


def gates_progress() -> gates.Progress:
    from prune2deploy.progress import SILENT

    return SILENT


def test_too_large_a_drop_of_accuracy_is_refused_and_nothing_else_lost(run: Path) -> None:
    before = moments(run)
    folder = RunFolder.open(run)
    variant = folder.manifest.variants["dense"]
    # As if fp32 were perfect: then every other precision loses the rest.
    better = replace(variant.onnx["fp32"], checks={"accuracy": 1.05})
    folder.save_variant(replace(variant, onnx={**variant.onnx, "fp32": better}))
    request = ExportRequest(run=run, precisions=("fp16", "int8"), max_drop=2.0)
    with pytest.raises(ParityError, match=r"dense: .*points of accuracy .*--max-drop is 2"):
        run_export(request)
    after = moments(run)
    assert after == before


def test_a_file_that_nvidias_parser_refuses_is_not_written(run: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    before = moments(run)
    request = ExportRequest(run=run, precisions=("int8",), engine="ort-cpu", min_agreement=0, check_engine=True)
    with pytest.raises(EngineError, match=r"^dense at int8: .*QuantizeLinear"):
        run_export(request)
    assert moments(run) == before
    run_export(replace(request, engine=None))
    assert moments(run) == before


def test_max_drop_passes_where_little_is_lost(run: Path) -> None:
    before = moments(run)
    run_export(ExportRequest(run=run, precisions=ALL, max_drop=50))
    assert moments(run) == before


def test_stricter_agreement_than_a_stored_file_reached_is_refused(run: Path) -> None:
    folder = RunFolder.open(run)
    variant = folder.manifest.variants["dense"]
    worse = replace(variant.onnx["int8"], checks={**variant.onnx["int8"].checks, "agreement": 0.5})
    folder.save_variant(replace(variant, onnx={**variant.onnx, "int8": worse}))
    # What is recorded does not suffice, so the file is made and measured anew.
    run_export(ExportRequest(run=run, precisions=("int8",), min_agreement=0.9))
    assert record(run, "int8").checks["agreement"] >= 0.9


def test_what_was_accepted_of_int8_still_is_where_other_files_are_asked_for(run: Path) -> None:
    folder = RunFolder.open(run)
    variant = folder.manifest.variants["dense"]
    accepted = replace(
        variant.onnx["int8"], checks={**variant.onnx["int8"].checks, "agreement": 0.6, LEAST_AGREEMENT: 0.5}
    )
    folder.save_variant(replace(variant, onnx={**variant.onnx, "int8": accepted}))
    before = moments(run)
    run_export(ExportRequest(run=run, precisions=("fp16",)))
    assert moments(run) == before
    # And where another engine needs them in another style.
    exported_run(run, ("int8",), engine="ort-cpu")
    assert record(run, "int8").checks[LEAST_AGREEMENT] == 0.5
    # Asked for by name, they are held to what is said.
    run_export(ExportRequest(run=run, precisions=("int8",), engine="ort-cpu", min_agreement=0.7))
    assert record(run, "int8").checks[LEAST_AGREEMENT] == 0.5
    run_export(ExportRequest(run=run, precisions=("int8",), engine="trt", min_agreement=0.7))
    assert record(run, "int8").checks[LEAST_AGREEMENT] == 0.7


def test_a_file_made_for_other_passes_does_not_outlive_a_refused_one(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the new evaluation set, the old file would be measured against what it does not compute."""
    monkeypatch.setitem(gates.check_parity.__globals__, "GATES", {"fp32": 1e-4, "tf32": 5e-3, "fp16": 0, "bf16": 3e-2})
    with pytest.raises(ParityError, match="the fp16 gate is"):
        run_export(ExportRequest(run=run, softmax=True))
    assert "dense-fp16.onnx" not in moments(run)
    assert "fp16" not in RunFolder.open(run).manifest.variants["dense"].onnx
    assert json.loads(read_onnx_file(run / "onnx/dense-bf16.onnx").metadata["softmax"]) is True


def test_int8_and_max_drop_need_data(small_model: Callable[..., Path], tmp_path: Path) -> None:
    run_without_data(small_model)
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    with pytest.raises(InputError, match=r"--precision int8: .*--data"):
        run_export(ExportRequest(run=Path("bare"), precisions=("fp32", "int8")))
    with pytest.raises(InputError, match=r"--max-drop 1: .*--data"):
        run_export(ExportRequest(run=Path("bare"), precisions=("fp16",), max_drop=1.0))
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


def test_data_may_be_named_for_a_run_without(small_model: Callable[..., Path]) -> None:
    run_without_data(small_model)
    run_export(ExportRequest(run=Path("bare"), precisions=("int8",), data="small_blocks:data", min_agreement=0))
    checks = RunFolder.open(Path("bare")).manifest.variants["dense"].onnx["int8"].checks
    assert {"accuracy", "agreement", LEAST_AGREEMENT, "sqnr_db"} == checks.keys()


def run_without_data(small_model: Callable[..., Path]) -> None:
    from prune2deploy.pipeline.prune import run_prune
    from prune2deploy.pipeline.requests import PruneRequest, Targets

    given = small_model(data=None)
    run_prune(PruneRequest(checkpoint=given, targets=Targets(flops=0.6), variants=("pruned",), out=Path("bare")))


def test_a_full_disk_leaves_no_partial_file(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, target: Path) -> None:
        target.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    before = moments(run)
    (run / "onnx/dense-bf16.onnx").unlink()
    monkeypatch.setattr(gates, "write_widened", full)
    with pytest.raises(StorageError, match="No space left"):
        run_export(ExportRequest(run=run, precisions=("bf16",)))
    assert moments(run).keys() == before.keys() - {"dense-bf16.onnx"}
