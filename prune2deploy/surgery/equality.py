"""How two sets of outputs are compared."""

from collections.abc import Sequence

import torch
from torch import Tensor

MAXIMUM_RELATIVE_ERROR = 1e-4


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


def difference(reference: Sequence[Tensor], outputs: Sequence[Tensor]) -> str | None:
    """What is unlike in ``outputs``, in words; None where the relative error is at most 1e-4."""
    if len(reference) != len(outputs):
        return f"it returns {len(outputs)} tensors instead of {len(reference)}"
    for number, (expected, actual) in enumerate(zip(reference, outputs, strict=True)):
        if expected.shape != actual.shape:
            return f"output {number} has shape {tuple(actual.shape)} instead of {tuple(expected.shape)}"
    if not all(torch.isfinite(one).all() for one in reference):
        return "the dense model itself gives outputs that are not finite"
    if not all(torch.isfinite(one).all() for one in outputs):
        return "its outputs are not finite"
    error = relative_error(reference, outputs)
    if error > MAXIMUM_RELATIVE_ERROR:
        return f"relative error {error:.1e}, at most {MAXIMUM_RELATIVE_ERROR:.0e} is allowed"
    return None
