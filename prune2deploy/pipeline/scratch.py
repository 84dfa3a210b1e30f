"""What every training from scratch begins with: the data, the untrained model, the recipe."""

from dataclasses import dataclass

from torch import nn

from prune2deploy.data.load import load_data
from prune2deploy.data.splits import DataSplits, check_fits
from prune2deploy.model.spec import IMPORT, ZOO, ModelSpec, build_model, default_input_shape, fit_to_data
from prune2deploy.pipeline.places import settled_data
from prune2deploy.pipeline.recipes import scratch_recipe
from prune2deploy.pipeline.requests import TrainRequest
from prune2deploy.pipeline.subject import Subject, output_count
from prune2deploy.progress import Progress
from prune2deploy.training.recipe import TrainingRecipe


@dataclass(frozen=True, kw_only=True)
class Scratch:
    """An untrained ``model`` of ``spec``, and what it is to be trained on and how."""

    spec: ModelSpec
    model: nn.Module
    splits: DataSplits
    recipe: TrainingRecipe
    seed: int

    @property
    def subject(self) -> Subject:
        """The model as the variants of a run know it."""
        return self.subject_of(self.model)

    def subject_of(self, model: nn.Module) -> Subject:
        """``model``, of the same architecture and data, as the variants of a run know it."""
        return Subject(
            model=model,
            spec=self.spec,
            plan=None,
            input_shape=self.splits.input_shape,
            data=self.splits.name,
            normalization=self.splits.normalization,
        )

    def built_again(self) -> nn.Module:
        """The same model once more, with the same initial weights."""
        return build_model(self.spec, seed=self.seed)


def open_scratch(request: TrainRequest, progress: Progress) -> Scratch:
    """Load the data and build the model for it.

    Raises:
        ModelError, DataError, InputError: the model, the data or a choice cannot be used.
    """
    recipe = scratch_recipe(request.training, seed=request.seed)
    splits = load_data(settled_data(request.data), input_shape=_input_shape(request), progress=progress)
    spec = fit_to_data(
        ModelSpec.parse(request.model), class_count=splits.class_count, input_channels=splits.input_shape[0]
    )
    model = build_model(spec, seed=request.seed)
    check_fits(splits, output_count(model, splits.input_shape))
    return Scratch(spec=spec, model=model, splits=splits, recipe=recipe, seed=request.seed)


def _input_shape(request: TrainRequest) -> tuple[int, int, int] | None:
    """What the user says; else libraries' models get the size they are made for, others images as the data has them."""
    spec = ModelSpec.parse(request.model)
    if request.input_shape is not None or spec.source in (ZOO, IMPORT):
        return request.input_shape
    return default_input_shape(spec, build_model(spec, seed=0))
