"""Making the variants that come of the checkpoint itself: dense, and pruned by one cut and fine-tuned.

What a run already holds is not made again.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from prune2deploy.budget.from_mask import mask_from_plan
from prune2deploy.budget.plan import PrunePlan
from prune2deploy.data.splits import DataSplits
from prune2deploy.pipeline.backends import Channels
from prune2deploy.pipeline.subject import DENSE, Subject
from prune2deploy.pipeline.variants import keep_variant
from prune2deploy.progress import Progress
from prune2deploy.run import RunFolder
from prune2deploy.training.evaluate import evaluate
from prune2deploy.training.loop import train
from prune2deploy.training.recalibrate import recalibrate_batchnorm
from prune2deploy.training.recipe import TrainingRecipe

PRUNED = "pruned"


@dataclass(frozen=True, kw_only=True)
class Work:
    """What all steps of one run with several variants share.

    ``channels`` are all of the model's, whatever the pruning may cut. ``tuning`` is the recipe that mends a pruned
    network, ``scratch`` the one of all variants that begin with fresh weights; without ``splits`` neither is used.
    ``teacher`` is distilled into every variant that is trained, None for no teacher.
    """

    subject: Subject
    splits: DataSplits | None
    channels: Channels
    inputs: tuple[Tensor]
    run: RunFolder
    tuning: TrainingRecipe
    scratch: TrainingRecipe
    seed: int
    resume: bool
    progress: Progress
    teacher: nn.Module | None = None

    @property
    def plan(self) -> PrunePlan:
        """The plan of the variant pruned, once the run holds it."""
        return PrunePlan.from_document(self.run.manifest.pruning["plan"], where=str(self.run.path))


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


def make_pruned(work: Work, *, name: str = PRUNED, plan: PrunePlan | None = None) -> None:
    """The model cut by ``plan``, None for the run's own, recalibrated and fine-tuned where there is data."""
    if name in work.run.manifest.variants:
        return
    plan = work.plan if plan is None else plan
    kept = mask_from_plan(work.channels.graph, plan)
    model = work.channels.cut(work.subject.model, plan)
    accuracies: dict[str, float] = {}
    training: dict[str, Any] = {}
    epochs = work.subject.trained_epochs
    if work.splits is not None:
        accuracies["before_pruning"] = work.run.manifest.variants[DENSE].accuracies["final"]
        accuracies["after_pruning"] = evaluate(model, work.splits.evaluation, progress=work.progress).accuracy
        recalibrate_batchnorm(model, work.splits.calibration, seed=work.seed, progress=work.progress)
        accuracies["after_recalibration"] = evaluate(model, work.splits.evaluation, progress=work.progress).accuracy
        result = train(
            model,
            work.splits,
            work.tuning,
            state_path=work.run.training_path(name),
            resume=work.resume,
            teacher=work.teacher,
            description=f"fine-tuning {name}",
            progress=work.progress,
        )
        accuracies["final"] = result.accuracy
        training = result.to_document()
        epochs = None if epochs is None else epochs + work.tuning.epochs
    keep_variant(
        work.run,
        name,
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
