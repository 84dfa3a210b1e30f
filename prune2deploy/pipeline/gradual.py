"""``p2d prune --cuts`` and ``--every-steps``: the fine-tuning itself cuts, a little at a time."""

import copy
import math
from dataclasses import replace
from functools import partial

import numpy as np

from prune2deploy.budget.allocate import Allocation
from prune2deploy.budget.from_mask import mask_from_plan
from prune2deploy.data.splits import DataSplits
from prune2deploy.errors import InputError, TargetError
from prune2deploy.pipeline.backends import AUTO, GRAPH, MODULE, Channels
from prune2deploy.pipeline.cutting import CutChoices, inexact_cuts, inexact_note, proven
from prune2deploy.pipeline.latency.methods import MethodLatency
from prune2deploy.pipeline.making import PRUNED, Work
from prune2deploy.pipeline.record import pruning_record
from prune2deploy.pipeline.requests import PruneRequest
from prune2deploy.pipeline.subject import DENSE
from prune2deploy.pipeline.variants import keep_variant
from prune2deploy.policies.aim import Aim
from prune2deploy.policies.gradual import FISHER, Gradual, GradualOptions, cutting_steps
from prune2deploy.training.evaluate import dataset_size
from prune2deploy.training.history import TrainingResult
from prune2deploy.training.loop import train
from prune2deploy.training.recipe import TrainingRecipe

DEFAULT_GRADUAL_METHOD = FISHER
AFTER_LAST_CUT = "after_last_cut"


def gradual_options(request: PruneRequest, method: str) -> GradualOptions | None:
    """How the fine-tuning is to cut, None where the whole cut comes first.

    Raises:
        InputError: a number is out of its range.
    """
    if request.cuts is None and request.every_steps is None:
        return None
    return GradualOptions(
        criterion=method, every_steps=request.every_steps, cuts=request.cuts, flop_penalty=request.flop_penalty
    )


def check_gradual(
    request: PruneRequest, options: GradualOptions, splits: DataSplits | None, tuning: TrainingRecipe
) -> None:
    """Refuse what cannot be, before any work is done for it.

    Raises:
        InputError: there is nothing to train on, the training is too short for the cuts, the graph is to be edited, or
            a compiled step is to be listened to.
    """
    asked = "--cuts" if options.cuts is not None else "--every-steps"
    if splits is None:
        raise InputError("cuts while it fine-tunes, and there is no data", where=asked, hint="pass --data")
    if request.backend == GRAPH:
        raise InputError(
            "cuts while it fine-tunes, which only sliced modules can do",
            where=f"{asked}, --backend graph",
            hint="leave --backend out, or cut once",
        )
    if options.criterion == FISHER and tuning.compile is not None:
        raise InputError(
            "listens to the layers while they train, and those of a compiled step cannot be heard",
            where=f"{asked}, --method fisher, --compile {tuning.compile}",
            hint="leave --compile out, or choose --method taylor",
        )
    images, batch = dataset_size(splits.train), tuning.batch_size
    dropped = images > batch and images % batch == 1  # as the training loop does with a last batch of one image
    cutting_steps(options, tuning.epochs * (math.ceil(images / batch) - dropped))


def check_reachable(restricted: Channels, choices: CutChoices) -> None:
    """Refuse a target that no plan reaches, before a run is opened for it.

    Raises:
        TargetError: there is none, or nothing would be pruned.
    """
    graph = restricted.graph
    if not graph.groups:
        raise TargetError("nothing can be pruned: every channel is frozen", hint="see why with `p2d inspect`")
    if choices.budget is not None:
        _aim(choices).allocation(graph, np.zeros(graph.channel_count), budget=choices.budget)


def backend_for(request: PruneRequest, options: GradualOptions | None) -> tuple[str, tuple[str, ...]]:
    """The backend to find channels with, and what to say of it."""
    if options is None or request.backend != AUTO:
        return request.backend, ()
    return MODULE, ("modules are sliced: an edited graph cannot be cut while it trains",)


def make_pruned_gradually(
    work: Work,
    restricted: Channels,
    choices: CutChoices,
    options: GradualOptions,
    *,
    notes: tuple[str, ...],
    latency: MethodLatency | None = None,
) -> None:
    """Fine-tune a copy of the dense model under ``Gradual``, prove what it cut in all, and keep it as ``pruned``.

    ``restricted`` are the channels that may leave, ``notes`` what is known before. The plan enters the manifest here.
    With a ``latency``, whose budget ``choices`` have, the network is measured once it has all its cuts.

    Raises:
        TargetError: no plan reaches the target.
        ProofError: the cuts together are not exact; nothing is kept.
        StorageError: the variant cannot be written; the run is as it was.
    """
    if PRUNED in work.run.manifest.variants or work.splits is None:
        return
    whole, graph = work.channels, work.channels.graph
    model = copy.deepcopy(work.subject.model)
    aim = _aim(choices)
    if latency is not None:
        aim = replace(aim, settle=partial(latency.settle, ranking=choices.ranking))
    result = train(
        model,
        work.splits,
        work.tuning,
        state_path=work.run.training_path(PRUNED),
        resume=work.resume,
        policy=Gradual(restricted.graph, aim, options),
        teacher=work.teacher,
        description="fine-tuning and cutting",
        progress=work.progress,
    )
    if result.plan is None:
        raise TargetError("nothing was pruned", hint="ask for a smaller fraction, or lower --align")
    findings = result.findings.document
    kept = mask_from_plan(graph, result.plan)
    allocation = Allocation(
        kept=kept,
        flops_fraction=graph.cost.flops(kept) / max(graph.cost.dense_flops, 1),
        parameters_fraction=graph.cost.parameters(kept) / max(graph.cost.dense_parameters, 1),
        granule=int(findings["granule"]),
        notes=result.findings.notes,
    )
    provenance = {
        "method": choices.method,
        "schedule": {key: findings[key] for key in ("every_steps", "share", "flop_penalty")} | {"cuts": options.cuts},
        "backend": whole.backend,
        "attention": whole.traced.attention.value,
        "ranking": choices.ranking,
        "targets": {} if choices.budget is None else dict(choices.budget.fractions),
        "alignment": allocation.granule,
        "seed": choices.seed,
    }
    with work.progress.task("proving the cuts"):
        cut = proven(work.subject.model, whole, work.inputs, allocation, provenance, what=PRUNED)
    manifest = work.run.manifest
    record = pruning_record(whole, restricted, cut, choices) | {"findings": dict(findings)}
    on_latency = () if latency is None else latency.enter(record, cut.plan)
    said = (*notes, *result.findings.notes, *inexact_note(inexact_cuts(graph, kept)), *on_latency)
    work.run.save(replace(manifest, pruning=record, notes=tuple(dict.fromkeys((*manifest.notes, *said)))))
    epochs = work.subject.trained_epochs
    keep_variant(
        work.run,
        PRUNED,
        model,
        work.subject,
        plan=cut.plan,
        splits=work.splits,
        flops=graph.cost.flops(kept),
        parameters=graph.cost.parameters(kept),
        accuracies={
            "before_pruning": manifest.variants[DENSE].accuracies["final"],
            AFTER_LAST_CUT: _accuracy_after_last_cut(result),
            "final": result.accuracy,
        },
        training=result.to_document(),
        epochs=None if epochs is None else epochs + work.tuning.epochs,
    )


def _aim(choices: CutChoices) -> Aim:
    return Aim(
        budget=choices.budget,
        granule=choices.granule,
        default_granule=choices.default_granule,
        ranking=choices.ranking,
        seed=choices.seed,
        solver_seconds=choices.solver_seconds,
    )


def _accuracy_after_last_cut(result: TrainingResult) -> float:
    """That at the end of the epoch in which the last cut fell."""
    last = int(result.findings.document["cuts"][-1]["epoch"])
    return result.history[last - 1].accuracy
