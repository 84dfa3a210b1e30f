"""The proofs that a cut is right: equality with the gated dense model, a training step, and the cost as predicted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from prune2deploy.errors import ProofError
from prune2deploy.graph.channels import ChannelMask
from prune2deploy.graph.trace import Trace
from prune2deploy.surgery.culprits import blame
from prune2deploy.surgery.equality import FORWARD_ERRORS, compared
from prune2deploy.surgery.evaluation_mode import evaluated, left_as_it_was
from prune2deploy.surgery.gated import tensors_in

_WHAT_NOW = "nothing was saved; please report this model"


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What was shown of a pruned model.

    ``relative_error`` is the largest ‖y − ref‖/‖ref‖ over the outputs, against the gated dense model (in double
    precision where single was too coarse). FLOPs (batch 1) and parameters were counted on the pruned module and
    equal the closed form.
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

    ``inputs`` are positional arguments of ``forward`` with a batch of 1, as traced. The order of the proofs: the
    pruned model runs, its outputs equal the gated dense ones, it takes a training step (where the dense one does),
    and its cost is the predicted one.

    Raises:
        ProofError: one of these fails. The message names the groups at fault where it is not the cost.
    """

    def refused(fault: str) -> ProofError:
        culprits = blame(trace, dense, pruned, kept, inputs)
        return ProofError(f"{fault}; {culprits}", where=what, hint=_WHAT_NOW)

    try:
        comparison = compared(trace, dense, pruned, kept, inputs)
    except FORWARD_ERRORS as error:
        raise refused(f"the pruned network does not run: {_first_line(error)}") from error
    if comparison.fault is not None:
        raise refused(f"the pruned network is not the dense one without those channels: {comparison.fault}")
    if (failure := _training_failure(pruned, inputs)) is not None and _training_failure(dense, inputs) is None:
        raise refused(f"a training step fails: {_first_line(failure)}") from failure
    flops, parameters = _checked_cost(trace, dense, pruned, kept, inputs, what)
    return Proof(relative_error=comparison.relative_error, flops=flops, parameters=parameters)


def count_flops(model: nn.Module, inputs: Sequence[Any]) -> int:
    """FLOPs of one forward pass as ``torch.utils.flop_counter`` counts them, fused attention fast path off."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False) as counter:
            evaluated(model, inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops())


def count_parameters(model: nn.Module) -> int:
    """Learnable parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def _checked_cost(
    trace: Trace, dense: nn.Module, pruned: nn.Module, kept: ChannelMask, inputs: Sequence[Any], what: str
) -> tuple[int, int]:
    """FLOPs and parameters as predicted, once the pruned module agrees.

    FLOPs are compared where the counter and the closed form agree on the dense model: the counter knows of some
    operators (recurrent layers) only on some devices. An einsum that sums over one index is no matrix product and
    counts nothing.
    """
    cost = trace.graph.cost
    predicted = cost.flops(kept), cost.parameters(kept)
    counted = count_flops(pruned, inputs), count_parameters(pruned)
    agreed = (
        counted[0] == predicted[0]
        or count_flops(dense, inputs) != cost.dense_flops
        or (counted[0] < predicted[0] and _einsum_of_one_index(trace, kept))
    )
    if counted[1] != predicted[1] or not agreed:
        raise ProofError(
            f"predicted {predicted[0]} FLOPs and {predicted[1]} parameters, counted {counted[0]} and {counted[1]}",
            where=what,
            hint=_WHAT_NOW,
        )
    return predicted


def _einsum_of_one_index(trace: Trace, kept: ChannelMask) -> bool:
    """Whether some einsum sums over a dimension of which one index is left."""
    keeps = np.append(kept, True)  # the last entry answers for FROZEN = -1
    targets = {node.name: str(node.target) for node in trace.program.graph.nodes}
    return any(
        targets[read.node].startswith("aten.einsum") and int(keeps[read.channels].sum()) == 1 for read in trace.reads
    )


def _training_failure(model: nn.Module, inputs: Sequence[Any]) -> Exception | None:
    """What one forward and backward pass in training mode raises, if anything, on a batch of two."""
    doubled = torch.utils._pytree.tree_map_only(Tensor, _doubled, tuple(inputs))
    try:
        with left_as_it_was(model, training=True), torch.enable_grad():
            outputs = tensors_in(model(*doubled))
            torch.stack([output.float().square().mean() for output in outputs]).sum().backward()  # type: ignore[no-untyped-call]
    except FORWARD_ERRORS as error:
        return error
    return None


def _doubled(data: Tensor) -> Tensor:
    """A batch twice, the second time with other values where these are not indices."""
    return torch.cat([data, data * 0.5 + 0.1 if data.is_floating_point() else data]) if data.dim() else data.clone()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
