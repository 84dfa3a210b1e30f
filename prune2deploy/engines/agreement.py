"""The gate of int8: how often it names the class that fp32 names, and how loud its rounding is.

The relative error that other precisions are held to says little of int8, whose outputs differ a little everywhere and
whose answers are meant to be the same.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prune2deploy.engines.engine import BuiltEngine
from prune2deploy.engines.parity import filled_batch
from prune2deploy.errors import InputError, ParityError
from prune2deploy.evaluation import EvaluationSet
from prune2deploy.progress import SILENT, Progress

IMAGES_LIMIT = 2_000
"""Evaluation images that are compared at most: 99% of so many is known to 0.5 points."""

_BATCH = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How near an engine comes to another one.

    ``share`` is the fraction of images (of pixels, for maps) with the same largest output, in [0, 1]; None where the
    outputs are no scores of classes. ``sqnr_db`` is the signal-to-quantisation-noise ratio, 10·log10(Σref² / Σ(ref −
    y)²) over all outputs, in decibels; infinite where nothing differs. ``images`` is how many were compared.
    """

    share: float | None
    sqnr_db: float
    images: int


def measure_agreement(
    built: BuiltEngine,
    reference: BuiltEngine,
    evaluation: EvaluationSet,
    *,
    where: str,
    images: int = IMAGES_LIMIT,
    progress: Progress = SILENT,
) -> Agreement:
    """Run both engines on the first ``images`` evaluation inputs, which are in random order, and compare.

    Outputs are (N, classes), maps (N, classes, ...), or the best classes and their scores of a file with top-k; of
    those the first class of each is compared, and the scores in their order. Outputs of one value an image have no
    classes. Engines with a fixed batch, or one of their own, get it filled.

    Raises:
        ParityError: an output is not a number, or the two give different shapes.
        InputError: an engine has several inputs, or several outputs that are not those of top-k.
    """
    count = min(images, len(evaluation.inputs))
    tally = _Tally(where)
    batch = _batch_of(built, reference)
    with progress.task("Agreement with fp32", total=count) as task:
        for first in range(0, count, batch):
            real = min(batch, count - first)
            inputs = filled_batch(evaluation.inputs, first, real, batch)
            tally.add(_outputs(built, inputs), _outputs(reference, inputs), real)
            task.advance(real)
    return tally.result(count)


def check_agreement(
    built: BuiltEngine,
    reference: BuiltEngine,
    evaluation: EvaluationSet,
    *,
    min_agreement: float,
    where: str,
    images: int = IMAGES_LIMIT,
    progress: Progress = SILENT,
) -> Agreement:
    """As ``measure_agreement``, and refuse an engine that agrees on a smaller share than ``min_agreement``.

    Where the outputs have no classes, only what is not a number is refused, and a note says so.

    Raises:
        ParityError: the share is too small, or as ``measure_agreement``.
        InputError: as ``measure_agreement``.
    """
    found = measure_agreement(built, reference, evaluation, where=where, images=images, progress=progress)
    if found.share is None:
        progress.note(f"{where}: the outputs are no classes, so of int8 only the noise is known ({_decibels(found)})")
    # Written so that NaN fails: it compares False with everything.
    elif not found.share >= min_agreement:
        raise ParityError(
            f"int8 names the class that fp32 names on {found.share:.2%} of {found.images} images "
            f"({_decibels(found)}), and {min_agreement:.2%} is asked for",
            where=where,
            hint="try another --calibration, more --calibration-images or --float-ends, or accept it with "
            "--min-agreement",
        )
    return found


@dataclass(frozen=True, slots=True)
class _Outputs:
    """``values`` (N, ...) are what noise is measured on, ``classes`` the class of each image or pixel, if any."""

    values: NDArray[np.float64]
    classes: NDArray[np.int64] | None


class _Tally:
    """Sums over batches."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._signal = self._noise = 0.0
        self._same = self._compared = 0

    def add(self, outputs: _Outputs, expected: _Outputs, real: int) -> None:
        """Count the first ``real`` rows of a batch."""
        if outputs.values.shape != expected.values.shape:
            raise ParityError(
                f"its outputs have shape {outputs.values.shape}, those of fp32 {expected.values.shape}",
                where=self._where,
                hint="the file was refused; export it again",
            )
        values, reference = outputs.values[:real], expected.values[:real]
        if not np.isfinite(values).all() or not np.isfinite(reference).all():
            raise ParityError(
                "gives NaN or infinity", where=self._where, hint="the file was refused; try another --calibration"
            )
        self._signal += float(np.square(reference).sum())
        self._noise += float(np.square(reference - values).sum())
        if outputs.classes is not None and expected.classes is not None:
            same = outputs.classes[:real] == expected.classes[:real]
            self._same += int(same.sum())
            self._compared += same.size

    def result(self, images: int) -> Agreement:
        if self._noise == 0.0:
            decibels = math.inf
        else:
            decibels = 10 * math.log10(self._signal / self._noise) if self._signal else -math.inf
        share = self._same / self._compared if self._compared else None
        return Agreement(share=share, sqnr_db=decibels, images=images)


def _batch_of(*engines: BuiltEngine) -> int:
    """The batch that an engine is fixed to, if one is; else a moderate one.

    Raises:
        InputError: the engines are fixed to different ones.
    """
    fixed = {size for engine in engines if (size := engine.inputs[0].shape[0]) is not None}
    if len(fixed) > 1:
        raise InputError(
            f"the files have fixed batches of {' and '.join(map(str, sorted(fixed)))}",
            hint="export both with the same --batch",
        )
    return fixed.pop() if fixed else _BATCH


def _outputs(engine: BuiltEngine, inputs: NDArray[np.generic]) -> _Outputs:
    if len(engine.inputs) != 1:
        names = ", ".join(tensor.name for tensor in engine.inputs)
        raise InputError(f"the network has {len(engine.inputs)} inputs ({names})", hint="one image input is supported")
    tensor = engine.inputs[0]
    engine.bind({tensor.name: inputs.astype(tensor.dtype, copy=False)})
    engine.run()
    found = engine.read()
    if len(found) == 1:
        values = next(iter(found.values())).astype(np.float64)
        classes = values.argmax(axis=1) if values.ndim >= 2 and values.shape[1] > 1 else None
        return _Outputs(values, classes)
    ranked = [array for array in found.values() if np.issubdtype(array.dtype, np.integer)]
    scores = [array for array in found.values() if np.issubdtype(array.dtype, np.floating)]
    if len(ranked) != 1 or len(scores) != 1:
        raise InputError(f"the network has {len(found)} outputs ({', '.join(found)})", hint="one output is supported")
    return _Outputs(scores[0].astype(np.float64), ranked[0][:, 0].astype(np.int64))


def _decibels(found: Agreement) -> str:
    return f"signal to quantisation noise {found.sqnr_db:.1f} dB"
