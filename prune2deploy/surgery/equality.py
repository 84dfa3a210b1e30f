"""Whether a pruned network is the gated dense one: single precision first, and double where that is too coarse.

Deep networks amplify rounding: two right computations in single precision can differ by more than 1e-4. A
wrong one differs in any precision. So what fails in single precision is judged once more in double.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prune2deploy.graph.channels import ChannelMask
from prune2deploy.graph.trace import Trace
from prune2deploy.surgery.evaluation_mode import evaluated
from prune2deploy.surgery.gated import gated_outputs

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
    outputs = evaluated(pruned, inputs)
    single = comparison_of(gated_outputs(trace, dense, kept, inputs), outputs)
    if single.fault is None or single.relative_error == float("inf"):
        return single
    wide = [copy.deepcopy(model).double() for model in (dense, pruned)]
    doubled = torch.utils._pytree.tree_map_only(Tensor, _double, tuple(inputs))
    try:
        return comparison_of(gated_outputs(trace, wide[0], kept, doubled), evaluated(wide[1], doubled))
    except FORWARD_ERRORS:  # the code itself insists on single precision
        return single


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


def _double(data: Tensor) -> Tensor:
    return data.double() if data.is_floating_point() else data
