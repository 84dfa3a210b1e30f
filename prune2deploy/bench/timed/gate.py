"""What stands before every timing: an engine that computes something else than its model is never timed."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prune2deploy.bench.subjects import Subject
from prune2deploy.engines.engine import BuiltEngine
from prune2deploy.engines.parity import check_parity, filled_batch, relative_error, run_once
from prune2deploy.errors import ParityError
from prune2deploy.evaluation import EvaluationSet

INT8_AGREEMENT = 0.99
_STANDARD_ERRORS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Passed:
    """How near an engine came to its model: ‖y − ref‖/‖ref‖, and for int8 the share of images with the same class.

    Both None where there are no reference outputs of the variant, ``agreement`` also where there are no classes.
    """

    error: float | None = None
    agreement: float | None = None


def pass_gate(
    built: BuiltEngine, evaluation: EvaluationSet | None, subject: Subject, batches: tuple[int, ...]
) -> Passed:
    """Hold an engine to its model's own outputs, at the batch sizes that will be timed.

    Int8 is held to its answers and not to its numbers, see ``_int8``; every other precision to its parity gate.

    Raises:
        ParityError: it differs too much, or gives what is not a number.
        InputError: it takes other inputs than the evaluation set holds.
    """
    if evaluation is None or not len(evaluation.references.get(subject.variant, ())):
        return Passed()
    if subject.precision == "int8":
        return _int8(built, evaluation, subject, batches)
    return Passed(error=check_parity(built, evaluation, subject.variant, precision=subject.precision, batches=batches))


def not_finite(outputs: Mapping[str, NDArray[np.generic]]) -> tuple[str, ...]:
    """Names of the outputs that hold infinity or what is no number."""
    return tuple(name for name, values in outputs.items() if not _is_finite(values))


def _is_finite(values: NDArray[np.generic]) -> bool:
    if values.dtype.kind in "biuSUO":
        return True
    # Types that NumPy does not know itself, such as bfloat16, are of the kind "V" and become float32.
    floats = values if values.dtype.kind in "fc" else values.astype(np.float32)
    return bool(np.isfinite(floats).all())


def _int8(built: BuiltEngine, evaluation: EvaluationSet, subject: Subject, batches: tuple[int, ...]) -> Passed:
    """The share of reference images on which the engine names the class that the fp32 model names.

    It must reach what the file reached when it was exported, 99% at most, less three standard errors: there are only
    some dozens of references. An engine that computes something else does not come near that.
    """
    reference = evaluation.references[subject.variant]
    count, worst, share = len(reference), 0.0, None
    wanted = min(INT8_AGREEMENT, subject.agreement if subject.agreement is not None else 1.0)
    floor = wanted - _STANDARD_ERRORS * math.sqrt(wanted * (1 - wanted) / count)
    for batch in batches:
        outputs = np.concatenate(
            [
                run_once(built, filled_batch(evaluation.inputs, first, min(batch, count - first), batch))[
                    : count - first
                ]
                for first in range(0, count, batch)
            ]
        )
        error = relative_error(outputs, reference, variant=subject.variant)
        if not math.isfinite(error):
            raise ParityError(
                "its outputs are not all numbers", where=subject.variant, hint="export it with another --calibration"
            )
        worst = max(worst, error)
        # With top-k the first output is scores in their order, and tells no class.
        if len(built.outputs) > 1 or outputs.ndim < 2 or outputs.shape[1] < 2:
            continue
        found = float((outputs.argmax(axis=1) == reference.argmax(axis=1)).mean())
        if found < floor:
            raise ParityError(
                f"int8 names the class that fp32 names on {found:.1%} of {count} images at batch {batch}, "
                f"and at least {floor:.1%} are asked for",
                where=subject.variant,
                hint="the engine was refused; export again, with --engine for the one that will run the file",
            )
        share = found if share is None else min(share, found)
    return Passed(error=worst, agreement=share)
