"""A cut in the middle of a training disturbs nothing but what it removes."""

import dataclasses

import pytest
import torch
from torch import nn

from prune2deploy.budget.plan import KeptIndices, PrunePlan, fingerprint_of
from prune2deploy.policies.policy import Decision, NoPruning, When
from prune2deploy.surgery.apply import shapes_of
from prune2deploy.training.loop import train
from prune2deploy.training.recipe import TrainingRecipe

RECIPE = TrainingRecipe(epochs=3, batch_size=8, learning_rate=0.05, warmup_epochs=0.5, seed=3)
RECIPES = {
    "sgd": RECIPE,
    "adamw": dataclasses.replace(RECIPE, optimizer="adamw", learning_rate=0.01, weight_decay=0.05),
    "ema": dataclasses.replace(RECIPE, ema_decay=0.7),
    "micro-batches": dataclasses.replace(RECIPE, micro_batches=2),
    "clipped step": dataclasses.replace(RECIPE, gradient_clip=0.3, schedule="step", milestones=(1, 2)),
    "bf16": dataclasses.replace(RECIPE, mixed_precision="bf16"),
    "eager": dataclasses.replace(RECIPE, compile="eager"),
    "aot_eager": dataclasses.replace(RECIPE, compile="aot_eager", epochs=2),
    "together": dataclasses.replace(RECIPE, optimizer="adamw", learning_rate=0.01, ema_decay=0.7, micro_batches=2),
}
# Every wrapped step is compiled anew after a decision, so the slow compiler decides less often.
RARELY = {"aot_eager"}

WIDTH = 6
KEPT = (0, 2, 3, 5)
AXES = [
    ("conv.weight", 0),
    ("norm.weight", 0),
    ("norm.bias", 0),
    ("norm.running_mean", 0),
    ("norm.running_var", 0),
    ("classifier.weight", 1),
]


class Net(nn.Module):
    """No dropout, whose random numbers would depend on the width."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, WIDTH, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(WIDTH)
        self.classifier = nn.Linear(WIDTH, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.norm(self.conv(images)).relu().mean(dim=(2, 3)))


def make_model(*, silent: bool = False) -> Net:
    """``silent``: the channels that are to leave hold nothing and are not read; they never learn."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Net()
    if silent:
        leaving = [channel for channel in range(WIDTH) if channel not in KEPT]
        with torch.no_grad():
            for tensor in (model.conv.weight, model.norm.weight, model.norm.bias):
                tensor[leaving] = 0
            model.classifier.weight[:, leaving] = 0
    return model


def plan_for(model: nn.Module, kept: tuple[int, ...] | None) -> PrunePlan:
    """Keeps ``kept`` of the convolution; None makes a plan without entries."""
    width = model.conv.out_channels
    entries = () if kept is None else tuple(
        KeptIndices(tensor=name, dim=dim, dense_size=width, kept=kept) for name, dim in AXES
    )  # fmt: skip
    return PrunePlan(fingerprint=fingerprint_of(shapes_of(model)), entries=entries)


class Ineffective(NoPruning):
    """Decides at every moment, in turn on a plan without entries and on one that keeps everything."""

    def __init__(self, *, rarely: bool = False):
        self.rarely = rarely
        self.decided = 0

    def decide(self, moment):
        if self.rarely and moment.when is When.AFTER_STEP and moment.step != 2:
            return None
        self.decided += 1
        everything = tuple(range(moment.model.conv.out_channels))
        return Decision(plan=plan_for(moment.model, everything if self.decided % 2 else None))


class CutAt(NoPruning):
    """Cuts to ``KEPT``, once."""

    def __init__(self, when, count):
        self.when, self.count = when, count

    def decide(self, moment):
        count = moment.epoch if moment.when is not When.AFTER_STEP else moment.step
        here = moment.when is self.when and count == self.count
        return Decision(plan=plan_for(moment.model, KEPT)) if here else None


def facts(result):
    """What an epoch's record says of the training itself."""
    return [(record.loss, record.accuracy, record.learning_rate) for record in result.history]


@pytest.mark.parametrize("name", RECIPES)
def test_plans_that_remove_nothing_leave_every_bit_as_it_is(name, splits):
    plain, disturbed = make_model(), make_model()
    policy = Ineffective(rarely=name in RARELY)
    expected = train(plain, splits, RECIPES[name])
    result = train(disturbed, splits, RECIPES[name], policy=policy)
    assert policy.decided >= 4
    here, there = plain.state_dict(), disturbed.state_dict()
    assert all(torch.equal(here[key], there[key]) for key in here)
    assert facts(result) == facts(expected)


@pytest.mark.parametrize(("when", "count"), [(When.AFTER_STEP, 4), (When.AFTER_EPOCH, 1), (When.BEFORE_TRAINING, 0)])
@pytest.mark.parametrize("name", [name for name in RECIPES if name not in RARELY])
def test_what_survives_a_cut_trains_on_as_if_nothing_had_left(name, when, count, splits):
    """Channels that hold nothing leave: the others keep momenta, averages and schedule, so nothing else changes."""
    whole, cut = make_model(silent=True), make_model(silent=True)
    expected = train(whole, splits, RECIPES[name])
    result = train(cut, splits, RECIPES[name], policy=CutAt(when, count))
    assert cut.conv.out_channels == len(KEPT)
    survivors = whole.state_dict()
    for key, dim in AXES:
        survivors[key] = survivors[key].index_select(dim, torch.tensor(KEPT))
    tolerance = {"rtol": 0.02, "atol": 2e-3} if name == "bf16" else {"rtol": 1e-4, "atol": 1e-5}
    for key, value in cut.state_dict().items():
        torch.testing.assert_close(value, survivors[key], **tolerance)
    assert [record.learning_rate for record in result.history] == [record.learning_rate for record in expected.history]
    assert [record.loss for record in result.history] == pytest.approx(
        [record.loss for record in expected.history], rel=tolerance["rtol"]
    )


def test_a_cut_that_forgot_the_momenta_would_be_seen(splits, monkeypatch):
    """The test above can fail: without its momenta the rest of the training goes elsewhere."""
    from prune2deploy.training import trainee

    def forgetful(optimizer, model, plan, *, dense_parameters):
        slicing(optimizer, model, plan, dense_parameters=dense_parameters)
        optimizer.state.clear()

    slicing = trainee.slice_optimizer_state
    monkeypatch.setattr(trainee, "slice_optimizer_state", forgetful)
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        test_what_survives_a_cut_trains_on_as_if_nothing_had_left("sgd", When.AFTER_STEP, 4, splits)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: fp16 with loss scaling")
@pytest.mark.parametrize("graph_backend", [None, "aot_eager"])
def test_a_cut_leaves_the_loss_scale_of_fp16_alone(graph_backend, splits):
    recipe = dataclasses.replace(RECIPE, mixed_precision="fp16", compile=graph_backend)
    plain, disturbed, cut = make_model(), make_model(), make_model()
    expected = train(plain, splits, recipe)
    result = train(disturbed, splits, recipe, policy=Ineffective(rarely=graph_backend is not None))
    assert [record.learning_rate for record in result.history] == [record.learning_rate for record in expected.history]
    here, there = plain.state_dict(), disturbed.state_dict()
    for key, value in here.items():
        torch.testing.assert_close(there[key], value, rtol=1e-3, atol=1e-4)
    pruned = train(cut, splits, recipe, policy=CutAt(When.AFTER_STEP, 4))
    assert cut.conv.out_channels == len(KEPT)
    assert all(tensor.isfinite().all() for tensor in cut.state_dict().values())
    assert pruned.history[-1].loss < pruned.history[0].loss
