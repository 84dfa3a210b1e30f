"""``p2d train``: a model from scratch."""

from contextlib import nullcontext

from prune2deploy.data.load import load_data
from prune2deploy.data.splits import check_fits
from prune2deploy.model.spec import IMPORT, ZOO, ModelSpec, build_model, default_input_shape, fit_to_data
from prune2deploy.pipeline.cutting import example_inputs
from prune2deploy.pipeline.outcomes import TrainOutcome
from prune2deploy.pipeline.places import settled_data
from prune2deploy.pipeline.recipes import scratch_recipe
from prune2deploy.pipeline.requests import TrainRequest
from prune2deploy.pipeline.runs import check_out, check_repeats, end_run, new_run, run_to_resume
from prune2deploy.pipeline.subject import DENSE, Subject, output_count
from prune2deploy.pipeline.variants import keep_variant
from prune2deploy.progress import SILENT, Progress
from prune2deploy.run import RunFolder
from prune2deploy.surgery.verify import count_flops, count_parameters
from prune2deploy.training.loop import train


def run_train(request: TrainRequest, progress: Progress = SILENT) -> TrainOutcome:
    """Train a model and keep it as the variant ``dense`` of a run.

    Raises:
        ModelError, DataError, InputError: the model, the data or a choice cannot be used.
        StorageError: the run cannot be written.
    """
    if not request.resume:
        check_out(request.out)
    recipe = scratch_recipe(request.training, seed=request.seed)
    splits = load_data(settled_data(request.data), input_shape=_input_shape(request), progress=progress)
    spec = fit_to_data(
        ModelSpec.parse(request.model), class_count=splits.class_count, input_channels=splits.input_shape[0]
    )
    model = build_model(spec, seed=request.seed)
    check_fits(splits, output_count(model, splits.input_shape))
    options = {
        "command": "train",
        "data": splits.name,
        "input_shape": list(splits.input_shape),
        "method": request.method,
        "recipe": recipe.to_document(),
    }
    resumed = run_to_resume("train", out=request.out, progress=progress) if request.resume else None
    if resumed is not None:
        check_repeats(resumed, model=spec, options=options)
        if resumed.manifest.finished:
            return _outcome(resumed)
    begun = new_run(
        command=request.command,
        model=spec,
        input_shape=splits.input_shape,
        data=splits.name,
        seed=request.seed,
        options=options,
        out=request.out,
    )
    with begun if resumed is None else nullcontext(resumed) as run:
        result = train(
            model,
            splits,
            recipe,
            state_path=run.training_path(DENSE),
            resume=resumed is not None,
            description="training dense",
            progress=progress,
        )
        subject = Subject(
            model=model,
            spec=spec,
            plan=None,
            input_shape=splits.input_shape,
            data=splits.name,
            normalization=splits.normalization,
        )
        keep_variant(
            run,
            DENSE,
            model,
            subject,
            plan=None,
            splits=splits,
            flops=count_flops(model, example_inputs(splits.input_shape)),
            parameters=count_parameters(model),
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
        notes=run.manifest.notes,
    )


def _input_shape(request: TrainRequest) -> tuple[int, int, int] | None:
    """What the user says; else libraries' models get the size they are made for, others images as the data has them."""
    spec = ModelSpec.parse(request.model)
    if request.input_shape is not None or spec.source in (ZOO, IMPORT):
        return request.input_shape
    return default_input_shape(spec, build_model(spec, seed=0))
