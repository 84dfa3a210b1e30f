"""``p2d train``: a model from scratch."""

from prune2deploy.data.load import load_data
from prune2deploy.data.splits import check_fits
from prune2deploy.model.spec import ZOO, ModelSpec, build_model, default_input_shape, fit_to_data
from prune2deploy.pipeline.cutting import example_inputs
from prune2deploy.pipeline.outcomes import TrainOutcome
from prune2deploy.pipeline.recipes import scratch_recipe
from prune2deploy.pipeline.requests import TrainRequest
from prune2deploy.pipeline.runs import begin_run, end_run
from prune2deploy.pipeline.subject import DENSE, Subject, output_count
from prune2deploy.pipeline.variants import keep_variant
from prune2deploy.progress import SILENT, Progress
from prune2deploy.surgery.verify import count_flops, count_parameters
from prune2deploy.training.loop import train


def run_train(request: TrainRequest, progress: Progress = SILENT) -> TrainOutcome:
    """Train a model and keep it as the variant ``dense`` of a run.

    Raises:
        ModelError, DataError, InputError: the model, the data or a choice cannot be used.
        StorageError: the run cannot be written.
    """
    splits = load_data(request.data, input_shape=_input_shape(request), progress=progress)
    spec = fit_to_data(
        ModelSpec.parse(request.model), class_count=splits.class_count, input_channels=splits.input_shape[0]
    )
    model = build_model(spec, seed=request.seed)
    check_fits(splits, output_count(model, splits.input_shape))
    recipe = scratch_recipe(request.training, seed=request.seed)
    options = {"model": str(spec), "data": splits.name, "method": request.method, "recipe": recipe.to_document()}
    run = begin_run(
        command=request.command,
        model=spec,
        input_shape=splits.input_shape,
        data=splits.name,
        seed=request.seed,
        options=options,
        out=request.out,
        resume=request.resume,
    )
    if DENSE not in run.manifest.variants:
        result = train(
            model, splits, recipe, state_path=run.training_path(DENSE), resume=request.resume, progress=progress
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
    record = run.manifest.variants[DENSE]
    return TrainOutcome(
        run=run.path,
        bundle=run.bundle_path(DENSE),
        model=str(spec),
        data=splits.name,
        epochs=recipe.epochs,
        accuracy=record.accuracy,
        flops=record.flops,
        parameters=record.parameters,
        notes=run.manifest.notes,
    )


def _input_shape(request: TrainRequest) -> tuple[int, int, int] | None:
    """What the user says; else the zoo takes images as the data has them, others the size they are made for."""
    spec = ModelSpec.parse(request.model)
    if request.input_shape is not None or spec.source == ZOO:
        return request.input_shape
    return default_input_shape(spec, build_model(spec, seed=0))
