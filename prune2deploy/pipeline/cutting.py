"""From a model and a target to a proven cut: score, allocate, cut, prove."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prune2deploy.budget.allocate import Allocation, allocate, allocate_uniform
from prune2deploy.budget.from_mask import plan_from_mask
from prune2deploy.budget.ladder import Scores
from prune2deploy.budget.optimal import SOLVER_SECONDS
from prune2deploy.budget.plan import PrunePlan
from prune2deploy.budget.target import Budget
from prune2deploy.errors import InputError, TargetError
from prune2deploy.graph.channels import ChannelGraph, ChannelMask
from prune2deploy.importance.criteria import criterion_named, score_channels
from prune2deploy.importance.criterion import Batches
from prune2deploy.importance.flop_penalty import with_flop_penalty
from prune2deploy.pipeline.backends import Channels
from prune2deploy.pipeline.frozen import named_layers
from prune2deploy.progress import SILENT, Progress
from prune2deploy.surgery.verify import Proof, prove


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A pruned model with its plan, what the plan meets and what was proven of it."""

    model: nn.Module
    plan: PrunePlan
    allocation: Allocation
    proof: Proof


@dataclass(frozen=True, kw_only=True)
class CutChoices:
    """How to choose what leaves.

    ``granule`` None takes ``default_granule``, and gives way where the target cannot be reached with it.
    ``flop_penalty`` is β of ``importance.flop_penalty``. ``budget`` None: no target but a latency, which is measured.
    ``solver_seconds`` bounds each solution of the ranking ``optimal``.
    """

    budget: Budget | None
    method: str
    ranking: str = "global"
    granule: int | None = None
    default_granule: int = 16
    seed: int = 0
    flop_penalty: float = 0.0
    solver_seconds: float = SOLVER_SECONDS


def cut_to_budget(
    model: nn.Module,
    channels: Channels,
    inputs: Sequence[Any],
    choices: CutChoices,
    *,
    batches: Batches | None = None,
    progress: Progress = SILENT,
) -> Cut:
    """Remove what matters least until the budget holds, and prove the cut. ``model`` stays whole.

    Raises:
        TargetError: no plan reaches the budget, or nothing would be pruned.
        ProofError: the cut is not exact.
        InputError: the criterion cannot be used with what is given.
    """
    if choices.budget is None:
        raise InputError("no target is given", hint="say what may stay, for instance --flops 0.33")
    scores = scores_for(model, channels, choices, batches=batches, progress=progress)
    allocation = allocate(
        channels.graph,
        scores,
        choices.budget,
        granule=choices.granule or choices.default_granule,
        ranking=choices.ranking,
        relax_alignment=choices.granule is None,
        solver_seconds=choices.solver_seconds,
    )
    provenance = provenance_of(channels, choices, allocation, choices.budget.fractions)
    with progress.task("cutting and proving"):
        return proven(model, channels, inputs, allocation, provenance, what="pruned")


def provenance_of(
    channels: Channels, choices: CutChoices, allocation: Allocation, targets: Mapping[str, float]
) -> dict[str, Any]:
    """How a plan came about, as it is printed and stored with it."""
    return {
        "method": choices.method,
        "backend": channels.backend,
        "attention": channels.traced.attention.value,
        "ranking": choices.ranking,
        "targets": dict(targets),
        "alignment": allocation.granule,
        "seed": choices.seed,
        **({"flop_penalty": choices.flop_penalty} if choices.flop_penalty else {}),
    }


def cut_uniformly(
    model: nn.Module,
    channels: Channels,
    inputs: Sequence[Any],
    *,
    flops: int,
    granule: int,
    what: str = "reduced",
) -> Cut:
    """The plainly narrower network with about ``flops`` FLOPs; its weights are a slice, to be drawn anew.

    ``what`` names the variant where a proof fails.

    Raises:
        ProofError: the cut is not exact.
    """
    allocation = allocate_uniform(channels.graph, flops, granule=granule)
    provenance = {
        "method": "uniform",
        "backend": channels.backend,
        "attention": channels.traced.attention.value,
        "alignment": allocation.granule,
    }
    return proven(model, channels, inputs, allocation, provenance, what=what)


def example_inputs(input_shape: Sequence[int], *, seed: int = 0) -> tuple[Tensor]:
    """A random image of ``input_shape`` (C, H, W) as a batch of 1, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(1, *input_shape, generator=generator),)


def layer_widths(graph: ChannelGraph, masks: dict[str, ChannelMask]) -> list[dict[str, Any]]:
    """Width and FLOPs of each group's layer, dense and under each mask, for the report."""
    everything = graph.everything()
    dense_widths, dense_flops = graph.kept_widths(everything), graph.cost.flops_by_layer(everything)
    widths = {name: graph.kept_widths(mask) for name, mask in masks.items()}
    flops = {name: graph.cost.flops_by_layer(mask) for name, mask in masks.items()}
    rows = []
    for group in graph.groups:
        row: dict[str, Any] = {
            "name": group.name,
            "exact": group.exact,
            "dense": dense_widths[group.index],
            "flops_dense": dense_flops.get(group.name, 0),
        }
        for name in masks:
            row[name] = widths[name][group.index]
            row[f"flops_{name}"] = flops[name].get(group.name, 0)
        rows.append(row)
    return rows


def inexact_cuts(graph: ChannelGraph, kept: ChannelMask) -> list[str]:
    """The groups that ``kept`` cuts inexactly: statistics are taken over their channels."""
    widths = zip(graph.groups, graph.kept_widths(kept), strict=True)
    return [group.name for group, width in widths if not group.exact and width < group.width]


def inexact_note(groups: Sequence[str]) -> list[str]:
    """What the user is told of inexact cuts, if there are any."""
    if not groups:
        return []
    cut = "1 group was" if len(groups) == 1 else f"{len(groups)} groups were"
    return [
        f"{cut} cut inexactly ({named_layers(list(dict.fromkeys(groups)))}): a norm, a mean or the like takes its "
        "statistics over their channels, so the pruned model is not simply the dense one with those channels at zero; "
        "--exact-only leaves them whole"
    ]


def scores_for(
    model: nn.Module,
    channels: Channels,
    choices: CutChoices,
    *,
    batches: Batches | None = None,
    progress: Progress = SILENT,
) -> Scores:
    """What makes each channel matter, by the criterion that is chosen. Shape: (channel_count,).

    Raises:
        TargetError: there is no channel that could leave.
        InputError: the criterion cannot be used with what is given.
    """
    graph = channels.graph
    if not graph.groups:
        raise TargetError("nothing can be pruned: every channel is frozen", hint="see why with `p2d inspect`")
    criterion = criterion_named(choices.method)
    scores = score_channels(graph, model, batches, criterion=criterion, seed=choices.seed, progress=progress)
    return with_flop_penalty(graph, scores, choices.flop_penalty)


def proven(
    model: nn.Module,
    channels: Channels,
    inputs: Sequence[Any],
    allocation: Allocation,
    provenance: dict[str, Any],
    *,
    what: str,
) -> Cut:
    """Cut ``model`` to ``allocation``, of ``channels``, and prove it; ``model`` stays whole.

    Raises:
        ProofError: the cut is not exact; ``what`` names it.
    """
    inexact = inexact_cuts(channels.graph, allocation.kept)
    plan = plan_from_mask(channels.graph, allocation.kept, {**provenance, "inexact": inexact})
    pruned = channels.cut(model, plan)
    proof = prove(channels.traced, model, pruned, allocation.kept, inputs, what=what)
    return Cut(model=pruned, plan=plan, allocation=allocation, proof=proof)
