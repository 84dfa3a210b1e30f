"""Ranges of activations from calibration images, by ONNX Runtime's calibrators."""

import contextlib
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from prune2deploy.errors import DataError, InputError, StorageError
from prune2deploy.export.int8.entropy import LEVELS, entropy_threshold
from prune2deploy.export.int8.quiet import hushed
from prune2deploy.progress import SILENT, Progress, Task

METHODS = ("minmax", "entropy", "percentile")
_BATCH = 8
# Histograms take every activation out of the network; those of a batch must fit beside all else.
_ACTIVATION_BYTES = 256 * 2**20
_PERCENTILE = 99.999


def check_images(images: NDArray[Any], shape: tuple[int | None, ...]) -> None:
    """Make sure that ``images`` (N, ...) can calibrate a network whose input has ``shape`` (None: any size).

    Raises:
        DataError: there are none, they have another shape, hold NaN or infinity, or show nothing.
    """
    where = "--data"
    if len(images) == 0:
        raise DataError("holds no image to calibrate int8 on", where=where, hint="name data with training images")
    wanted = shape[1:]
    if len(images.shape) != len(shape) or any(
        size is not None and size != given for size, given in zip(wanted, images.shape[1:], strict=True)
    ):
        raise DataError(
            f"the calibration images have shape {images.shape[1:]}, the network takes {wanted}",
            where=where,
            hint="set the size with --input",
        )
    if not np.isfinite(images).all():
        raise DataError("the calibration images hold NaN or infinity", where=where, hint="repair or replace the data")
    flat = images.reshape(len(images), -1)
    if (flat.min(axis=1) == flat.max(axis=1)).all():
        raise DataError(
            "every calibration image is of one value throughout, which says nothing of the activations' ranges",
            where=where,
            hint="calibrate on real images",
        )


def activation_ranges(
    model: onnx.ModelProto,
    images: NDArray[Any],
    *,
    operators: Collection[str],
    method: str,
    symmetric: bool,
    progress: Progress = SILENT,
) -> Any:
    """Ranges of what ``operators`` read and write, as ONNX Runtime's quantizer takes them (``TensorsData``).

    ``images`` (N, ...) are what the network's only input takes. ``method``: "minmax" is the largest value seen,
    "percentile" leaves out 0.001% of the values, "entropy" takes the range of ``entropy.entropy_threshold``. All
    gather batch by batch, and so need the memory of one batch alone. ``symmetric``: ranges are centred on zero.

    Raises:
        StorageError: the system's folder for temporary files cannot be written.
    """
    from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

    # Entropy needs what percentile gathers: histograms of absolute values.
    wanted = CalibrationMethod.MinMax if method == "minmax" else CalibrationMethod.Percentile
    options: dict[str, Any] = {"symmetric": symmetric or method == "entropy", "percentile": _PERCENTILE}
    with _working_folder() as folder, hushed():
        path = folder / "network.onnx"
        path.write_bytes(model.SerializeToString())
        calibrator = create_calibrator(
            path,
            sorted(operators),
            augmented_model_path=str(folder / "augmented.onnx"),
            calibrate_method=wanted,
            providers=["CPUExecutionProvider"],
            extra_options=options,
        )
        with progress.task("Calibrating int8", total=len(images)) as task:
            for batch in _batches(model, images):
                calibrator.collect_data(_Reader(model.graph.input[0].name, batch, task))
            task.describe("choosing ranges")
            if method == "entropy":
                return _entropy_ranges(calibrator.collector.get_histogram_dict(), symmetric=symmetric)
            return calibrator.compute_data()


def _entropy_ranges(histograms: Mapping[str, tuple[Any, ...]], *, symmetric: bool) -> Any:
    """``histograms``: counts and edges of absolute values, and the least and largest value seen, by tensor."""
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData

    ranges = {}
    for name, (counts, edges, lowest, highest) in histograms.items():
        # All 255 steps of an unsigned range lie above zero where the values do.
        levels = LEVELS if symmetric or lowest < 0 else 2 * LEVELS
        kept = np.float32(entropy_threshold(counts, edges, levels=levels))
        low, high = (-kept, kept) if symmetric else (max(-kept, lowest), min(kept, highest))
        ranges[name] = TensorData(lowest=np.float32(low), highest=np.float32(high))
    return TensorsData(CalibrationMethod.Entropy, ranges)


class _Reader:
    """One batch, as a calibrator reads it."""

    def __init__(self, name: str, batch: NDArray[Any], task: Task) -> None:
        self._feeds: dict[str, NDArray[Any]] | None = {name: batch}
        self._task = task

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """The batch the first time, then None."""
        feeds, self._feeds = self._feeds, None
        if feeds is None:
            return None
        self._task.advance(len(next(iter(feeds.values()))))
        return feeds


def _batches(model: onnx.ModelProto, images: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Batches of the network's fixed size, the last filled up with images from the start; else of what fits."""
    sizes = model.graph.input[0].type.tensor_type.shape.dim
    fixed = sizes[0].dim_value if sizes[0].HasField("dim_value") else None
    if fixed:
        for first in range(0, len(images), fixed):
            yield images[np.arange(first, first + fixed) % len(images)]
        return
    batch = min(_BATCH, max(1, _ACTIVATION_BYTES // _bytes_of_one(model)))
    for first in range(0, len(images), batch):
        yield images[first : first + batch]


def _bytes_of_one(model: onnx.ModelProto) -> int:
    """Bytes of all float activations for one image, free sizes counted as 1."""
    total = 0
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        sizes = value.type.tensor_type.shape.dim
        total += 4 * int(np.prod([size.dim_value or 1 for size in sizes], dtype=np.int64))
    return max(1, total)


def known_method(name: str) -> str:
    """``name`` itself, if there is such a calibration.

    Raises:
        InputError: there is none.
    """
    if name not in METHODS:
        raise InputError(f"is no calibration; choose {', '.join(METHODS)}", where=f"--calibration {name}")
    return name


@contextlib.contextmanager
def _working_folder() -> Iterator[Path]:
    """A temporary folder, since calibrators read and write files of their own."""
    try:
        with tempfile.TemporaryDirectory(prefix="p2d-int8-") as folder:
            yield Path(folder)
    except OSError as error:
        raise StorageError(
            f"cannot be written ({error.strerror or error})",
            where=tempfile.gettempdir(),
            hint="free some space there, or name another folder with the variable TMPDIR",
        ) from error
