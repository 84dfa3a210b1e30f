"""``p2d train --method``: training that is pruned on the way, and the variants to compare its outcome with."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, nn

from prune2deploy.budget.alignment import granule_for
from prune2deploy.budget.from_mask import mask_from_plan, plan_from_mask
from prune2deploy.budget.plan import PrunePlan
from prune2deploy.budget.target import COST_WORDS, Budget
from prune2deploy.errors import TargetError
from prune2deploy.latency.setting import Setting
from prune2deploy.model.initialise import reinitialise
from prune2deploy.pipeline.backends import MODULE, Channels, find_channels
from prune2deploy.pipeline.comparisons import check_comparisons, make_comparisons
from prune2deploy.pipeline.cutting import example_inputs, inexact_cuts, inexact_note, layer_widths
from prune2deploy.pipeline.frozen import frozen_rows
from prune2deploy.pipeline.latency.cut import budget_of, setting_of
from prune2deploy.pipeline.latency.methods import MethodLatency, fitted_latency, uniform_choices
from prune2deploy.pipeline.latency.search import TOLERANCE
from prune2deploy.pipeline.making import PRUNED, Work
from prune2deploy.pipeline.outcomes import MethodOutcome
from prune2deploy.pipeline.requests import MethodChoices, TrainRequest
from prune2deploy.pipeline.restrictions import Restrictions, reasons_to_stay
from prune2deploy.pipeline.runs import check_repeats, end_run, new_run, run_to_resume
from prune2deploy.pipeline.scratch import Scratch, open_scratch
from prune2deploy.pipeline.subject import DENSE
from prune2deploy.pipeline.variants import keep_variant, training_costs, variant_rows
from prune2deploy.policies.aim import Aim
from prune2deploy.policies.registry import METHODS, policy_named
from prune2deploy.progress import Progress
from prune2deploy.run import RunFolder
from prune2deploy.surgery.trial import randomised_copy
from prune2deploy.surgery.verify import Proof, prove
from prune2deploy.training.loop import train

_IMPORTANCE_IS_CHANNELS = (
    "what the report calls importance is the share of channels: nothing was trained when the widths were chosen"
)


@dataclass(frozen=True, kw_only=True)
class _Task:
    """One training under a method. ``whole`` are all channels of the model, ``free`` those that it may remove.

    ``latency`` is there where one is among the targets, and the network is still to be made.
    """

    request: TrainRequest
    scratch: Scratch
    whole: Channels
    free: Channels
    aim: Aim
    inputs: tuple[Tensor]
    progress: Progress
    latency: MethodLatency | None = None


def run_method(request: TrainRequest, progress: Progress) -> MethodOutcome:
    """Train a model under a method that prunes it, and keep it as the variant ``pruned`` of a run.

    ``dense`` is there to be timed against: untrained, unless it is among the variants asked for. The outcome says
    where a target was not reached; the run is kept all the same.

    Raises:
        ModelError, DataError, InputError: the model, the data or a choice cannot be used.
        TargetError: the method knows that it cannot reach its target; nothing was kept.
        ProofError: the cut is not exact; the pruned model was not kept.
        StorageError: the run cannot be written; ``resume`` goes on from what is there.
    """
    METHODS[request.method].options(**request.pruning.options)  # refuses bad values before any work is done
    setting = _setting(request.pruning)
    scratch = open_scratch(request, progress)
    options = _options(request, scratch, setting)
    resumed = run_to_resume("train", out=request.out, progress=progress) if request.resume else None
    if resumed is not None:
        check_repeats(resumed, model=scratch.spec, options=options)
        if resumed.manifest.finished:
            return _outcome(resumed)
    made = resumed is not None and PRUNED in resumed.manifest.variants
    with ExitStack() as stack:
        task = stack.enter_context(_prepared(request, scratch, None if made else setting, progress))
        if resumed is None:
            run = stack.enter_context(
                new_run(
                    command=request.command,
                    model=scratch.spec,
                    input_shape=scratch.splits.input_shape,
                    data=scratch.splits.name,
                    seed=request.seed,
                    options=options,
                    out=request.out,
                )
            )
        else:
            run = resumed
        if not made:
            _make_pruned(task, run, resume=resumed is not None)
        make_comparisons(_work(task, run, resume=resumed is not None), request.pruning.variants)
        end_run(run)
    return _outcome(run)


@contextmanager
def _prepared(request: TrainRequest, scratch: Scratch, setting: Setting | None, progress: Progress) -> Iterator[_Task]:
    """All that a training needs; ``setting`` is where a latency is to be measured, None where none is."""
    choices = request.pruning
    inputs = example_inputs(scratch.splits.input_shape, seed=request.seed)
    whole = find_channels(scratch.model.eval(), inputs, backend=MODULE, progress=progress)
    check_comparisons(whole.graph, choices.variants)
    restrictions = Restrictions(
        scope=choices.scope, protect=choices.protect, only=choices.only, exact_only=choices.exact_only
    )
    free = whole.without_groups(reasons_to_stay(whole.graph, restrictions))
    if not free.graph.groups:
        raise TargetError("nothing can be pruned: every channel is frozen", hint="see why with `p2d inspect`")
    aim = Aim(
        budget=_budget(request, free),
        granule=choices.alignment,
        default_granule=_granule_wanted(choices, setting),
        ranking=choices.chosen_ranking,
        seed=request.seed,
        solver_seconds=choices.solver_seconds,
    )
    task = _Task(request=request, scratch=scratch, whole=whole, free=free, aim=aim, inputs=inputs, progress=progress)
    target = None if choices.targets is None else choices.targets.latency
    if setting is None or target is None:
        yield task
        return
    dense = scratch.subject_of(scratch.built_again().eval())
    alike = np.ones(free.graph.channel_count)
    with fitted_latency(dense, free, target, setting, uniform_choices(aim), scores=alike, progress=progress) as latency:
        settle = partial(latency.settle, ranking=aim.ranking)
        yield replace(task, aim=replace(aim, budget=latency.budget, settle=settle), latency=latency)


def _setting(choices: MethodChoices) -> Setting | None:
    """Where a latency is measured, None where none is a target."""
    if choices.targets is None or choices.targets.latency is None:
        return None
    return setting_of(choices.engine, choices.precision, choices.batch, choices.threads)


def _budget(request: TrainRequest, free: Channels) -> Budget | None:
    """All targets but a latency."""
    choices = request.pruning
    if choices.targets is None:
        return None
    return budget_of(choices.targets, free, batch=choices.batch, precision=choices.precision)


def _granule_wanted(choices: MethodChoices, setting: Setting | None) -> int:
    return granule_for(choices.engine if setting is None else setting.engine, choices.precision)


def _make_pruned(task: _Task, run: RunFolder, *, resume: bool) -> None:
    """Train under the method, prove what it cut, and keep ``dense`` and ``pruned``."""
    request, scratch = task.request, task.scratch
    method = request.method
    model = scratch.model
    result = train(
        model,
        scratch.splits,
        scratch.recipe,
        state_path=run.training_path(PRUNED),
        resume=resume,
        policy=policy_named(method, task.free.traced, task.aim, request.pruning.options),
        reinitialise=lambda pruned: reinitialise(pruned, scratch.spec, seed=request.seed),
        description=f"training under {method}",
        progress=task.progress,
    )
    graph = task.whole.graph
    dense = scratch.built_again().eval()
    plan = result.plan or plan_from_mask(graph, graph.everything(), {"method": method})
    kept = mask_from_plan(graph, plan)
    with task.progress.task("proving the cuts"):
        proof = _proof(task, dense, plan)
    inexact = inexact_cuts(graph, kept)
    plan = replace(plan, provenance={**plan.provenance, "inexact": inexact})
    record = _record_of(task, plan, proof)
    on_latency = () if task.latency is None else task.latency.enter(record, plan)
    if task.latency is not None and not task.latency.is_settled:
        on_latency = (_IMPORTANCE_IS_CHANNELS, *on_latency)
    notes = (*task.whole.notes, *result.findings.notes, *inexact_note(inexact), *on_latency)
    run.save(
        replace(
            run.manifest,
            pruning=record,
            notes=tuple(dict.fromkeys((*run.manifest.notes, *notes))),
        )
    )
    _keep_dense(task, run, dense, resume=resume)
    keep_variant(
        run,
        PRUNED,
        model,
        scratch.subject_of(model),
        plan=plan,
        splits=scratch.splits,
        flops=graph.cost.flops(kept),
        parameters=graph.cost.parameters(kept),
        accuracies={"final": result.accuracy},
        training=result.to_document(),
        epochs=scratch.recipe.epochs,
    )


def _proof(task: _Task, dense: nn.Module, plan: PrunePlan) -> Proof:
    """Prove all cuts together on random weights: those that were trained differ from cut to cut.

    Raises:
        ProofError: the plan is not exact.
    """
    sample = randomised_copy(dense, inputs=task.inputs)
    pruned = task.whole.cut(sample, plan)
    return prove(task.whole.traced, sample, pruned, mask_from_plan(task.whole.graph, plan), task.inputs, what=PRUNED)


def _keep_dense(task: _Task, run: RunFolder, dense: nn.Module, *, resume: bool) -> None:
    """The dense architecture: with its initial weights to be timed against, or trained by the same recipe."""
    if DENSE in run.manifest.variants:
        return
    scratch, cost = task.scratch, task.whole.graph.cost
    accuracies: dict[str, float] = {}
    training: dict[str, Any] = {}
    trained = DENSE in task.request.pruning.variants
    if trained:
        result = train(
            dense,
            scratch.splits,
            scratch.recipe,
            state_path=run.training_path(DENSE),
            resume=resume,
            description="training dense",
            progress=task.progress,
        )
        accuracies, training = {"final": result.accuracy}, result.to_document()
    else:
        run.note("dense is untrained, so that only its speed means something: --variants dense,pruned trains it too")
    keep_variant(
        run,
        DENSE,
        dense,
        scratch.subject_of(dense),
        plan=None,
        splits=scratch.splits,
        flops=cost.dense_flops,
        parameters=cost.dense_parameters,
        accuracies=accuracies,
        training=training,
        epochs=scratch.recipe.epochs if trained else 0,
    )


def _work(task: _Task, run: RunFolder, *, resume: bool) -> Work:
    """What the comparison variants need: they are trained by the recipe of ``pruned``, from fresh weights."""
    return Work(
        subject=task.scratch.subject_of(task.scratch.built_again().eval()),
        splits=task.scratch.splits,
        channels=task.whole,
        inputs=task.inputs,
        run=run,
        tuning=task.scratch.recipe,
        scratch=task.scratch.recipe,
        seed=task.request.seed,
        resume=resume,
        progress=task.progress,
    )


def _options(request: TrainRequest, scratch: Scratch, setting: Setting | None) -> dict[str, Any]:
    choices = request.pruning
    return {
        "command": "train",
        "data": scratch.splits.name,
        "input_shape": list(scratch.splits.input_shape),
        "method": request.method,
        "recipe": scratch.recipe.to_document(),
        "method_options": dict(choices.options),
        "targets": {} if choices.targets is None else choices.targets.to_document(),
        "ranking": choices.chosen_ranking,
        "scope": choices.scope,
        "protect": list(choices.protect),
        "only": list(choices.only),
        "exact_only": choices.exact_only,
        "alignment": choices.alignment or f"auto, {_granule_wanted(choices, setting)}",
        "latency_on": None if setting is None else asdict(setting),
        "variants": list(choices.variants),
        "seed": request.seed,
    }


def _record_of(task: _Task, plan: PrunePlan, proof: Proof) -> dict[str, Any]:
    """What the manifest keeps of the pruning, in the form that ``p2d prune`` gives it."""
    graph = task.whole.graph
    kept = mask_from_plan(graph, plan)
    options = METHODS[task.request.method].options(**task.request.pruning.options)
    budget, free = task.aim.budget, task.free.graph
    aimed_at = {} if budget is None else budget.achieved(free.cost, mask_from_plan(free, plan))
    return {
        "method": task.request.method,
        "criterion": getattr(options, "criterion", None) or task.request.method,
        "options": asdict(options),
        "backend": task.whole.backend,
        "attention": task.whole.traced.attention.value,
        "ranking": task.aim.ranking,
        "targets": {} if task.aim.budget is None else dict(task.aim.budget.fractions),
        "achieved": {
            "flops": graph.cost.flops(kept) / max(graph.cost.dense_flops, 1),
            "parameters": graph.cost.parameters(kept) / max(graph.cost.dense_parameters, 1),
            **aimed_at,
        },
        "alignment": _granule_of(plan, task.aim),
        "proof_relative_error": proof.relative_error,
        "layers": layer_widths(graph, {PRUNED: kept}),
        "frozen": [asdict(row) for row in frozen_rows(task.free.graph)],
        "inexact": inexact_cuts(graph, kept),
        "plan": plan.to_document(),
    }


def _granule_of(plan: PrunePlan, aim: Aim) -> int:
    """The granule that the last cut was made with, which may have given way for the target's sake."""
    made_with = plan.provenance.get("alignment", plan.provenance.get("granule"))
    return aim.widest_granule if made_with is None else int(made_with)


def _outcome(run: RunFolder) -> MethodOutcome:
    manifest, pruning = run.manifest, run.manifest.pruning
    return MethodOutcome(
        run=run.path,
        bundle=run.bundle_path(PRUNED),
        model=manifest.model,
        data=manifest.data or "",
        method=pruning["method"],
        alignment=pruning["alignment"],
        targets=pruning["targets"],
        achieved=pruning["achieved"],
        variants=variant_rows(manifest),
        latency=pruning.get("latency"),
        costs=training_costs(manifest),
        notes=manifest.notes,
        shortfall=_shortfall(pruning),
        hint=METHODS[pruning["method"]].advice,
    )


def _shortfall(pruning: Mapping[str, Any]) -> str | None:
    """What the method owes: nothing, or a sentence."""
    method, achieved = pruning["method"], pruning["achieved"]
    if PrunePlan.from_document(pruning["plan"]).is_empty:
        return f"{method} removed nothing"
    missed = [
        f"{achieved[name]:.3f} of the {COST_WORDS[name]} (target {target:g})"
        for name, target in pruning["targets"].items()
        if achieved[name] > target * (1 + TOLERANCE if name == "latency" else 1)
    ]
    return f"{method} came down to {' and '.join(missed)} only; the run is kept" if missed else None
