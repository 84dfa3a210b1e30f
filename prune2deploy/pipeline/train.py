"""``p2d train``: a model from scratch, densely; with a method it goes to ``pipeline.method_training``."""

from contextlib import nullcontext

from prune2deploy.pipeline.choices import DENSE_TRAINING
from prune2deploy.pipeline.cutting import example_inputs
from prune2deploy.pipeline.method_training import run_method
from prune2deploy.pipeline.outcomes import MethodOutcome, TrainOutcome
from prune2deploy.pipeline.requests import TrainRequest
from prune2deploy.pipeline.runs import check_out, check_repeats, end_run, new_run, run_to_resume
from prune2deploy.pipeline.scratch import open_scratch
from prune2deploy.pipeline.subject import DENSE
from prune2deploy.pipeline.variants import keep_variant
from prune2deploy.progress import SILENT, Progress
from prune2deploy.run import RunFolder
from prune2deploy.surgery.verify import count_flops, count_parameters
from prune2deploy.training.loop import train


def run_train(request: TrainRequest, progress: Progress = SILENT) -> TrainOutcome | MethodOutcome:
    """Train a model and keep it as the variant ``dense`` of a run; with a method that prunes, as ``pruned``.

    Raises:
        ModelError, DataError, InputError: the model, the data or a choice cannot be used.
        TargetError: the method cannot reach its target; nothing was kept.
        ProofError: a cut is not exact; the pruned model was not kept.
        StorageError: the run cannot be written.
    """
    if not request.resume:
        check_out(request.out)
    return _run_dense(request, progress) if request.method == DENSE_TRAINING else run_method(request, progress)


def _run_dense(request: TrainRequest, progress: Progress) -> TrainOutcome:
    scratch = open_scratch(request, progress)
    splits, recipe = scratch.splits, scratch.recipe
    options = {
        "command": "train",
        "data": splits.name,
        "input_shape": list(splits.input_shape),
        "method": request.method,
        "recipe": recipe.to_document(),
    }
    resumed = run_to_resume("train", out=request.out, progress=progress) if request.resume else None
    if resumed is not None:
        check_repeats(resumed, model=scratch.spec, options=options)
        if resumed.manifest.finished:
            return _outcome(resumed)
    begun = new_run(
        command=request.command,
        model=scratch.spec,
        input_shape=splits.input_shape,
        data=splits.name,
        seed=request.seed,
        options=options,
        out=request.out,
    )
    with begun if resumed is None else nullcontext(resumed) as run:
        result = train(
            scratch.model,
            splits,
            recipe,
            state_path=run.training_path(DENSE),
            resume=resumed is not None,
            description="training dense",
            progress=progress,
        )
        keep_variant(
            run,
            DENSE,
            scratch.model,
            scratch.subject,
            plan=None,
            splits=splits,
            flops=count_flops(scratch.model, example_inputs(splits.input_shape)),
            parameters=count_parameters(scratch.model),
            accuracies={"final": result.accuracy},
            training=result.to_document(),
            epochs=recipe.epochs,
        )
        end_run(run)
    return _outcome(run)


def _outcome(run: RunFolder) -> TrainOutcome:
    record = run.manifest.variants[DENSE]
    return TrainOutcome(
        run=run.path,
        bundle=run.bundle_path(DENSE),
        model=run.manifest.model,
        data=run.manifest.data or "",
        epochs=run.manifest.options["recipe"]["epochs"],
        accuracy=record.accuracy,
        flops=record.flops,
        parameters=record.parameters,
        cost=record.training["cost"],
        notes=run.manifest.notes,
    )
