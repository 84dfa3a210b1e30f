import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from prune2deploy.budget.target import Budget
from prune2deploy.data.splits import DataSplits
from prune2deploy.errors import InputError, ModelError
from prune2deploy.graph.rectifiers import activations_of
from prune2deploy.graph.trace import trace
from prune2deploy.policies.activation_counts import ActivationCounter
from prune2deploy.policies.activation_density import ActivationDensity, ActivationDensityOptions
from prune2deploy.policies.aim import Aim
from prune2deploy.policies.density_rounds import cut_by_density, moved, plateaued
from prune2deploy.policies.policy import Moment, Setting, StepView, When
from prune2deploy.surgery.apply import pruned_copy
from prune2deploy.training.loop import train
from prune2deploy.training.recipe import TrainingRecipe

RECIPE = TrainingRecipe(epochs=8, batch_size=10, learning_rate=0.05, seed=3)
UNALIGNED = Aim(granule=1)
QUICK = ActivationDensityOptions(window=1, epsilon=0.5, max_rounds=1)


class Net(nn.Module):
    """Two rectified convolutions of 8 and 12 channels and a classifier; no rectifier is a module."""

    def __init__(self, activation=functional.relu):
        super().__init__()
        self.activation = activation
        self.first = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 12, 3, padding=1, bias=False)
        self.last_norm = nn.BatchNorm2d(12)
        self.classifier = nn.Linear(12, 3)

    def forward(self, images):
        hidden = self.activation(self.norm(self.first(images)))
        return self.classifier(self.last_norm(self.second(hidden)).relu().mean(dim=(2, 3)))


class Residual(nn.Module):
    """A stream of 6 channels that two rectifiers read, and a branch of 4."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.inner = nn.Conv2d(6, 4, 3, padding=1)
        self.outer = nn.Conv2d(4, 6, 3, padding=1)
        self.classifier = nn.Linear(6, 3)

    def forward(self, images):
        stream = self.stem(images).relu()
        stream = (stream + self.outer(self.inner(stream).relu())).relu()
        return self.classifier(stream.mean(dim=(2, 3)))


def seeded(model, *arguments):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return model(*arguments)


def splits(count=40):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count + 12) % 3
    images = torch.randn(len(labels), 1, 4, 4, generator=generator)
    images[:, 0, 0] += 3 * labels[:, None]
    parts = [TensorDataset(images[part], labels[part]) for part in (slice(count), slice(count, None), slice(count))]
    return DataSplits(
        name="blobs",
        train=parts[0],
        evaluation=parts[1],
        calibration=parts[2],
        class_names=("a", "b", "c"),
        input_shape=(1, 4, 4),
    )


def noise(count):
    return torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def traced(model):
    return trace(model, torch.zeros(1, 1, 4, 4))


def policy_of(model, options=QUICK, aim=UNALIGNED):
    seen = traced(model)
    return ActivationDensity(seen.graph, aim, options, activations=activations_of(seen))


def setting(epochs=8, summed=None):
    fields = {
        "epochs": epochs,
        "steps_per_epoch": 2,
        "batch_size": 10,
        "processes": 1,
        "samples": lambda count: iter(()),
    }
    return Setting(**fields) if summed is None else Setting(**fields, summed=summed)


def drive(policy, model, images, *, epochs, accuracy=lambda epoch: 0.9, steps=1):
    """Epochs of training steps on the same images, without an optimiser: the decisions, and the model as cut."""
    decisions = []
    for epoch in range(epochs):
        for _ in range(steps):
            loss = model.train()(images).square().mean()
            view = StepView(
                model=model,
                images=images,
                labels=torch.zeros(len(images), dtype=torch.long),
                logits=torch.zeros(len(images), 3),
                loss=loss.detach(),
                epoch=epoch,
                step=epoch * steps,
            )
            policy.observe(view)
        moment = Moment(
            when=When.AFTER_EPOCH, model=model, epoch=epoch + 1, step=epoch, training_accuracy=accuracy(epoch + 1)
        )
        decisions.append(policy.decide(moment))
        if decisions[-1] is not None:
            policy.end()
            model = pruned_copy(model, decisions[-1].plan)
            policy.begin(model, setting(epochs))
    return decisions, model


def test_a_plateau_compares_two_windows_of_every_layer():
    still = [[0.9, 0.1], [0.5, 0.3], [0.5, 0.5], [0.5, 0.4], [0.5, 0.41]]
    assert plateaued(still, window=2, epsilon=0.01)
    assert not plateaued(still[:3], window=2, epsilon=0.5)
    assert not plateaued([*still, [0.5, 0.44]], window=2, epsilon=0.01)
    assert moved([0.5, 0.5], np.array([0.5, 0.51]), epsilon=0.01)
    assert not moved([0.5, 0.5], np.array([0.5, 0.509]), epsilon=0.01)


def test_widths_are_width_times_density_and_the_densest_channels_stay():
    graph = traced(seeded(Net)).graph
    densities = np.linspace(0, 1, graph.channel_count)
    cut = cut_by_density(
        graph, graph.everything(), {0: 0.55, 1: 0.01}, channel_densities=densities, granule=1, budget=None
    )
    first, second = (group.channels[cut.kept[group.channels]] for group in graph.groups)
    assert first.tolist() == sorted(graph.groups[0].channels.tolist())[4:]  # 8 x 0.55 = 4.4
    assert second.tolist() == [max(graph.groups[1].channels)]  # never empty
    assert cut.share == 1


def test_aligned_widths_are_the_nearest_multiples():
    model = nn.Sequential(nn.Conv2d(1, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 3, 1))
    graph = traced(model).graph
    for density, width in ((0.95, 64), (0.86, 48), (0.5, 32), (0.01, 16)):
        cut = cut_by_density(
            graph,
            graph.everything(),
            {0: density},
            channel_densities=np.ones(64),
            granule=16,
            budget=None,
        )
        assert cut.kept.sum() == width


@pytest.mark.parametrize("flops", [0.8, 0.5, 0.25])
def test_the_cut_that_meets_a_budget_takes_no_more_than_it_needs(flops):
    graph = traced(seeded(Net)).graph
    budget = Budget(flops=flops)
    arguments = {"channel_densities": np.arange(graph.channel_count) * 1.0, "granule": 1}
    densities = {0: 0.2, 1: 0.3}
    whole = cut_by_density(graph, graph.everything(), densities, budget=None, **arguments)
    cut = cut_by_density(graph, graph.everything(), densities, budget=budget, **arguments)
    assert budget.share_used(graph.cost, whole.kept) < 0.9
    assert 0.9 < budget.share_used(graph.cost, cut.kept) <= 1
    assert cut.kept[whole.kept].all()
    assert 0 < cut.share < 1
    for group in graph.groups:  # nothing more could stay
        gone = group.channels[~cut.kept[group.channels]]
        wider = cut.kept.copy()
        wider[gone[-1:]] = True
        assert not len(gone) or budget.share_used(graph.cost, wider) > 1


def test_counts_are_those_of_the_rectified_values():
    model, images = seeded(Net), noise(5)
    seen = traced(model)
    counter = ActivationCounter(activations_of(seen), threshold=None)
    counter.stand_at(seen.graph.everything())
    counter.attach(model)
    model.train()
    values = functional.relu(model.norm(model.first(images)))
    model(images)
    expected = (values > 0).float().mean(dim=(0, 2, 3))
    shares = counter.shares(lambda counts: counts)
    np.testing.assert_allclose(shares[0][seen.graph.groups[0].channels], expected.numpy(), rtol=1e-6)
    assert np.isnan(shares[0][seen.graph.groups[1].channels]).all()
    model.eval()(images - 9)
    with torch.no_grad():
        model.train()(images - 9)
    copy.deepcopy(model).train()(images - 9)
    np.testing.assert_array_equal(counter.shares(lambda counts: counts), shares)
    counter.detach()
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_parts_of_a_batch_and_other_processes_add_up():
    model, images = seeded(Net), noise(6)
    for norm in (model.norm, model.last_norm):
        norm.track_running_stats = True
        norm.momentum = 0.0
    seen = traced(model)

    def counts_of(*batches):
        counter, raw = ActivationCounter(activations_of(seen), threshold=0.1), []
        counter.stand_at(seen.graph.everything())
        counter.attach(model)
        for batch in batches:
            model.train()(batch)
        shares = counter.shares(lambda counts: raw.append(counts) or counts)
        counter.detach()
        return counter, raw[0], shares

    _, _, apart = counts_of(images[:2], images[2:])
    _, theirs, _ = counts_of(images[2:])
    counter, _, _ = counts_of(images[:2])
    np.testing.assert_array_equal(counter.shares(lambda counts: counts + theirs), apart)


class Sometimes(Net):
    def __init__(self, extra):
        super().__init__()
        self.extra = extra

    def forward(self, images):
        if self.training:
            images = self.extra(images)
        return super().forward(images)


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (functional.gelu, "calls gelu where the traced model calls relu"),
        (functional.relu, "gives relu shape"),
    ],
)
def test_another_forward_pass_in_training_is_refused_by_place(extra, said):
    model = Sometimes(extra)
    policy = policy_of(model)
    policy.begin(model, setting())
    with pytest.raises(ModelError, match=said) as raised:
        model.train()(torch.randn(2, 1, 4, 4))
    assert "test_activation_density.py" in raised.value.where
    policy.end()
    model(torch.randn(2, 1, 4, 4))


def test_a_missing_or_further_call_is_refused():
    class Fewer(Net):
        def forward(self, images):
            hidden = self.norm(self.first(images)).relu()
            hidden = self.last_norm(self.second(hidden))
            hidden = hidden if self.training and self.fewer else hidden.relu()
            return self.classifier((hidden.relu() if self.training and self.more else hidden).mean(dim=(2, 3)))

    for fewer, more, said in ((True, False, "does not call relu"), (False, True, "once more")):
        model = Fewer()
        model.fewer, model.more = fewer, more
        policy = policy_of(model)
        policy.begin(model, setting())
        with pytest.raises(ModelError, match=said):
            model.train()(torch.randn(2, 1, 4, 4))


def test_the_density_of_a_stream_is_the_largest_of_its_rectifiers():
    model = seeded(Residual)
    with torch.no_grad():
        model.stem.weight.zero_()
        model.stem.bias.copy_(torch.tensor([1.0, 1, 1, 0, 0, 0]))  # half of it passes the first rectifier
        model.outer.weight.zero_()
        model.outer.bias.copy_(torch.tensor([0.0, 0, -9, 1, 1, 0]))  # and 4 of 6 the second one
    policy = policy_of(model, aim=Aim(granule=1))
    policy.begin(model, setting())
    decisions, cut = drive(policy, model, noise(4), epochs=2)
    densities = policy.findings().document["curve"][0]["densities"]
    assert densities["stem"] == pytest.approx(4 / 6)
    assert [decision is None for decision in decisions] == [True, False]
    assert cut.stem.out_channels == 4
    # by channel the largest share counts too: 0, 1 and 2 pass the first one, 3 and 4 the second
    assert cut.stem.bias.tolist() == [1, 1, 1, 0]


def test_rounds_go_on_until_densities_stop_moving():
    model = seeded(Net)
    policy = policy_of(model, ActivationDensityOptions(window=1, epsilon=0.2))
    policy.begin(model, setting(12))
    decisions, cut = drive(policy, model, noise(20), epochs=12)
    # a norm in front of a rectifier lets about a half pass, at every width
    assert [number for number, decision in enumerate(decisions) if decision] == [1]
    document = policy.findings().document
    assert document["stopped"] == "densities no longer move"
    assert [one["epochs"] for one in document["rounds"]] == [2, 10]
    assert document["rounds"][1]["widths"] == {"first": cut.first.out_channels, "second": cut.second.out_channels}
    assert cut.first.out_channels == pytest.approx(4, abs=1)
    flops = document["rounds"][1]["flops"]
    assert document["training_complexity"] == pytest.approx((2 + 10 * flops) / 12)
    assert (
        policy.findings()
        .notes[0]
        .startswith("rounds that ended in a cut: 1; there was no other because densities no longer move")
    )
    assert decisions[1].fresh_weights is False


@pytest.mark.parametrize("recovers", [True, False])
def test_a_round_goes_on_while_training_accuracy_is_below_an_earlier_one(recovers):
    model = seeded(Net)
    policy = policy_of(model, ActivationDensityOptions(window=1, epsilon=1e-6, accuracy_drop=0.1))
    policy.begin(model, setting(12))

    def accuracy(epoch):
        return 0.85 if epoch <= 2 or (recovers and epoch >= 7) else 0.7

    decisions, _ = drive(policy, model, noise(20), epochs=12, accuracy=accuracy)
    cuts = [number + 1 for number, decision in enumerate(decisions) if decision]
    assert cuts == ([2, 7, 9] if recovers else [2])
    if not recovers:
        assert policy.findings().document["stopped"] == "training accuracy is 0.700 after 0.850 in an earlier round"


def test_a_cut_leaves_time_for_another_round():
    model = seeded(Net)
    policy = policy_of(model, ActivationDensityOptions(window=1, epsilon=0.9, minimum_epochs=3))
    policy.begin(model, setting(5))
    decisions, _ = drive(policy, model, noise(20), epochs=5)
    assert decisions == [None] * 5
    assert "fewer than 3 epochs" in policy.findings().document["stopped"]


def test_one_step_of_so_many_is_watched():
    model, images = seeded(Net), noise(4)
    policy = policy_of(model, dataclasses.replace(QUICK, every=3))
    policy.begin(model, setting())
    watched = []
    model.register_forward_pre_hook(lambda module, inputs: watched.append(policy._counter.is_on))
    drive(policy, model, images, epochs=1, steps=7)
    assert watched == [True, False, False, True, False, False, True]


def test_a_budget_ends_the_rounds_just_below_it():
    model = seeded(Net)
    policy = policy_of(model, QUICK, Aim(granule=1, budget=Budget(flops=0.6)))
    policy.begin(model, setting(8))
    _, cut = drive(policy, model, noise(20), epochs=8)
    document = policy.findings().document
    assert (document["stopped"], document["reached"]) == ("the target is met", True)
    assert 0.5 < document["flops"] <= 0.6
    assert cut.first.out_channels < 8


def test_an_unreached_budget_is_told():
    model = seeded(Net)
    policy = policy_of(model, QUICK, Aim(granule=1, budget=Budget(flops=0.01)))
    policy.begin(model, setting(8))
    drive(policy, model, noise(20), epochs=8)
    assert policy.findings().document["reached"] is False
    assert any("the target was not reached" in note for note in policy.findings().notes)


def test_smooth_networks_need_a_threshold_and_partly_smooth_ones_say_what_stays():
    smooth = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 3, 1))
    with pytest.raises(InputError, match="--threshold"):
        policy_of(smooth).begin(smooth, setting())
    policy_of(smooth, dataclasses.replace(QUICK, threshold=0.1)).begin(smooth, setting())
    mixed = seeded(Net, functional.gelu)
    policy = policy_of(mixed)
    policy.begin(mixed, setting())
    _, cut = drive(policy, mixed, noise(20), epochs=2)
    assert cut.first.out_channels == 8
    assert cut.second.out_channels < 12
    assert any("no rectifier sees them (1): first" in n for n in policy.findings().notes)


@pytest.mark.parametrize(
    "wrong",
    [
        {"keep": "best"},
        {"window": 0},
        {"epsilon": 0},
        {"minimum_epochs": 5},
        {"threshold": -1.0},
        {"max_rounds": 0},
        {"every": 0},
        {"accuracy_drop": 2},
    ],
)
def test_options_out_of_range_are_refused_by_name(wrong):
    (name,) = wrong
    with pytest.raises(InputError, match=f"activation-density {name}"):
        ActivationDensityOptions(**wrong)


@pytest.mark.parametrize("keep", ["keep-densest", "reinitialise"])
def test_training_is_cut_in_rounds_and_resumes_to_the_same_bits(keep, tmp_path):
    options = ActivationDensityOptions(window=1, epsilon=0.6, keep=keep, max_rounds=2, accuracy_drop=1)
    drawn = []

    def reinitialise(model):
        drawn.append(model.first.out_channels)
        torch.manual_seed(len(drawn))
        for module in model.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()

    class StopError(Exception):
        pass

    class Interrupted(ActivationDensity):
        def decide(self, moment):
            if moment.when is When.AFTER_STEP and moment.step == 13:
                raise StopError
            return super().decide(moment)

    def run(kind, model, **arguments):
        seen = traced(model)
        policy = kind(seen.graph, Aim(granule=1), options, activations=activations_of(seen))
        return train(model, splits(), RECIPE, policy=policy, reinitialise=reinitialise, **arguments)

    whole, resumed = seeded(Net), seeded(Net)
    uninterrupted = run(ActivationDensity, whole)
    assert uninterrupted.plan is not None
    rounds = uninterrupted.findings.document["rounds"]
    assert [one["epochs"] for one in rounds] == [2, 6]
    assert rounds[1]["widths"] == {"first": whole.first.out_channels, "second": whole.second.out_channels}
    assert whole.first.out_channels == round(8 * rounds[0]["densities"]["first"])
    if keep == "reinitialise":
        assert drawn == [whole.first.out_channels]
    drawn.clear()
    state = tmp_path / "state.pt"
    with pytest.raises(StopError):
        run(Interrupted, copy.deepcopy(resumed), state_path=state)
    again = run(ActivationDensity, resumed, state_path=state, resume=True)
    assert again.resumed_at == 3
    assert again.plan == uninterrupted.plan
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())
    assert again.findings == uninterrupted.findings
    assert not resumed._forward_hooks


@pytest.mark.parametrize("changes", [{"compile": "eager"}, {"micro_batches": 2}, {"ema_decay": 0.9}], ids=str)
def test_densities_are_the_same_however_a_step_is_run(changes):
    curves = []
    for recipe in (RECIPE, dataclasses.replace(RECIPE, **changes)):
        model = seeded(Net)
        for norm in (model.norm, model.last_norm):
            norm.eval()
            norm.train = lambda mode, norm=norm: norm  # one part of a batch has the statistics of all
        policy = policy_of(model, ActivationDensityOptions(window=1))
        result = train(model, splits(), dataclasses.replace(recipe, epochs=2), policy=policy)
        curves.append([one["densities"]["first"] for one in result.findings.document["curve"]])
    assert curves[0] == pytest.approx(curves[1], abs=1e-3)
