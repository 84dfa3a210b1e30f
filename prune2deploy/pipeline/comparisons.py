"""The variants that a pruned network is compared with, all trained from fresh weights by one recipe.

They are those of Crowley et al. 2018, "A closer look at structured pruning for neural network compression":

- ``reduced``: the dense architecture uniformly narrower, at the FLOPs of ``pruned``;
- ``bottleneck``: only the inside of its blocks uniformly narrower, at the same FLOPs where that can be reached;
- ``scratch``: the architecture that pruning found.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from prune2deploy.budget.from_mask import mask_from_plan
from prune2deploy.budget.plan import PrunePlan
from prune2deploy.errors import InputError
from prune2deploy.graph.channels import ChannelGraph
from prune2deploy.model.initialise import reinitialise
from prune2deploy.pipeline.cutting import cut_uniformly, layer_widths
from prune2deploy.pipeline.making import PRUNED, Work
from prune2deploy.pipeline.restrictions import INSIDE_BLOCKS, Restrictions, reasons_to_stay
from prune2deploy.pipeline.variants import keep_variant
from prune2deploy.training.loop import train

REDUCED = "reduced"
BOTTLENECK = "bottleneck"
SCRATCH = "scratch"
FROM_SCRATCH = frozenset({REDUCED, BOTTLENECK, SCRATCH})

_NEAR_ENOUGH = 0.02
"""Two networks whose FLOPs differ by no more than this share count as equally large (``docs/pruning.md``)."""


def make_comparisons(work: Work, names: Collection[str]) -> None:
    """Make those of ``names`` that are comparisons and that the run does not hold; it holds ``pruned`` already.

    Raises:
        ProofError: a cut is not exact.
        StorageError: a variant cannot be written; the run is as it was.
    """
    for name, make in _MAKERS.items():
        if name in names and name not in work.run.manifest.variants:
            make(work)


def check_comparisons(graph: ChannelGraph, names: Collection[str]) -> None:
    """Refuse a variant that this model cannot have, before any work is done for it.

    Raises:
        InputError: ``bottleneck`` is asked for, and every channel lies on a residual stream.
    """
    if BOTTLENECK in names and all(group.stream for group in graph.groups):
        raise InputError(
            "no channel lies inside a residual block, so only streams could get narrower",
            where="--variants bottleneck",
            hint="leave bottleneck out of --variants",
        )


def make_reduced(work: Work) -> None:
    """The dense architecture uniformly narrower, at the FLOPs of ``pruned``."""
    cut = cut_uniformly(
        work.subject.model,
        work.channels,
        work.inputs,
        flops=work.run.manifest.variants[PRUNED].flops,
        granule=int(work.run.manifest.pruning["alignment"]),
    )
    for note in cut.allocation.notes:
        work.run.note(note)
    train_from_scratch(work, REDUCED, cut.model, cut.plan)


def make_bottleneck(work: Work) -> None:
    """The dense architecture with only the insides of its blocks uniformly narrower; residual streams stay."""
    graph = work.channels.graph
    inside = work.channels.without_groups(reasons_to_stay(graph, Restrictions(scope=INSIDE_BLOCKS)))
    flops = work.run.manifest.variants[PRUNED].flops
    cut = cut_uniformly(
        work.subject.model,
        inside,
        work.inputs,
        flops=flops,
        granule=int(work.run.manifest.pruning["alignment"]),
        what=BOTTLENECK,
    )
    reached = graph.cost.flops(mask_from_plan(graph, cut.plan))
    if not any(group.stream for group in graph.groups):
        work.run.note("the model has no residual streams, so bottleneck is the same network as reduced")
    if abs(reached / flops - 1) > _NEAR_ENOUGH:
        work.run.note(
            f"bottleneck keeps {reached / graph.cost.dense_flops:.3f} of the FLOPs, where pruned keeps "
            f"{flops / graph.cost.dense_flops:.3f}: the insides of blocks come no nearer"
        )
    train_from_scratch(work, BOTTLENECK, cut.model, cut.plan)


def make_scratch(work: Work) -> None:
    """The pruned architecture with fresh weights."""
    plan = work.plan
    train_from_scratch(work, SCRATCH, work.channels.cut(work.subject.model, plan), plan)


_MAKERS: Mapping[str, Callable[[Work], None]] = {
    REDUCED: make_reduced,
    BOTTLENECK: make_bottleneck,
    SCRATCH: make_scratch,
}


def train_from_scratch(work: Work, name: str, model: nn.Module, plan: PrunePlan) -> None:
    """Draw the weights of ``model``, which ``plan`` cut out of the subject, anew; train it and keep it as ``name``.

    With no data it stays untrained, and its accuracy unknown.
    """
    graph = work.channels.graph
    kept = mask_from_plan(graph, plan)
    reinitialise(model, work.subject.spec, seed=work.seed)
    accuracies: dict[str, float] = {}
    training: dict[str, Any] = {}
    if work.splits is not None:
        result = train(
            model,
            work.splits,
            work.scratch,
            state_path=work.run.training_path(name),
            resume=work.resume,
            teacher=work.teacher,
            description=f"training {name}",
            progress=work.progress,
        )
        accuracies["final"] = result.accuracy
        training = result.to_document()
    keep_variant(
        work.run,
        name,
        model,
        work.subject,
        plan=plan,
        splits=work.splits,
        flops=graph.cost.flops(kept),
        parameters=graph.cost.parameters(kept),
        accuracies=accuracies,
        training=training,
        epochs=work.scratch.epochs if work.splits is not None else 0,
    )
    _record_widths(work, name, plan)


def _record_widths(work: Work, name: str, plan: PrunePlan) -> None:
    """Add the widths of a variant to the rows of layers that the report shows."""
    graph, manifest = work.channels.graph, work.run.manifest
    rows = layer_widths(graph, {name: mask_from_plan(graph, plan)})
    layers = [{**known, **row} for known, row in zip(manifest.pruning["layers"], rows, strict=True)]
    work.run.save(replace(manifest, pruning={**manifest.pruning, "layers": layers}))
