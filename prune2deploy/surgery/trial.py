"""Sizes written in a user's ``forward`` cannot be seen in the graph: cut on trial, and freeze what breaks.

All groups are cut at distinct widths in a copy with random weights, which must then equal its gated dense self.
Where it does not, those that break the code are found (``surgery.culprits``) and frozen with that reason.
"""

import copy
import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from prune2deploy.budget.from_mask import plan_from_mask
from prune2deploy.graph.channels import ChannelGraph, ChannelMask
from prune2deploy.graph.trace import Trace
from prune2deploy.surgery.culprits import cut_failure, cut_is_exact, find_failing, find_named
from prune2deploy.surgery.dry_run import DryRun
from prune2deploy.surgery.suspects import Suspects

_DISTINCT_WIDTHS = 7
_WIDE = 32
_DRAWN = 1_048_573
"""Normal numbers that are drawn; weights take them from a place of their own, round and round. A prime, so that no two
rows of a weight are equal. Drawing one for each weight would take longer than the trial."""
_LEAST_VARIANCE = 0.1
"""Of a channel, as a share of the mean over channels."""
_REASON = "a size written in the code: the module fails, or computes something else, when these channels leave"


def freeze_what_breaks(trace: Trace, model: nn.Module, inputs: Sequence[Any]) -> Trace:
    """The trace with those groups frozen that the module's own code cannot do without. ``model`` is left as it was.

    ``inputs`` are positional arguments of ``forward``, of the shapes that were traced.
    """
    sample = randomised_copy(model, inputs=inputs)
    exact = trace if trial_is_exact(trace, sample, inputs) else without_culprits(trace, sample, inputs)
    return keep_what_cannot_leave(exact, sample, inputs)


def trial_is_exact(trace: Trace, sample: nn.Module, inputs: Sequence[Any]) -> bool:
    """Whether ``sample``, a randomised copy of the traced model, can lose some of every group at once."""
    return cut_is_exact(trace, sample, trial_mask(trace.graph, range(len(trace.graph.groups))), inputs)


def without_culprits(trace: Trace, sample: nn.Module, inputs: Sequence[Any]) -> Trace:
    """The trace with those groups frozen that make the trial fail, which is known to fail.

    Shapes are tried first, without data; only what they do not show needs arithmetic.
    """
    suspects = Suspects(trace)
    candidates = [group.index for group in trace.graph.groups]
    broken: list[int] = []
    dry = DryRun(sample, inputs)
    if dry.works:
        broken = find_named(
            candidates,
            lambda groups: dry.failure(plan_from_mask(trace.graph, trial_mask(trace.graph, groups))),
            suspects.named_by,
        )
    broken += find_named(
        [index for index in candidates if index not in broken],
        lambda groups: cut_failure(trace, sample, trial_mask(trace.graph, groups), inputs),
        suspects.named_by,
    )
    return trace.without_groups(dict.fromkeys(sorted(broken), _REASON), lines=suspects.lines)


def keep_what_cannot_leave(trace: Trace, sample: nn.Module, inputs: Sequence[Any]) -> Trace:
    """The trace without those residual branches whose modules the code cannot do without.

    Code may take several results from a module, or read its attributes, which the exported program does not show.
    """
    branches = trace.graph.branches

    def passes(some: Collection[int]) -> bool:
        kept = trace.graph.everything()
        for group in {index for number in some for index in branches[number].groups}:
            kept[trace.graph.groups[group].channels] = False
        return cut_is_exact(trace, sample, kept, inputs)

    failing = find_failing(range(len(branches)), passes)
    if not failing:
        return trace
    return replace(trace, graph=trace.graph.without_branches({branches[number].name for number in failing}))


def trial_mask(graph: ChannelGraph, groups: Collection[int]) -> ChannelMask:
    """A mask that cuts each of ``groups`` by a different number of channels, spread over the group.

    Wide groups lose half besides: what is left is small to hold and quick to run.
    """
    kept = graph.everything()
    for index in groups:
        channels = graph.groups[index].channels
        half = len(channels) // 2 if len(channels) >= _WIDE else 0
        removed = min(half + 1 + index % _DISTINCT_WIDTHS, len(channels) - 1)
        kept[channels[np.arange(removed) * len(channels) // max(removed, 1)]] = False
    return kept


def randomised_copy(model: nn.Module, *, seed: int = 0, inputs: Sequence[Any] | None = None) -> nn.Module:
    """A copy whose weights and statistics are all random and of sane size, so that no zero hides an error.

    Buffers of unequal entries are kept: they are tables or statistics already, and code may rely on their values.
    With ``inputs``, batch norms have the statistics of what reaches them then. Without, each residual addition may
    double the scale, and in networks of hundreds of layers rounding grows into differences of the size of errors.
    """
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(_DRAWN, generator=generator)
    memo: dict[int, Any] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        varied = (
            not isinstance(tensor, nn.Parameter) and tensor.numel() > 1 and bool((tensor != tensor.flatten()[0]).any())
        )
        if tensor.is_floating_point() and id(tensor) not in memo and not varied:
            values = _random_like(tensor, generator, normal)
            memo[id(tensor)] = nn.Parameter(values) if isinstance(tensor, nn.Parameter) else values
    copied = copy.deepcopy(model, memo).eval()
    if inputs is not None:
        _take_statistics(copied, inputs)
    return copied


def _take_statistics(model: nn.Module, inputs: Sequence[Any]) -> None:
    """Give batch norms the mean and variance of what they read, one after the other in a single run."""

    def take(norm: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, _BatchNorm)
        data = arguments[0].transpose(0, 1).flatten(1) if arguments[0].dim() > 1 else arguments[0][:, None]
        if norm.running_mean is None or norm.running_var is None or data.shape[1] < 2:
            return
        variance, mean = torch.var_mean(data, 1, correction=0)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance + _LEAST_VARIANCE * variance.mean())  # dead channels are not blown up

    hooks = [module.register_forward_pre_hook(take) for module in model.modules() if isinstance(module, _BatchNorm)]
    try:
        if hooks:
            with torch.no_grad():
                model(*torch.utils._pytree.tree_map_only(Tensor, Tensor.clone, tuple(inputs)))
    finally:
        for hook in hooks:
            hook.remove()


def _random_like(tensor: Tensor, generator: torch.Generator, normal: Tensor) -> Tensor:
    if tensor.dim() >= 2 and math.prod(tensor.shape[1:]) > 1:
        scale = math.sqrt(2.0 / math.prod(tensor.shape[1:]))
        start = int(torch.randint(len(normal), (), generator=generator))
        times = -(-(start + tensor.numel()) // len(normal))
        return (normal.repeat(times)[start : start + tensor.numel()].view(tensor.shape) * scale).to(tensor)
    return (torch.rand(tensor.shape, generator=generator) + 0.5).to(tensor)
