"""The parity gate: an engine that computes something else than the model is never timed."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from prune2deploy.engines.engine import Array, BuiltEngine
from prune2deploy.errors import InputError, ParityError
from prune2deploy.evaluation import EvaluationSet

GATES: Mapping[str, float] = {"fp32": 1e-4, "tf32": 5e-3, "fp16": 1e-2, "bf16": 3e-2}
"""Largest relative error ‖y − ref‖/‖ref‖ that each precision may have."""

_BATCHES = (1, 7)
_RUNS_PER_BATCH_SIZE = 8


def check_parity(
    built: BuiltEngine,
    evaluation: EvaluationSet,
    variant: str,
    *,
    precision: str,
    batches: tuple[int, ...] | None = None,
) -> float:
    """Compare an engine with the model's own outputs, and return the largest relative error.

    For each batch size up to eight different batches of the reference inputs are run, and the error of a batch
    is ‖y − ref‖/‖ref‖ over all its first outputs, in float64. A batch larger than what is left of them is filled up
    with repeated inputs, whose outputs are not compared. ``batches`` None tries 1 and 7, or the one size that the
    network is fixed to; engines with profiles run only the sizes they were built for.

    Raises:
        ParityError: an error is over the gate of ``precision``, is not a number, or the outputs have another shape.
        InputError: the evaluation set has no reference for ``variant``.
    """
    if precision not in GATES:
        raise InputError(f"there is no parity gate for {precision}", hint=f"choose from {', '.join(GATES)}")
    reference = evaluation.references.get(variant)
    if reference is None or len(reference) == 0:
        known = ", ".join(evaluation.references) or "none"
        raise InputError(
            f"holds no reference outputs of {variant!r} (it has: {known})",
            where="evaluation.npz",
            hint="run `p2d export` again",
        )
    gate, worst = GATES[precision], 0.0
    for batch in batches or _batches_for(built):
        for first in range(0, min(len(reference), batch * _RUNS_PER_BATCH_SIZE), batch):
            expected = reference[first : first + batch]
            outputs = run_once(built, filled_batch(evaluation.inputs, first, len(expected), batch))
            error = relative_error(outputs[: len(expected)], expected, variant=variant)
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


def _batches_for(built: BuiltEngine) -> tuple[int, ...]:
    fixed = built.inputs[0].shape[0] if built.inputs and built.inputs[0].shape else None
    return _BATCHES if fixed is None else (fixed,)


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


def filled_batch(inputs: Array, first: int, count: int, batch: int) -> Array:
    """``count`` inputs from ``first`` on, repeated until they fill a batch: an engine may run that size alone.

    Shape: (N, ...) -> (batch, ...).
    """
    return inputs[np.resize(np.arange(first, first + count), batch)]


def run_once(built: BuiltEngine, inputs: Array) -> NDArray[np.generic]:
    """Feed one batch to an engine with one input, and return its first output.

    Shape: (N, ...) -> (N, ...). The batch is cast to the type that the engine takes.

    Raises:
        InputError: the engine has several inputs.
    """
    return run_for_outputs(built, inputs)[built.outputs[0].name]


def run_for_outputs(built: BuiltEngine, inputs: Array) -> Mapping[str, NDArray[np.generic]]:
    """As ``run_once``, and return every output by name."""
    if len(built.inputs) != 1:
        names = ", ".join(tensor.name for tensor in built.inputs)
        raise InputError(f"the network has {len(built.inputs)} inputs ({names})", hint="one image input is supported")
    tensor = built.inputs[0]
    built.bind({tensor.name: inputs.astype(tensor.dtype, copy=False)})
    built.run()
    return built.read()
