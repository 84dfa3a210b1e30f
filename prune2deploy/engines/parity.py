"""The parity gate: an engine that computes something else than the model is never timed."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from prune2deploy.engines.engine import BuiltEngine
from prune2deploy.errors import InputError, ParityError
from prune2deploy.evaluation import EvaluationSet

GATES: Mapping[str, float] = {"fp32": 1e-4, "tf32": 5e-3, "fp16": 1e-2, "bf16": 3e-2}
"""Largest relative error ‖y − ref‖/‖ref‖ that each precision may have."""

_RUNS_PER_BATCH_SIZE = 8


def check_parity(
    built: BuiltEngine,
    evaluation: EvaluationSet,
    variant: str,
    *,
    precision: str,
    batches: tuple[int, ...] = (1, 7),
) -> float:
    """Compare an engine with the model's own outputs, and return the largest relative error.

    For each batch size up to eight different batches of the reference inputs are run, and the error of a batch
    is ‖y − ref‖/‖ref‖ over all its outputs, in float64. Engines with profiles run only the sizes they were built for.

    Raises:
        ParityError: an error is over the gate of ``precision``, is not a number, or the outputs have another shape.
        InputError: the evaluation set has no reference for ``variant``, or none large enough.
    """
    if precision not in GATES:
        raise InputError(f"there is no parity gate for {precision}", hint=f"choose from {', '.join(GATES)}")
    if variant not in evaluation.references:
        known = ", ".join(evaluation.references) or "none"
        raise InputError(
            f"holds no reference outputs of {variant!r} (it has: {known})",
            where="evaluation.npz",
            hint="run `p2d export` again",
        )
    reference = evaluation.references[variant]
    if len(reference) < max(batches):
        raise InputError(
            f"holds {len(reference)} reference outputs, and batch {max(batches)} needs as many",
            where="evaluation.npz",
            hint="export with more images, or check a smaller batch",
        )
    gate, worst = GATES[precision], 0.0
    for batch in batches:
        for first in range(0, min(len(reference) - batch + 1, batch * _RUNS_PER_BATCH_SIZE), batch):
            outputs = run_once(built, evaluation.inputs[first : first + batch])
            error = relative_error(outputs, reference[first : first + batch], variant=variant)
            # Written so that NaN fails: it compares False with everything.
            if not error <= gate:
                raise ParityError(
                    f"its outputs differ from the model's by {error:.3g} at batch {batch} (relative), "
                    f"the {precision} gate is {gate:.0e}",
                    where=variant,
                    hint="the file was refused; report this with the model's name",
                )
            worst = max(worst, error)
    return worst


def relative_error(outputs: NDArray[np.generic], reference: NDArray[np.generic], *, variant: str) -> float:
    """‖outputs − reference‖ / ‖reference‖ in float64; 0 where both are zero, infinite where only the reference is.

    Raises:
        ParityError: the shapes differ.
    """
    if outputs.shape != reference.shape:
        raise ParityError(
            f"its outputs have shape {outputs.shape}, the model's {reference.shape}",
            where=variant,
            hint="the file was refused; export it again",
        )
    expected = reference.astype(np.float64)
    difference = float(np.linalg.norm(outputs.astype(np.float64) - expected))
    scale = float(np.linalg.norm(expected))
    if scale == 0.0:
        return 0.0 if difference == 0.0 else float("inf")
    return difference / scale


def run_once(built: BuiltEngine, inputs: NDArray[np.float32]) -> NDArray[np.generic]:
    """Feed one batch to an engine with one input, and return its first output.

    Shape: (N, C, H, W) -> (N, ...). The batch is cast to the type that the engine takes.

    Raises:
        InputError: the engine has several inputs.
    """
    if len(built.inputs) != 1:
        names = ", ".join(tensor.name for tensor in built.inputs)
        raise InputError(f"the network has {len(built.inputs)} inputs ({names})", hint="one image input is supported")
    tensor = built.inputs[0]
    built.bind({tensor.name: inputs.astype(tensor.dtype, copy=False)})
    built.run()
    return built.read()[built.outputs[0].name]
