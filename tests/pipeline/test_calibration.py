"""Calibration images: of the training split, unaugmented, the same for the same run, in the form that files take."""

from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from prune2deploy.data.load import load_data
from prune2deploy.errors import DataError, InputError
from prune2deploy.export.passes.graph import BYTE_IMAGES, GraphPasses
from prune2deploy.pipeline.calibration import calibration_images
from prune2deploy.pipeline.requests import ExportRequest
from prune2deploy.progress import SILENT
from prune2deploy.run import RunFolder, RunManifest, VariantRecord

MakeRun = Callable[..., RunFolder]


@pytest.fixture
def make_run(small_model: Callable[..., Path], tmp_path: Path) -> MakeRun:
    """A run that holds one dense bundle of a network on one-channel images of 6x6 pixels."""

    def make(data: str | None = "small_blocks:data", seed: int = 0) -> RunFolder:
        manifest = RunManifest(
            command=("p2d", "prune"),
            created="2026-01-01T00:00:00+00:00",
            versions={},
            model="small_blocks:Blocks",
            input_shape=(1, 6, 6),
            data=data,
            seed=seed,
        )
        run = RunFolder.create(manifest, name="test", out=tmp_path / f"run{seed}")
        small_model(data=data).rename(run.bundle_path("dense"))
        run.save_variant(VariantRecord(name="dense", bundle="dense", flops=1, parameters=1))
        return run

    return make


def rows(images: np.ndarray) -> set[bytes]:
    return {image.tobytes() for image in images}


def split(name: str) -> np.ndarray:
    samples = getattr(load_data("small_blocks:data", input_shape=(1, 6, 6)), name)
    return np.stack([np.asarray(samples[index][0]) for index in range(len(samples))])


def test_images_come_from_the_training_split_and_never_from_the_evaluation_split(make_run):
    images = calibration_images(make_run(), ExportRequest(calibration_images=30), GraphPasses())
    assert images.shape == (30, 1, 6, 6)
    assert images.dtype == np.float32
    assert len(rows(images)) == 30
    assert rows(images) <= rows(split("calibration"))
    assert not rows(images) & rows(split("evaluation"))


def test_the_same_run_gives_the_same_images_and_another_seed_others(make_run):
    request = ExportRequest(calibration_images=10)
    run = make_run()
    images = calibration_images(run, request, GraphPasses())
    np.testing.assert_array_equal(images, calibration_images(run, request, GraphPasses()))
    assert rows(images) != rows(calibration_images(make_run(seed=1), request, GraphPasses()))


def test_fewer_images_than_asked_for_are_noted(make_run):
    notes = []

    class Noting:
        @staticmethod
        @contextmanager
        def task(description, *, total=None):
            with SILENT.task(description, total=total) as task:
                yield task

        note = staticmethod(notes.append)

    images = calibration_images(make_run(), ExportRequest(calibration_images=256), GraphPasses(), Noting())
    assert len(images) == 40
    assert notes == ["int8 is calibrated on 40 training images, fewer than the 256 asked for"]


def test_images_are_in_the_form_that_the_file_takes(make_run):
    run, request = make_run(), ExportRequest(calibration_images=8)
    plain = calibration_images(run, request, GraphPasses())
    constants = ((0.5,), (0.25,))
    unit = calibration_images(run, request, GraphPasses(normalize=constants))
    np.testing.assert_allclose(unit, plain * 0.25 + 0.5, rtol=1e-6)
    data = calibration_images(run, request, GraphPasses(normalize=constants, input_format=BYTE_IMAGES))
    assert data.dtype == np.uint8
    assert data.shape == (8, 6, 6, 1)


def test_without_data_the_message_names_the_option(make_run):
    with pytest.raises(InputError, match=r"--precision int8: .* without data; name some with --data"):
        calibration_images(make_run(data=None), ExportRequest(), GraphPasses())


def test_data_that_is_named_overrules_that_of_the_run(make_run):
    images = calibration_images(make_run(data=None), ExportRequest(data="digits", calibration_images=5), GraphPasses())
    assert images.shape == (5, 1, 6, 6)


def test_data_that_cannot_be_read_is_a_data_error(make_run):
    with pytest.raises(DataError, match="nowhere"):
        calibration_images(make_run(), ExportRequest(data="imagefolder:nowhere"), GraphPasses())
