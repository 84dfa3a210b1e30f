"""The proofs that a cut is right: equality with the gated dense model, a training step, and the cost as predicted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from prune2deploy.errors import ProofError
from prune2deploy.graph.channels import ChannelMask
from prune2deploy.graph.trace import Trace
from prune2deploy.surgery.gated import gated_outputs, tensors_in

MAXIMUM_RELATIVE_ERROR = 1e-4
_WHAT_NOW = "nothing was saved; please report this model, and protect the layer meanwhile"


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What was shown of a pruned model.

    ``relative_error`` is the largest ‖y − ref‖/‖ref‖ over the outputs, against the gated dense model. FLOPs
    (batch 1) and parameters were counted on the pruned module and equal the closed form.
    """

    relative_error: float
    flops: int
    parameters: int


def prove(
    trace: Trace,
    dense: nn.Module,
    pruned: nn.Module,
    kept: ChannelMask,
    inputs: Sequence[Any],
    *,
    what: str = "the cut",
) -> Proof:
    """Prove that ``pruned`` is ``dense`` without the channels outside ``kept``. Both are left as they were.

    ``inputs`` are positional arguments of ``forward`` with a batch of 1, as traced.

    Raises:
        ProofError: an output differs in shape or value, a training step fails, or the cost is not the predicted one.
    """
    error = relative_error(gated_outputs(trace, dense, kept, inputs), _evaluated(pruned, inputs))
    if not error <= MAXIMUM_RELATIVE_ERROR:
        raise ProofError(
            f"the pruned network is not the dense one without those channels (relative error {error:.1e}, "
            f"at most {MAXIMUM_RELATIVE_ERROR:.0e} is allowed)",
            where=what,
            hint=_WHAT_NOW,
        )
    _check_training_step(pruned, inputs, what)
    flops, parameters = count_flops(pruned, inputs), count_parameters(pruned)
    predicted = trace.graph.cost.flops(kept), trace.graph.cost.parameters(kept)
    counted_dense = count_flops(dense, inputs)
    if parameters != predicted[1] or (counted_dense == trace.graph.cost.dense_flops and flops != predicted[0]):
        raise ProofError(
            f"predicted {predicted[0]} FLOPs and {predicted[1]} parameters, counted {flops} and {parameters}",
            where=what,
            hint=_WHAT_NOW,
        )
    return Proof(relative_error=error, flops=predicted[0], parameters=parameters)


def relative_error(reference: Sequence[Tensor], outputs: Sequence[Tensor]) -> float:
    """Largest ‖y − ref‖/‖ref‖ over pairs of outputs; infinite where shapes, counts or finiteness differ."""
    if len(reference) != len(outputs):
        return float("inf")
    largest = 0.0
    for expected, actual in zip(reference, outputs, strict=True):
        if expected.shape != actual.shape or not torch.isfinite(actual).all():
            return float("inf")
        norm = expected.double().norm().item()
        difference = (actual.double() - expected.double()).norm().item()
        largest = max(largest, difference / norm if norm > 0 else (0.0 if difference == 0 else float("inf")))
    return largest


def count_flops(model: nn.Module, inputs: Sequence[Any]) -> int:
    """FLOPs of one forward pass as ``torch.utils.flop_counter`` counts them, fused attention fast path off."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False) as counter:
            _evaluated(model, inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops())


def count_parameters(model: nn.Module) -> int:
    """Learnable parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def _evaluated(model: nn.Module, inputs: Sequence[Any]) -> list[Tensor]:
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            return tensors_in(model(*inputs))
    finally:
        for module, was in training.items():
            module.training = was


def _check_training_step(model: nn.Module, inputs: Sequence[Any], what: str) -> None:
    """One forward and backward pass in training mode; statistics, gradients, modes and randomness are put back."""
    training = {module: module.training for module in model.modules()}
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    doubled = [torch.cat([one, one * 0.5 + 0.1]) if isinstance(one, Tensor) else one for one in inputs]
    model.train()
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(0)
            outputs = tensors_in(model(*doubled))
            sum(output.float().square().mean() for output in outputs).backward()  # type: ignore[union-attr]
    except (RuntimeError, ValueError, IndexError) as error:
        raise ProofError(f"a training step fails: {str(error).splitlines()[0]}", where=what, hint=_WHAT_NOW) from error
    finally:
        for module, was in training.items():
            module.training = was
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        for parameter, gradient in gradients:
            parameter.grad = gradient
