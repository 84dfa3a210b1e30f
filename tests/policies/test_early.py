"""EPI: when would-be widths have settled, the network is pruned, and the training goes on."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from prune2deploy.budget.target import Budget
from prune2deploy.data.splits import DataSplits
from prune2deploy.errors import InputError, TargetError
from prune2deploy.graph.trace import trace
from prune2deploy.importance.criteria import criterion_named, score_channels
from prune2deploy.importance.taylor import taylor_sums
from prune2deploy.policies.aim import Aim
from prune2deploy.policies.early import Early, EarlyOptions
from prune2deploy.policies.policy import Moment, Setting, StepView, When
from prune2deploy.policies.stability import indicator
from prune2deploy.training.loop import train
from prune2deploy.training.recipe import TrainingRecipe

AIM = Aim(budget=Budget(flops=0.5), granule=1)


def net(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1, bias=False),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.Conv2d(12, 16, 3, padding=1, stride=2, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.1),
            nn.Linear(16, 3),
        )


def graph_of(model):
    return trace(model, torch.zeros(1, 1, 6, 6)).graph


def pictures(count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = torch.randn(count, 1, 6, 6, generator=generator)
    images[:, 0, :2] += 2 * labels[:, None, None]
    return images, labels


def setting(**more):
    images, labels = pictures(12)
    given = {
        "epochs": 20,
        "steps_per_epoch": 2,
        "batch_size": 12,
        "processes": 1,
        "samples": lambda wanted: [(images[:wanted], labels[:wanted])],
    }
    return Setting(**{**given, **more})


def after(epoch, model):
    return Moment(when=When.AFTER_EPOCH, model=model, epoch=epoch, step=2 * epoch)


def jumbled(model, epoch):
    """Weights of which other layers are large in each epoch, so that the widths move."""
    generator = torch.Generator().manual_seed(epoch)
    with torch.no_grad():
        for name in ("0", "3"):
            weight = model.get_submodule(name).weight
            scale = torch.rand(len(weight), generator=generator) ** (1 + 10 * ((epoch + int(name)) % 2))
            weight.copy_(torch.ones_like(weight) * scale[:, None, None, None])


def begun(options, **more):
    model = net()
    policy = Early(graph_of(model), AIM, options)
    policy.begin(model, setting(**more))
    return model, policy


def test_a_network_whose_widths_stand_still_is_pruned_as_soon_as_the_indicator_exists():
    model, policy = begun(EarlyOptions(window=3))
    decisions = [policy.decide(after(epoch, model)) for epoch in range(1, 7)]
    assert [decision is not None for decision in decisions] == [False, False, False, True, False, False]
    document = policy.findings().document
    assert [point["epi"] for point in document["curve"]] == [None, None, None, 1.0]
    assert (document["pruned"]["epoch"], document["pruned"]["how"]) == (4, "indicator")
    assert policy.findings().notes == ()


def test_the_curve_is_the_indicator_of_the_widths_that_the_allocation_would_leave():
    model, policy = begun(EarlyOptions(window=2, threshold=0.999, fallback_epoch=7))
    graph, history = graph_of(net()), []
    for epoch in range(1, 7):
        jumbled(model, epoch)
        assert policy.decide(after(epoch, model)) is None
        scores = score_channels(graph, model, criterion=criterion_named("l2"))
        history.append(graph.kept_widths(AIM.allocation(graph, scores, budget=AIM.budget).kept))
        point = policy.findings().document["curve"][-1]
        assert point == {"epoch": epoch, "epi": indicator(history, 2), "widths": list(history[-1])}
    assert len(set(history)) > 1


def test_the_widths_follow_the_alignment_that_will_be_used():
    model = net()
    policy = Early(graph_of(model), dataclasses.replace(AIM, granule=4), EarlyOptions())
    policy.begin(model, setting())
    policy.decide(after(1, model))
    assert all(width % 4 == 0 for point in policy.findings().document["curve"] for width in point["widths"][1:])


def test_one_that_never_settles_is_pruned_at_the_fallback_epoch_with_a_warning():
    model, policy = begun(EarlyOptions(window=2, threshold=0.999, fallback_epoch=5))
    decided = []
    for epoch in range(1, 6):
        jumbled(model, epoch)
        decided.append(policy.decide(after(epoch, model)))
    assert [decision is not None for decision in decided] == [False] * 4 + [True]
    findings = policy.findings()
    assert findings.document["pruned"]["how"] == "fallback"
    assert "had not settled above 0.999 by epoch 5" in findings.notes[0]
    assert "its highest value was 0." in findings.notes[0]


def test_the_fallback_is_half_of_the_training_by_default():
    model, policy = begun(EarlyOptions(window=5), epochs=6)
    decided = [policy.decide(after(epoch, model)) is not None for epoch in (1, 2, 3)]
    assert decided == [False, False, True]
    assert "it was not defined yet" in policy.findings().notes[0]


@pytest.mark.parametrize("epoch", [0, 1, 3])
@pytest.mark.parametrize("criterion", ["l2", "taylor", "fisher"])
def test_a_fixed_epoch_is_kept_whatever_the_indicator_says(epoch, criterion):
    model, policy = begun(EarlyOptions(prune_epoch=epoch, criterion=criterion, images=12, window=1))
    first = Moment(when=When.BEFORE_TRAINING, model=model, epoch=0, step=0)
    decided = [policy.decide(first)] + [policy.decide(after(one, model)) for one in range(1, 5)]
    assert [index for index, decision in enumerate(decided) if decision is not None] == [epoch]
    assert policy.findings().document["pruned"]["how"] == "fixed"
    assert policy.findings().notes == ()


def step_of(model, seed):
    images, labels = pictures(6, seed)
    model.zero_grad()
    logits = model(images)
    loss = functional.cross_entropy(logits, labels)
    loss.backward()
    view = {"model": model, "images": images, "labels": labels, "logits": logits.detach(), "loss": loss.detach()}
    return StepView(**view, epoch=0, step=seed)


def test_taylor_is_accumulated_over_the_steps_of_the_epoch_alone():
    model, policy = begun(EarlyOptions(criterion="taylor", window=1, threshold=0.5, prune_epoch=2))
    graph = graph_of(net())
    axes = [axis for axis in graph.axes if axis.learnable]
    policy.observe(step_of(model, 1))  # of the first epoch: forgotten after it
    assert policy.decide(after(1, model)) is None
    expected = np.zeros(graph.channel_count)
    for seed in (2, 3):
        policy.observe(step_of(model, seed))
        weights = dict(model.named_parameters())
        expected += taylor_sums(graph, axes, weights, {name: weight.grad for name, weight in weights.items()}) ** 2
    for group in graph.groups:
        expected[group.channels] /= expected[group.channels].mean()
    decision = policy.decide(after(2, model))
    kept = AIM.allocation(graph, expected, budget=AIM.budget).kept
    assert policy._standing.kept.tolist() == kept.tolist()
    assert decision.plan.entries


def test_processes_that_saw_other_sums_decide_by_the_sum_of_all():
    """Sums of two processes that differ, each handed the sum of both: the same plan in both."""
    shares, plans = [], []
    for seed in (1, 2):
        model, policy = begun(EarlyOptions(criterion="taylor", prune_epoch=1), summed=lambda v: shares.append(v) or v)
        policy.observe(step_of(model, seed))
        policy.decide(after(1, model))
    assert not np.array_equal(shares[0], shares[1])
    for seed in (1, 2):
        model, policy = begun(EarlyOptions(criterion="taylor", prune_epoch=1), summed=lambda v: shares[0] + shares[1])
        policy.observe(step_of(model, seed))
        plans.append(policy.decide(after(1, model)).plan.entries)
    assert plans[0] == plans[1]


def test_what_cannot_be_done_is_refused_before_training():
    with pytest.raises(InputError, match="needs a target"):
        Early(graph_of(net()), Aim())
    with pytest.raises(InputError, match=r"no known threshold for the criterion fisher.*--threshold"):
        EarlyOptions(criterion="fisher")
    assert EarlyOptions(criterion="fisher", threshold=0.9).tau == 0.9
    assert EarlyOptions(criterion="fisher", prune_epoch=3).tau is None
    assert (EarlyOptions().tau, EarlyOptions(criterion="taylor").tau) == (0.983, 0.944)
    for wrong in ({"window": 0}, {"threshold": 1.5}, {"fallback_epoch": 0}, {"prune_epoch": -1}, {"images": 1}):
        with pytest.raises(InputError, match="--"):
            EarlyOptions(**wrong)
    with pytest.raises(InputError, match="--prune-epoch: pruning after 20 of 20 epochs leaves none"):
        begun(EarlyOptions(prune_epoch=20))
    with pytest.raises(InputError, match="--fallback-epoch"):
        begun(EarlyOptions(), epochs=1)
    impossible = Early(graph_of(net()), dataclasses.replace(AIM, budget=Budget(flops=0.0001)))
    with pytest.raises(TargetError, match="no plan reaches"):
        impossible.begin(net(), setting())


def splits():
    images, labels = pictures(48)
    train_part, rest = TensorDataset(images[:36], labels[:36]), TensorDataset(images[36:], labels[36:])
    names = ("a", "b", "c")
    parts = {"train": train_part, "evaluation": rest, "calibration": train_part}
    return DataSplits(name="blobs", **parts, class_names=names, input_shape=(1, 6, 6))


RECIPE = TrainingRecipe(epochs=8, batch_size=12, learning_rate=0.05, seed=2)


@pytest.mark.parametrize("criterion", ["l2", "taylor"])
def test_a_training_is_pruned_on_the_way_and_goes_on(criterion):
    model, graph = net(), graph_of(net())
    policy = Early(graph, AIM, EarlyOptions(criterion=criterion, window=2, threshold=0.7))
    result = train(model, splits(), RECIPE, policy=policy)
    pruned = policy.findings().document["pruned"]
    assert 3 <= pruned["epoch"] <= 4
    counts = [record.parameters for record in result.history]
    assert counts == [counts[0]] * pruned["epoch"] + [counts[-1]] * (8 - pruned["epoch"])
    assert counts[-1] < counts[0]
    assert graph_of(model).cost.dense_flops <= 0.5 * graph.cost.dense_flops
    json.dumps(dict(policy.findings().document))


@pytest.mark.parametrize("stop", [4, 8, 16])
def test_a_resumed_training_equals_an_unbroken_one(tmp_path, stop):
    """Stopped in the second epoch, before the pruning (after the fourth), and after it."""
    options = EarlyOptions(criterion="taylor", window=2, threshold=0.9999, fallback_epoch=4)

    class Stopped(Early):
        def decide(self, moment):
            if moment.when is When.AFTER_STEP and moment.step == stop:
                raise KeyboardInterrupt
            return super().decide(moment)

    unbroken, resumed, state = net(), net(), tmp_path / "state.pt"
    first, second = (Early(graph_of(net()), AIM, options) for _ in range(2))
    train(unbroken, splits(), RECIPE, policy=first)
    with pytest.raises(KeyboardInterrupt):
        train(net(), splits(), RECIPE, state_path=state, policy=Stopped(graph_of(net()), AIM, options))
    train(resumed, splits(), RECIPE, state_path=state, resume=True, policy=second)
    for name, value in unbroken.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name])
    assert second.findings() == first.findings()


def test_watching_the_widths_changes_nothing_before_the_network_is_pruned():
    """A training that is pruned after the last epoch but one is, until then, a dense one."""
    watched, plain = net(), net()
    options = EarlyOptions(criterion="fisher", prune_epoch=7, images=12)
    with_policy = train(watched, splits(), RECIPE, policy=Early(graph_of(net()), AIM, options))
    without = train(plain, splits(), RECIPE)
    assert [one.loss for one in with_policy.history[:7]] == [one.loss for one in without.history[:7]]
