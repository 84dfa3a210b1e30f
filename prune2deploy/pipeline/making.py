"""Making the variants of a pruning: dense, pruned, reduced. What a run already holds is not made again."""

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from prune2deploy.budget.from_mask import mask_from_plan
from prune2deploy.budget.plan import PrunePlan
from prune2deploy.data.splits import DataSplits
from prune2deploy.model.initialise import reinitialise
from prune2deploy.pipeline.backends import Channels
from prune2deploy.pipeline.cutting import cut_uniformly, layer_widths
from prune2deploy.pipeline.recipes import fine_tuning_recipe, scratch_recipe
from prune2deploy.pipeline.requests import PruneRequest
from prune2deploy.pipeline.subject import DENSE, Subject
from prune2deploy.pipeline.variants import keep_variant
from prune2deploy.progress import Progress
from prune2deploy.run import RunFolder
from prune2deploy.training.evaluate import evaluate
from prune2deploy.training.loop import train
from prune2deploy.training.recalibrate import recalibrate_batchnorm
from prune2deploy.training.recipe import TrainingRecipe

PRUNED = "pruned"
REDUCED = "reduced"


@dataclass(frozen=True, kw_only=True)
class Work:
    """What all steps of one pruning share. ``channels`` are all of the model's, whatever the pruning may cut."""

    request: PruneRequest
    subject: Subject
    splits: DataSplits | None
    channels: Channels
    inputs: tuple[Tensor]
    run: RunFolder
    progress: Progress


def make_dense(work: Work) -> None:
    """The model as it came, evaluated."""
    if DENSE in work.run.manifest.variants:
        return
    accuracies = {}
    if work.splits is not None:
        dense = evaluate(work.subject.model, work.splits.evaluation, progress=work.progress)
        accuracies["final"] = dense.accuracy
    keep_variant(
        work.run,
        DENSE,
        work.subject.model,
        work.subject,
        plan=None,
        splits=work.splits,
        flops=work.channels.graph.cost.dense_flops,
        parameters=work.channels.graph.cost.dense_parameters,
        accuracies=accuracies,
        training=work.subject.provenance.get("training", {}),
        epochs=work.subject.trained_epochs,
    )


def make_pruned(work: Work) -> None:
    """The model cut by the run's plan, recalibrated and fine-tuned where there is data."""
    if PRUNED in work.run.manifest.variants:
        return
    plan = PrunePlan.from_document(work.run.manifest.pruning["plan"], where=str(work.run.path))
    kept = mask_from_plan(work.channels.graph, plan)
    model = work.channels.cut(work.subject.model, plan)
    accuracies: dict[str, float] = {}
    training: dict[str, Any] = {}
    epochs = work.subject.trained_epochs
    if work.splits is not None:
        recipe = fine_tuning_recipe(work.request.training, seed=work.request.seed)
        accuracies["before_pruning"] = work.run.manifest.variants[DENSE].accuracies["final"]
        accuracies["after_pruning"] = evaluate(model, work.splits.evaluation, progress=work.progress).accuracy
        recalibrate_batchnorm(model, work.splits.calibration, seed=work.request.seed, progress=work.progress)
        accuracies["after_recalibration"] = evaluate(model, work.splits.evaluation, progress=work.progress).accuracy
        result = train(
            model,
            work.splits,
            recipe,
            state_path=work.run.training_path(PRUNED),
            resume=work.request.resume,
            description="fine-tuning pruned",
            progress=work.progress,
        )
        accuracies["final"] = result.accuracy
        training = result.to_document()
        epochs = None if epochs is None else epochs + recipe.epochs
    keep_variant(
        work.run,
        PRUNED,
        model,
        work.subject,
        plan=plan,
        splits=work.splits,
        flops=work.channels.graph.cost.flops(kept),
        parameters=work.channels.graph.cost.parameters(kept),
        accuracies=accuracies,
        training=training,
        epochs=epochs,
    )


def make_reduced(work: Work) -> None:
    """The dense architecture uniformly narrower, at the FLOPs of ``pruned``, trained for as long as that was in all."""
    if REDUCED in work.run.manifest.variants:
        return
    graph = work.channels.graph
    cut = cut_uniformly(
        work.subject.model,
        work.channels,
        work.inputs,
        flops=work.run.manifest.variants[PRUNED].flops,
        granule=int(work.run.manifest.pruning["alignment"]),
    )
    for note in cut.allocation.notes:
        work.run.note(note)
    reinitialise(cut.model, work.subject.spec, seed=work.request.seed)
    accuracies: dict[str, float] = {}
    training: dict[str, Any] = {}
    recipe = _reduced_recipe(work)
    if work.splits is not None:
        result = train(
            cut.model,
            work.splits,
            recipe,
            state_path=work.run.training_path(REDUCED),
            resume=work.request.resume,
            description="training reduced",
            progress=work.progress,
        )
        accuracies["final"] = result.accuracy
        training = result.to_document()
    keep_variant(
        work.run,
        REDUCED,
        cut.model,
        work.subject,
        plan=cut.plan,
        splits=work.splits,
        flops=graph.cost.flops(cut.allocation.kept),
        parameters=graph.cost.parameters(cut.allocation.kept),
        accuracies=accuracies,
        training=training,
        epochs=recipe.epochs if work.splits is not None else 0,
    )
    masks = {
        PRUNED: mask_from_plan(graph, PrunePlan.from_document(work.run.manifest.pruning["plan"])),
        REDUCED: cut.allocation.kept,
    }
    manifest = work.run.manifest
    work.run.save(replace(manifest, pruning={**manifest.pruning, "layers": layer_widths(graph, masks)}))


def _reduced_recipe(work: Work) -> TrainingRecipe:
    tuned = fine_tuning_recipe(work.request.training, seed=work.request.seed)
    dense_epochs = work.subject.trained_epochs
    if dense_epochs is None:
        dense_epochs = TrainingRecipe().epochs
        if work.splits is not None:
            work.run.note(
                f"the checkpoint does not say how long it was trained: reduced is trained for {dense_epochs} epochs "
                f"and the {tuned.epochs} of fine-tuning"
            )
    return scratch_recipe(
        replace(work.request.training, learning_rate=None), seed=work.request.seed, epochs=dense_epochs + tuned.epochs
    )
