"""Whether a pruned network is the gated dense one: single precision first, and double where that is too coarse.

Deep networks amplify rounding: two right computations in single precision can differ by more than 1e-4. A
wrong one differs in any precision. So what fails in single precision is judged once more in double.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prune2deploy.budget.from_mask import plan_from_mask
from prune2deploy.graph.channels import ChannelMask
from prune2deploy.graph.trace import Trace
from prune2deploy.surgery.double import evaluated_in_double, in_double, wide_parameters
from prune2deploy.surgery.evaluation_mode import evaluated
from prune2deploy.surgery.gated import gated_outputs
from prune2deploy.surgery.sliced import sliced

MAXIMUM_RELATIVE_ERROR = 1e-4

FORWARD_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What a user's ``forward`` raises when a size in its code no longer fits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """``relative_error`` is the largest ‖y − ref‖/‖ref‖ over the outputs; ``fault`` says what is unlike, or is None."""

    relative_error: float
    fault: str | None


def compared(trace: Trace, dense: nn.Module, pruned: nn.Module, kept: ChannelMask, inputs: Sequence[Any]) -> Comparison:
    """``pruned`` beside ``dense`` with all channels outside ``kept`` gated. What ``pruned`` raises is let through."""
    return _compared(trace, dense, lambda: nullcontext(pruned), kept, inputs)


def slice_compared(trace: Trace, model: nn.Module, kept: ChannelMask, inputs: Sequence[Any]) -> Comparison:
    """``compared`` of ``model`` with its own slice, of which no copy is made. ``model`` is left as it was.

    Raises:
        ProofError: the cut would leave a convolution or norm with groups of different sizes.
    """
    plan = plan_from_mask(trace.graph, kept)
    return _compared(trace, model, lambda: sliced(model, plan), kept, inputs)


def _compared(
    trace: Trace,
    dense: nn.Module,
    pruned: Callable[[], AbstractContextManager[nn.Module]],
    kept: ChannelMask,
    inputs: Sequence[Any],
) -> Comparison:
    """The pruned model runs first: gated outputs are of no use where it fails, or gives something else in kind."""
    with pruned() as module:
        outputs = evaluated(module, inputs)
    single = comparison_of(gated_outputs(trace, dense, kept, inputs), outputs)
    if single.fault is None or single.relative_error == float("inf"):
        return single
    try:
        with pruned() as module:
            outputs = evaluated_in_double(module, inputs)
        with wide_parameters():
            reference = gated_outputs(trace, dense, kept, in_double(inputs), double=True)
    except FORWARD_ERRORS:  # the code itself insists on single precision
        return single
    return comparison_of(reference, outputs)


def comparison_of(reference: Sequence[Tensor], outputs: Sequence[Tensor]) -> Comparison:
    """Outputs beside those they should equal."""
    error = relative_error(reference, outputs)
    if len(reference) != len(outputs):
        return Comparison(relative_error=error, fault=f"it returns {len(outputs)} tensors instead of {len(reference)}")
    for number, (expected, actual) in enumerate(zip(reference, outputs, strict=True)):
        if expected.shape != actual.shape:
            fault = f"output {number} has shape {tuple(actual.shape)} instead of {tuple(expected.shape)}"
            return Comparison(relative_error=error, fault=fault)
    if not all(torch.isfinite(one).all() for one in reference):
        return Comparison(relative_error=error, fault="the dense model itself gives outputs that are not finite")
    if not all(torch.isfinite(one).all() for one in outputs):
        return Comparison(relative_error=error, fault="its outputs are not finite")
    if error > MAXIMUM_RELATIVE_ERROR:
        fault = f"relative error {error:.1e}, at most {MAXIMUM_RELATIVE_ERROR:.0e} is allowed"
        return Comparison(relative_error=error, fault=fault)
    return Comparison(relative_error=error, fault=None)


def relative_error(reference: Sequence[Tensor], outputs: Sequence[Tensor]) -> float:
    """Largest ‖y − ref‖/‖ref‖ over pairs of outputs; infinite where shapes, counts or finiteness differ."""
    if len(reference) != len(outputs):
        return float("inf")
    largest = 0.0
    for expected, actual in zip(reference, outputs, strict=True):
        if expected.shape != actual.shape or not torch.isfinite(actual).all() or not torch.isfinite(expected).all():
            return float("inf")
        norm = expected.double().norm().item()
        difference = (actual.double() - expected.double()).norm().item()
        largest = max(largest, difference / norm if norm > 0 else (0.0 if difference == 0 else float("inf")))
    return largest
