"""``p2d prune``: from a checkpoint to a run with the variants dense, pruned and reduced."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from prune2deploy.budget.alignment import granule_for
from prune2deploy.data.splits import DataSplits
from prune2deploy.errors import InputError
from prune2deploy.importance.criteria import criterion_named
from prune2deploy.latency.setting import Setting
from prune2deploy.pipeline.backends import MODULE, Channels, find_channels, refuse_edited
from prune2deploy.pipeline.comparisons import FROM_SCRATCH, check_comparisons, make_comparisons
from prune2deploy.pipeline.cutting import (
    CutChoices,
    cut_to_budget,
    example_inputs,
    inexact_note,
    scores_for,
)
from prune2deploy.pipeline.gradual import (
    DEFAULT_GRADUAL_METHOD,
    backend_for,
    check_gradual,
    check_reachable,
    gradual_options,
    make_pruned_gradually,
)
from prune2deploy.pipeline.latency.cut import budget_of, cut_to_latency, engine_for, latency_pruning_record, setting_of
from prune2deploy.pipeline.latency.methods import MethodLatency, fitted_latency
from prune2deploy.pipeline.latency.pareto import PARETO_FAMILY, cut_family, make_members
from prune2deploy.pipeline.latency.search import TOLERANCE
from prune2deploy.pipeline.making import PRUNED, Work, make_dense, make_pruned
from prune2deploy.pipeline.outcomes import PruneOutcome
from prune2deploy.pipeline.places import settled_checkpoint
from prune2deploy.pipeline.recipes import fine_tuning_recipe, scratch_recipe
from prune2deploy.pipeline.record import pruning_record
from prune2deploy.pipeline.requests import PruneRequest
from prune2deploy.pipeline.restrictions import Restrictions, reasons_to_stay
from prune2deploy.pipeline.runs import check_out, check_repeats, end_run, new_run, run_to_resume
from prune2deploy.pipeline.subject import DENSE, Subject, load_subject_data, open_subject
from prune2deploy.pipeline.variants import training_costs, variant_rows
from prune2deploy.progress import SILENT, Progress
from prune2deploy.run import RunFolder
from prune2deploy.training.recipe import TrainingRecipe

DEFAULT_METHOD = "l2"
DATA_FREE_METHOD = "l2"
_WITHOUT_DATA = (
    "there is no data, so a data-free criterion was used, nothing was fine-tuned, reduced is untrained and no accuracy "
    "is known: pass --data"
)
_SCORED_IMAGES = 1024
_SCORED_BATCH = 64


def run_prune(request: PruneRequest, progress: Progress = SILENT) -> PruneOutcome:
    """Prune a checkpoint to its targets, fine-tune it, and make the comparison variants.

    The run folder is opened once the cut is proven: until then nothing is written.

    Raises:
        InputError: a file, a choice or the data cannot be used.
        TargetError: no plan reaches the targets, or nothing would be pruned.
        ProofError: a cut is not exact; nothing was saved.
        StorageError: the run cannot be written; ``resume`` goes on from what is there.
    """
    resumed = run_to_resume("prune", out=request.out, progress=progress) if request.resume else None
    if resumed is None and not request.resume:
        check_out(request.out)
    tuning = fine_tuning_recipe(request.training, seed=request.seed)
    setting = None
    if request.targets.latency is not None or request.pareto:
        setting = setting_of(request.engine, request.precision, request.batch, request.threads)
    subject = open_subject(
        settled_checkpoint(request.checkpoint, resumed=resumed),
        model=request.model,
        input_shape=request.input_shape,
        trust_pickle=request.trust_pickle,
        progress=progress,
    )
    refuse_edited(subject.model, where=str(request.checkpoint))
    splits = load_subject_data(subject, request.data, progress=progress)
    method = request.method or _best_method(request, splits)
    gradual = gradual_options(request, method)
    if gradual is not None:
        check_gradual(request, gradual, splits, tuning)
    if request.distill and splits is None:
        raise InputError("has nothing to train on", where="--distill", hint="pass --data")
    granule = granule_for(request.engine if setting is None else setting.engine, request.precision)
    options = _options(request, subject, splits, method, setting=setting, granule=granule)
    if resumed is not None:
        check_repeats(resumed, model=subject.spec, options=options)
        if resumed.manifest.finished:
            return _outcome(resumed)
    inputs = example_inputs(subject.input_shape, seed=request.seed)
    begun_as = resumed.manifest.pruning if resumed is not None else {}
    chosen, remarks = backend_for(request, gradual)
    backend = str(begun_as.get("backend", MODULE)) if begun_as else chosen
    whole = find_channels(subject.model, inputs, backend=backend, attention=request.attention, progress=progress)
    check_comparisons(whole.graph, request.variants)
    restrictions = Restrictions(
        scope=request.scope, protect=request.protect, only=request.only, exact_only=request.exact_only
    )
    restricted = whole.without_groups(reasons_to_stay(whole.graph, restrictions))
    choices = CutChoices(
        budget=budget_of(request.targets, restricted, batch=request.batch, precision=request.precision),
        method=method,
        ranking=request.chosen_ranking,
        granule=request.alignment,
        default_granule=granule,
        seed=request.seed,
        flop_penalty=request.flop_penalty,
        solver_seconds=request.solver_seconds,
    )
    pruning: dict[str, Any] = {}
    notes: tuple[str, ...] = (*subject.notes, *whole.notes, *remarks)
    if gradual is not None:
        check_reachable(restricted, choices)
    made = resumed is not None and PRUNED in resumed.manifest.variants
    if gradual is None and (resumed is None or not resumed.manifest.pruning):
        pruning, said = _planned(request, subject, splits, whole, restricted, choices, setting, progress)
        notes = tuple(dict.fromkeys((*notes, *said)))
    with ExitStack() as stack:
        latency = None
        if gradual is not None and setting is not None and not made:
            fitting = _fitting(request, subject, splits, restricted, choices, setting, progress)
            latency = stack.enter_context(fitting)
            choices = replace(choices, budget=latency.budget)
        run = resumed or stack.enter_context(
            new_run(
                command=request.command,
                model=subject.spec,
                input_shape=subject.input_shape,
                data=splits.name if splits is not None else None,
                seed=request.seed,
                options=options,
                out=request.out,
            )
        )
        if pruning:
            run.save(replace(run.manifest, pruning=pruning, notes=notes))
        work = Work(
            subject=subject,
            splits=splits,
            channels=whole,
            inputs=inputs,
            run=run,
            tuning=tuning,
            scratch=_scratch_recipe(request, subject, tuning),
            seed=request.seed,
            resume=resumed is not None,
            progress=progress,
            teacher=subject.model if request.distill else None,
        )
        make_dense(work)
        if request.pareto:
            make_members(work)
        elif gradual is None:
            make_pruned(work)
        else:
            make_pruned_gradually(work, restricted, choices, gradual, notes=notes, latency=latency)
        if splits is not None and subject.trained_epochs is None and set(request.variants) & FROM_SCRATCH:
            run.note(
                f"the checkpoint does not say how long it was trained: variants from scratch are trained for "
                f"{work.scratch.epochs - tuning.epochs} epochs and the {tuning.epochs} of fine-tuning"
            )
        make_comparisons(work, request.variants)
        end_run(run)
    return _outcome(run)


def _planned(
    request: PruneRequest,
    subject: Subject,
    splits: DataSplits | None,
    whole: Channels,
    restricted: Channels,
    choices: CutChoices,
    setting: Setting | None,
    progress: Progress,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What the manifest keeps of the proven cut, or of those of a family, and what the user is to know of it.

    ``setting`` is where latencies are measured, None where none is a target.
    """
    inputs = example_inputs(subject.input_shape, seed=request.seed)
    batches = _batches(choices, splits)
    no_data = () if splits is not None else (_WITHOUT_DATA,)
    if setting is None:
        cut = cut_to_budget(subject.model, restricted, inputs, choices, batches=batches, progress=progress)
        pruning = pruning_record(whole, restricted, cut, choices)
        return pruning, (*cut.allocation.notes, *inexact_note(pruning["inexact"]), *no_data)
    scores = scores_for(subject.model, restricted, choices, batches=batches, progress=progress)
    with engine_for(subject, restricted, choices, setting, progress) as engine:
        if request.pareto:
            pruning, notes = cut_family(
                engine, whole, inputs, request.pareto, choices, scores=scores, progress=progress
            )
            return pruning, (*notes, *no_data)
        assert request.targets.latency is not None  # there is a setting, and no family
        measured = cut_to_latency(engine, inputs, request.targets.latency, choices, scores=scores, progress=progress)
    pruning = latency_pruning_record(whole, restricted, measured)
    return pruning, (*measured.cut.allocation.notes, *inexact_note(pruning["inexact"]), *no_data)


def _fitting(
    request: PruneRequest,
    subject: Subject,
    splits: DataSplits | None,
    restricted: Channels,
    choices: CutChoices,
    setting: Setting,
    progress: Progress,
) -> AbstractContextManager[MethodLatency]:
    """The latency that a fine-tuning with cuts is to come down to, fitted to networks that the dense weights choose."""
    assert request.targets.latency is not None
    scores = scores_for(subject.model, restricted, choices, batches=_batches(choices, splits), progress=progress)
    return fitted_latency(
        subject, restricted, request.targets.latency, setting, choices, scores=scores, progress=progress
    )


def _batches(choices: CutChoices, splits: DataSplits | None) -> list[tuple[Tensor, Tensor]] | None:
    """What to score with, None where the criterion needs no data or there is none."""
    needs_data = criterion_named(choices.method).needs_data
    return list(scoring_batches(splits, seed=choices.seed)) if needs_data and splits is not None else None


def scoring_batches(splits: DataSplits, *, seed: int, images: int = _SCORED_IMAGES) -> Iterator[tuple[Tensor, Tensor]]:
    """Random images of the training split, not augmented, in batches, for criteria that need data."""
    size = len(splits.calibration)  # type: ignore[arg-type]
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:images]
    yield from DataLoader(Subset(splits.calibration, order.tolist()), batch_size=_SCORED_BATCH)


def _best_method(request: PruneRequest, splits: DataSplits | None) -> str:
    if request.cuts is not None or request.every_steps is not None:
        return DEFAULT_GRADUAL_METHOD
    return DEFAULT_METHOD if splits is not None else DATA_FREE_METHOD


def _scratch_recipe(request: PruneRequest, subject: Subject, tuning: TrainingRecipe) -> TrainingRecipe:
    """For variants from scratch: as many epochs as dense training and fine-tuning together, at the rate of scratch."""
    dense_epochs = TrainingRecipe().epochs if subject.trained_epochs is None else subject.trained_epochs
    choices = replace(request.training, learning_rate=None)
    return scratch_recipe(choices, seed=request.seed, epochs=dense_epochs + tuning.epochs)


def _options(
    request: PruneRequest,
    subject: Subject,
    splits: DataSplits | None,
    method: str,
    *,
    setting: Setting | None,
    granule: int,
) -> dict[str, Any]:
    return {
        "command": "prune",
        "checkpoint": str(subject.path),
        "weights_sha256": subject.weights_sha256,
        "targets": request.targets.to_document(),
        "method": method,
        "ranking": request.chosen_ranking,
        "scope": request.scope,
        "protect": list(request.protect),
        "only": list(request.only),
        "exact_only": request.exact_only,
        "backend": request.backend,
        "attention": request.attention,
        "alignment": request.alignment or f"auto, {granule}",
        "pareto": list(request.pareto) or None,
        "latency_on": None if setting is None else asdict(setting),
        "memory_at": [request.batch, request.precision or "fp32"] if request.targets.memory is not None else None,
        "variants": list(request.variants),
        "training": asdict(request.training),
        "cuts": request.cuts,
        "every_steps": request.every_steps,
        "flop_penalty": request.flop_penalty or None,
        "distill": request.distill or None,
        "input_shape": list(subject.input_shape),
        "data": splits.name if splits is not None else None,
        "seed": request.seed,
    }


def _outcome(run: RunFolder) -> PruneOutcome:
    pruning = run.manifest.pruning
    return PruneOutcome(
        run=run.path,
        model=run.manifest.model,
        method=pruning["method"],
        alignment=pruning["alignment"],
        targets=pruning.get("targets", {}),
        achieved=pruning.get("achieved", {}),
        variants=variant_rows(run.manifest),
        latency=pruning.get("latency"),
        family=pruning.get(PARETO_FAMILY, {}),
        accuracies=run.manifest.variants[PRUNED].accuracies if PRUNED in run.manifest.variants else {},
        costs=training_costs(run.manifest, without=(DENSE,)),
        notes=run.manifest.notes,
        shortfall=_shortfall(pruning.get("latency")),
    )


def _shortfall(latency: Mapping[str, Any] | None) -> str | None:
    """What cuts during the fine-tuning owe of a latency, which is measured after them: nothing, or a sentence."""
    if latency is None or latency["pruned_ns"] <= (1 + TOLERANCE) * latency["target"]["ns"]:
        return None
    asked = latency["target"]["ns"] / latency["dense_ns"]
    return f"the cuts came down to {latency['ratio']:.3f} of the latency only (target {asked:.3g}); the run is kept"
