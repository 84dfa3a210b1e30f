"""Exports whose files take bytes, give the best classes and keep their weights beside them, from run to record."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from prune2deploy.engines.onnx_file import read_onnx_file
from prune2deploy.errors import InputError
from prune2deploy.evaluation import EvaluationSet
from prune2deploy.pipeline.export import run_export
from prune2deploy.pipeline.requests import ExportRequest, TrainingChoices, TrainRequest
from prune2deploy.pipeline.train import run_train
from prune2deploy.run import OnnxRecord, RunFolder

NETWORK = """
from torch import nn

class Digits(nn.Module):
    def __init__(self, num_classes=10, in_channels=1):
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 32, 3, padding=1)
        self.head = nn.Linear(32 * 16, num_classes)

    def forward(self, image):
        return self.head(nn.functional.max_pool2d(self.stem(image).relu(), 2).flatten(1))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run with one trained variant, exported plainly."""
    folder = tmp_path_factory.mktemp("forms")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        (folder / "network_of_forms.py").write_text(NETWORK)
        training = TrainingChoices(epochs=3, batch_size=32)
        run_train(TrainRequest(model="network_of_forms:Digits", training=training, out=Path("run")))
        run_export(ExportRequest(run=Path("run")))
        yield folder / "run"
    torch.set_num_threads(threads)


def record(run: Path) -> OnnxRecord:
    return RunFolder.open(run).manifest.variants["dense"].onnx["fp32"]


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "onnx").iterdir())


def test_another_form_of_file_is_as_accurate_and_recorded_with_all_its_weights(run: Path) -> None:
    plain = record(run)
    request = ExportRequest(
        run=run, input_format="uint8-nhwc", source_size=(24, 32), softmax=True, top_k=3, external_data=True
    )
    run_export(request)
    made = record(run)
    assert names(run) == ["dense-fp32.onnx", "dense-fp32.onnx.data", "evaluation.npz"]
    assert EvaluationSet.load(run / "onnx" / "evaluation.npz").inputs.shape[1:] == (24, 32, 1)
    # Rounding to bytes may move an image or two over the border between classes.
    assert made.checks["accuracy"] == pytest.approx(plain.checks["accuracy"], abs=0.01)
    file = read_onnx_file(run / made.file)
    assert (file.sha256, file.bytes_total) == (made.sha256, made.bytes_total)
    assert [output.name for output in file.outputs] == ["scores", "classes"]

    before = (run / made.file).stat().st_mtime_ns
    run_export(request)
    assert (run / made.file).stat().st_mtime_ns == before

    with pytest.raises(InputError, match="--top-k 11: the network has 10 classes"):
        run_export(ExportRequest(run=run, top_k=11))
    assert record(run) == made
    assert read_onnx_file(run / made.file).sha256 == made.sha256

    run_export(ExportRequest(run=run, batch=4))
    assert names(run) == ["dense-fp32.onnx", "evaluation.npz"]
    assert read_onnx_file(run / record(run).file).inputs[0].shape == (4, 1, 8, 8)
    assert EvaluationSet.load(run / "onnx" / "evaluation.npz").inputs.dtype == np.float32
