import json
import math

import pytest
import torch
from torch import nn

from prune2deploy.errors import InputError, ModelError
from prune2deploy.training.optimisation import optimizer_for, scheduler_for
from prune2deploy.training.recipe import TrainingRecipe, fine_tuning_defaults


def learning_rates(recipe, *, steps_per_epoch=4):
    optimizer = optimizer_for(nn.Linear(2, 2), recipe)
    scheduler = scheduler_for(optimizer, recipe, steps_per_epoch=steps_per_epoch)
    rates = []
    for _ in range(recipe.epochs * steps_per_epoch):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_a_recipe_survives_json():
    recipe = TrainingRecipe(schedule="step", milestones=(3, 5), gradient_clip=1.0, mixed_precision="bf16")
    assert TrainingRecipe.from_document(json.loads(json.dumps(recipe.to_document()))) == recipe


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("learning_rate", 0.0),
        ("learning_rate", -1.0),
        ("learning_rate", math.nan),
        ("learning_rate", math.inf),
        ("batch_size", 0),
        ("optimizer", "lion"),
        ("momentum", 1.0),
        ("weight_decay", -1e-4),
        ("schedule", "linear"),
        ("milestones", (5, 3)),
        ("milestones", (0, 3)),
        ("gamma", 0.0),
        ("warmup_epochs", -1),
        ("label_smoothing", 1.0),
        ("mixed_precision", "fp8"),
        ("gradient_clip", 0.0),
        ("seed", -1),
        ("workers", -1),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(field, value):
    with pytest.raises(InputError, match=f"^{field}: is .*, but must be "):
        TrainingRecipe(**{field: value})


def test_the_step_schedule_needs_milestones():
    with pytest.raises(InputError, match=r"milestones: .*given with the step schedule"):
        TrainingRecipe(schedule="step")


def test_unknown_and_damaged_fields_of_a_stored_recipe_are_refused():
    with pytest.raises(InputError, match=r"run.json: .*unknown fields colour, size"):
        TrainingRecipe.from_document({"size": 1, "colour": 2}, where="run.json")
    with pytest.raises(InputError, match="damaged"):
        TrainingRecipe.from_document({"epochs": "many"})


def test_differences_name_the_fields():
    changes = TrainingRecipe(epochs=10).differences(TrainingRecipe(epochs=20, seed=3))
    assert changes == ("epochs 10 instead of 20", "seed 0 instead of 3")


def test_fine_tuning_is_gentler_than_training_and_can_be_changed():
    scratch, tuning = TrainingRecipe(), fine_tuning_defaults()
    assert tuning.learning_rate < scratch.learning_rate
    assert tuning.epochs < scratch.epochs
    assert fine_tuning_defaults(epochs=3, learning_rate=0.5) == fine_tuning_defaults(epochs=3, learning_rate=0.5)
    assert fine_tuning_defaults(epochs=3).epochs == 3
    with pytest.raises(InputError, match="unknown fields epoch"):
        fine_tuning_defaults(epoch=3)


def test_cosine_rises_linearly_and_falls_to_zero():
    rates = learning_rates(TrainingRecipe(epochs=5, learning_rate=0.4, warmup_epochs=1))
    rising = [0.4 * (0.01 + 0.99 * step / 4) for step in range(4)]
    falling = [0.2 * (1 + math.cos(math.pi * step / 16)) for step in range(16)]
    assert rates == pytest.approx(rising + falling)


def test_steps_fall_at_their_epochs_with_and_without_warm_up():
    expected = [0.4] * 8 + [0.04] * 4 + [0.004] * 4
    assert learning_rates(
        TrainingRecipe(epochs=4, learning_rate=0.4, schedule="step", milestones=(2, 3), warmup_epochs=0)
    ) == pytest.approx(expected)
    warm = learning_rates(
        TrainingRecipe(epochs=4, learning_rate=0.4, schedule="step", milestones=(2, 3), warmup_epochs=1)
    )
    assert warm[4:] == pytest.approx(expected[4:])
    assert warm[0] == pytest.approx(0.004)


def test_constant_stays():
    assert learning_rates(TrainingRecipe(epochs=2, schedule="constant", warmup_epochs=0)) == [0.1] * 8


def test_a_warm_up_takes_at_most_half_of_the_training_and_ends_before_the_first_milestone():
    rates = learning_rates(TrainingRecipe(epochs=2, warmup_epochs=9))
    assert rates[:5] == sorted(rates[:5])
    assert rates[4] == pytest.approx(0.1)
    assert rates[-1] < 0.02
    stepped = learning_rates(TrainingRecipe(epochs=4, schedule="step", milestones=(1,), warmup_epochs=1))
    assert stepped[3:] == pytest.approx([0.1] + [0.01] * 12)
    assert learning_rates(TrainingRecipe(epochs=1), steps_per_epoch=1) == [0.1]


def test_norms_and_biases_are_not_decayed():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2))
    model[0].weight.requires_grad_(False)
    groups = optimizer_for(model, TrainingRecipe(weight_decay=0.5)).param_groups
    decays = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    assert decays == {
        id(model[0].bias): 0.0,
        id(model[1].weight): 0.0,
        id(model[1].bias): 0.0,
        id(model[2].weight): 0.5,
        id(model[2].bias): 0.0,
    }


def test_the_optimizer_is_the_one_asked_for():
    model = nn.Linear(2, 2)
    sgd = optimizer_for(model, TrainingRecipe(momentum=0.8, nesterov=True))
    assert isinstance(sgd, torch.optim.SGD)
    assert (sgd.defaults["momentum"], sgd.defaults["nesterov"]) == (0.8, True)
    assert not optimizer_for(model, TrainingRecipe(momentum=0.0)).defaults["nesterov"]
    assert isinstance(optimizer_for(model, TrainingRecipe(optimizer="adamw")), torch.optim.AdamW)


def test_a_model_without_parameters_cannot_be_trained():
    with pytest.raises(ModelError, match="Flatten: has no parameters to train"):
        optimizer_for(nn.Flatten(), TrainingRecipe())
