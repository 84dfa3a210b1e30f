"""Benchmarks of runs and of files by name: which files are measured, on which engine, at which precision."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from prune2deploy.checkpoint.bundle import save_bundle
from prune2deploy.errors import EngineError, InputError
from prune2deploy.model.spec import ModelSpec, build_model
from prune2deploy.pipeline.bench import run_bench_command
from prune2deploy.pipeline.export import run_export
from prune2deploy.pipeline.measurable import exported_run, usable_engine
from prune2deploy.pipeline.outcomes import BenchOutcome
from prune2deploy.pipeline.prune import run_prune
from prune2deploy.pipeline.requests import BenchRequest, ExportRequest, PruneRequest, Targets

NETWORK = """
import torch
from torch import nn
from torch.utils.data import TensorDataset


class Chain(nn.Module):
    def __init__(self, num_classes=3):
        super().__init__()
        self.first = nn.Conv2d(1, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, num_classes)

    def forward(self, image):
        return self.head(self.second(self.first(image).relu()).relu().mean((2, 3)))


def data():
    images = torch.randn(60, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(60) % 3
    return TensorDataset(images[:40], labels[:40]), TensorDataset(images[40:], labels[40:])
"""


@pytest.fixture(scope="module")
def made_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run of a tiny network, dense and pruned, that is exported at fp32; its folder is the current one."""
    folder = tmp_path_factory.mktemp("bench")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        Path("bench_network.py").write_text(NETWORK)
        spec = ModelSpec.parse("bench_network:Chain")
        described = {"class_count": 3, "data": "bench_network:data", "provenance": {"epochs": 1}}
        save_bundle(
            folder / "given", build_model(spec, seed=3), spec=spec, plan=None, input_shape=(1, 6, 6), **described
        )
        run_prune(
            PruneRequest(
                checkpoint=folder / "given",
                targets=Targets(flops=0.6),
                alignment=1,
                variants=("dense", "pruned"),
                out=folder / "run",
            )
        )
        run_export(ExportRequest(run=folder / "run"))
        yield folder / "run"
    torch.set_num_threads(threads)


@pytest.fixture
def small_run(made_run: Path, tmp_path: Path) -> Path:
    """A copy of that run, which a test may change."""
    return shutil.copytree(made_run, tmp_path / "run")


def measured(**asked: object) -> BenchOutcome:
    fields = {"batches": (1,), "threads": 1, "builds": 1, "max_seconds": 2.0, **asked}
    return run_bench_command(BenchRequest(**fields))


def half_of(path: Path) -> Path:
    """The same network with half weights, inputs and outputs."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32:
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    del model.graph.value_info[:]
    onnx.save(model, path.with_name("half.onnx"))
    return path.with_name("half.onnx")


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_a_run_is_measured_on_every_engine_with_parity_and_accuracy(small_run: Path, engine: str) -> None:
    document = measured(run=small_run, engine=engine).document
    assert [(row["variant"], row["engine"]) for row in document["rows"]] == [("dense", engine), ("pruned", engine)]
    for row in document["rows"]:
        assert row["parity_max_error"] < 1e-4
        assert row["accuracy"] is not None
        assert row["latency_ns"]["p50"] > 0


def test_torch_is_refused_a_file_of_which_no_bundle_is_known(small_run: Path) -> None:
    with pytest.raises(EngineError, match="torch runs bundles, and no bundle is known"):
        measured(onnx_files=(small_run / "onnx/dense-fp32.onnx",), engine="torch")


def test_torch_is_refused_a_run_whose_files_normalise(small_run: Path) -> None:
    run_export(ExportRequest(run=small_run, softmax=True))
    with pytest.raises(InputError, match="was exported with --softmax, and torch runs the bundle"):
        measured(run=small_run, engine="torch")


def test_files_by_name_are_measured_at_their_own_precision(small_run: Path) -> None:
    half = half_of(small_run / "onnx/dense-fp32.onnx")
    with pytest.raises(EngineError, match=r"holds no fp16 layer \(fp32 100% of FLOPs\)"):
        measured(onnx_files=(half,), engine="ort-cpu")
    rows = measured(onnx_files=(small_run / "onnx/dense-fp32.onnx",), engine="ort-cpu").document["rows"]
    assert [row["precision"] for row in rows] == ["fp32"]


def test_files_of_different_precisions_are_not_compared(small_run: Path) -> None:
    first = small_run / "onnx/dense-fp32.onnx"
    with pytest.raises(InputError, match="no dense-fp32 file of fp16 to compare with"):
        measured(onnx_files=(first, half_of(first)), engine="ort-cpu")


def test_a_precision_that_is_not_that_of_the_file_is_refused(small_run: Path) -> None:
    first = small_run / "onnx/dense-fp32.onnx"
    with pytest.raises(InputError, match="its weights are fp32, so it cannot be run as int8"):
        measured(onnx_files=(first,), engine="ort-cpu", precisions=("int8",))
    with pytest.raises(InputError, match="--precision fp32,fp16: files are measured at one precision each"):
        measured(onnx_files=(first,), engine="ort-cpu", precisions=("fp32", "fp16"))


def test_a_precision_that_the_engine_lacks_is_refused_before_anything_is_exported(small_run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in small_run.rglob("*")}
    with pytest.raises(InputError, match="--precision: torch has no int8; choose from bf16, fp16, fp32, tf32"):
        measured(run=small_run, engine="torch", precisions=("int8",))
    assert {path: path.stat().st_mtime_ns for path in small_run.rglob("*")} == before


def test_another_batch_than_the_one_of_the_files_is_refused_with_theirs(small_run: Path) -> None:
    run_export(ExportRequest(run=small_run, batch=2))
    with pytest.raises(InputError, match="fixed to batch size 2, not 1; use --batch 2"):
        measured(run=small_run, engine="ort-cpu", batches=(1,))


def test_auto_takes_an_engine_that_has_the_precisions() -> None:
    assert {"fp32", "bf16"} <= usable_engine("auto", ("fp32", "bf16")).precisions


def test_what_is_missing_is_exported_like_the_rest(small_run: Path) -> None:
    run_export(ExportRequest(run=small_run, softmax=True, batch=2))
    (small_run / "onnx/pruned-fp32.onnx").unlink()
    exported_run(small_run, ("fp32",), engine="ort-cpu")
    model = onnx.load(small_run / "onnx/pruned-fp32.onnx")
    assert model.graph.node[-1].op_type == "Softmax"
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2
