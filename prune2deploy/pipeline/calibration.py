"""Images that int8 is calibrated on: of the training split, so that the evaluation split stays unseen."""

from collections.abc import Sized
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from prune2deploy.checkpoint.bundle import read_manifest
from prune2deploy.data.load import load_data
from prune2deploy.data.splits import Normalization
from prune2deploy.errors import DataError, InputError
from prune2deploy.export.passes.file_inputs import file_inputs
from prune2deploy.export.passes.graph import GraphPasses
from prune2deploy.pipeline.places import settled_data
from prune2deploy.pipeline.requests import ExportRequest
from prune2deploy.progress import SILENT, Progress
from prune2deploy.run import RunFolder

_BYTES_LIMIT = 512 * 2**20


def calibration_images(
    run: RunFolder, request: ExportRequest, passes: GraphPasses, progress: Progress = SILENT
) -> NDArray[Any]:
    """``request.calibration_images`` training images without augmentation, as a file with ``passes`` takes them.

    They come from ``request.data``, else from the run's own data, chosen by the run's seed: the same run gives the same
    images. Fewer are taken, and a note says so, where the data has fewer or they would take more than 512 MB.

    Raises:
        InputError: there is no data.
        DataError: the data cannot be read, is empty, or does not fit the network.
    """
    named = request.data or run.manifest.data
    if named is None:
        raise InputError(
            "int8 is calibrated on images, and the run was made without data",
            where="--precision int8",
            hint="name some with --data, as in --data imagefolder:DIR",
        )
    first = read_manifest(run.bundle_path(next(iter(run.manifest.variants))))
    channels, height, width = run.manifest.input_shape
    constants = first.normalization
    splits = load_data(
        settled_data(named),
        input_shape=(channels, height, width),
        augment=False,
        normalization=None if constants is None else Normalization(mean=constants[0], std=constants[1]),
        progress=progress,
    )
    rng = np.random.default_rng(run.manifest.seed)
    images = _drawn(splits.calibration, (channels, height, width), request.calibration_images, rng, progress)
    return file_inputs(images, passes)


def _drawn(
    samples: Dataset[Any], shape: tuple[int, int, int], wanted: int, rng: np.random.Generator, progress: Progress
) -> NDArray[np.float32]:
    available = len(cast(Sized, samples))
    if available == 0:
        raise DataError("the training split is empty", where="--data", hint="int8 needs images to calibrate on")
    count = min(wanted, available, max(1, _BYTES_LIMIT // (4 * int(np.prod(shape)))))
    if count < wanted:
        progress.note(f"int8 is calibrated on {count} training images, fewer than the {wanted} asked for")
    images = np.empty((count, *shape), dtype=np.float32)
    with progress.task("Calibration images", total=count) as task:
        for row, index in enumerate(rng.permutation(available)[:count]):
            image, _ = samples[int(index)]
            if tuple(image.shape) != shape:
                raise DataError(
                    f"sample {index} has shape {tuple(image.shape)}, the model takes {shape}",
                    where="--data",
                    hint="set the size with --input",
                )
            images[row] = np.asarray(image, dtype=np.float32)
            task.advance()
    return images
