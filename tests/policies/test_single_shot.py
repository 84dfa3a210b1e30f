"""3SP: scored once, before training, by what the loss says of a gate for each FLOP saved."""

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
from prune2deploy.errors import InputError, ModelError, TargetError
from prune2deploy.graph.trace import trace
from prune2deploy.importance.criterion import UNJUDGED
from prune2deploy.policies.aim import Aim
from prune2deploy.policies.policy import Moment, Setting, When
from prune2deploy.policies.single_shot import SingleShot, SingleShotOptions, sensitivity_scores
from prune2deploy.surgery.apply import apply_plan
from prune2deploy.training.loop import train
from prune2deploy.training.recipe import TrainingRecipe

AIM = Aim(budget=Budget(flops=0.5), granule=1, seed=5)


class Net(nn.Module):
    """Two normalised convolutions, the second with a stride, and a classifier; dropout in between."""

    def __init__(self):
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(1, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.second, self.norm2 = nn.Conv2d(12, 16, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(16)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(16, 3)

    def forward(self, images):
        hidden = self.dropout(self.norm1(self.first(images)).relu())
        return self.head(self.norm2(self.second(hidden)).relu().mean(dim=(2, 3)))


def net(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net()


def graph_of(model):
    return trace(model, torch.zeros(1, 1, 6, 6)).graph


def pictures(count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = torch.randn(count, 1, 6, 6, generator=generator)
    images[:, 0, :2] += 2 * labels[:, None, None]
    return images, labels


def setting(count=12, *, batches=1, processes=1, **more):
    images, labels = pictures(count)

    def samples(wanted):
        torch.rand(1)  # as a data loader does, which draws a seed for its workers
        chunks = zip(images[:wanted].chunk(batches), labels[:wanted].chunk(batches), strict=True)
        return list(chunks)

    given = {"epochs": 4, "steps_per_epoch": 3, "batch_size": count, "processes": processes, "samples": samples}
    return Setting(**{**given, **more})


def before(model):
    return Moment(when=When.BEFORE_TRAINING, model=model, epoch=0, step=0)


def decided(model, options=None, aim=AIM, **more):
    policy = SingleShot(graph_of(model), aim, options)
    policy.begin(model, setting(**more))
    return policy, policy.decide(before(model))


def test_the_score_is_the_absolute_gate_gradient_of_the_mean_loss():
    model = net().eval()  # no dropout in the expectation
    graph = graph_of(model)
    found = sensitivity_scores(graph, model, setting(), images=12)
    images, labels = pictures(12)
    model.norm1.train(), model.norm2.train()
    gates = [torch.ones(width, requires_grad=True) for width in (12, 16)]
    hidden = model.norm1(model.first(images)).relu() * gates[0][:, None, None]
    logits = model.head(model.norm2(model.second(hidden)).relu().mean(dim=(2, 3)) * gates[1])
    gradients = torch.autograd.grad(functional.cross_entropy(logits, labels), gates)
    expected = np.zeros(graph.channel_count)
    for group, gradient in zip(graph.groups, gradients, strict=True):
        expected[group.channels] = gradient.abs().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_the_absolute_value_is_taken_after_adding_up_batches_and_processes():
    """Two processes with one half each find what one process finds in two batches, and the sum of signed halves."""
    model = net()
    graph = graph_of(model)
    together = sensitivity_scores(graph, model, setting(batches=2), images=12)
    images, labels = pictures(12)
    halves = [[(images[:6], labels[:6])], [(images[6:], labels[6:])]]
    shares = []

    def noted(values):
        shares.append(values.copy())
        return values

    alone = [
        sensitivity_scores(graph, model, setting(samples=lambda n, half=half: half, summed=noted), images=12)
        for half in halves
    ]
    both = sensitivity_scores(
        graph, model, setting(samples=lambda n: halves[0], summed=lambda values: values + shares[1]), images=12
    )
    np.testing.assert_allclose(both, together, rtol=1e-9, atol=1e-15)
    assert (together < (alone[0] + alone[1]) / 2 - 1e-4).any()  # signs that cancel


def test_pruning_before_training_meets_the_target_and_disturbs_nothing():
    model = net().train()
    model.norm2.eval()
    state, flags = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    random_state = torch.random.get_rng_state()
    policy, decision = decided(model)
    assert torch.equal(random_state, torch.random.get_rng_state())
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())
    cost = graph_of(apply_plan(model, decision.plan)).cost
    assert 0.45 < cost.dense_flops / graph_of(net()).cost.dense_flops <= 0.5
    assert policy.decide(Moment(when=When.AFTER_EPOCH, model=model, epoch=1, step=3)) is None


def test_the_same_images_give_the_same_plan():
    assert decided(net())[1].plan.entries == decided(net())[1].plan.entries
    assert decided(net())[1].plan.entries != decided(net(seed=7))[1].plan.entries


def test_scores_are_divided_by_the_flops_that_the_options_name():
    """First layer: 2·36·9·1 own, 2·9·9·16 where it is read. Second: 2·9·9·12 own, 2·3 in the classifier."""
    model, found = net(), {}
    for per in ("marginal", "own-layer", "none"):
        policy = SingleShot(graph_of(model), AIM, SingleShotOptions(per=per))
        policy.begin(model, setting())
        found[per] = policy._scores(model, setting())
    first, second = (group.channels for group in graph_of(model).groups)
    np.testing.assert_allclose(found["none"][first] / found["marginal"][first], 648 + 2592, rtol=1e-12)
    np.testing.assert_allclose(found["none"][second] / found["marginal"][second], 1944 + 6, rtol=1e-12)
    np.testing.assert_allclose(found["none"][first] / found["own-layer"][first], 648, rtol=1e-12)
    np.testing.assert_allclose(found["none"][second] / found["own-layer"][second], 1944, rtol=1e-12)


def test_scores_divided_by_flops_remove_the_channel_with_the_least_for_each_flop():
    model = net()
    graph = graph_of(model)
    scores = sensitivity_scores(graph, model, setting(), images=12)
    everything = graph.everything()
    saved = np.zeros(graph.channel_count)
    for channel in range(graph.channel_count):
        without = everything.copy()
        without[channel] = False
        saved[channel] = graph.cost.dense_flops - graph.cost.flops(without)
    aim = dataclasses.replace(AIM, budget=Budget(flops=0.999))
    policy, decision = decided(model, aim=aim)
    left = {(entry.tensor, entry.dim): entry.kept for entry in decision.plan.entries}
    least = int(np.argmin(scores / saved))
    axis = next(axis for axis in graph.axes if least in axis.channels and axis.dim == 0)
    assert int(np.flatnonzero(axis.channels == least)[0]) not in left[axis.tensor, 0]
    assert policy.findings().document["kept"]["flops"] <= 0.999


@pytest.mark.parametrize("criterion", ["l2", "random", "taylor", "fisher"])
def test_a_registered_criterion_can_take_the_place_of_the_sensitivity(criterion):
    policy, decision = decided(net(), SingleShotOptions(criterion=criterion))
    assert decision.plan.entries
    document = policy.findings().document
    assert document["criterion"] == criterion
    assert document["images"] == (0 if criterion in ("l2", "random") else 12)


def test_random_follows_the_seed_of_the_aim():
    plans = [
        decided(net(), SingleShotOptions(criterion="random"), dataclasses.replace(AIM, seed=seed))[1].plan.entries
        for seed in (1, 1, 2)
    ]
    assert plans[0] == plans[1] != plans[2]


def test_findings_say_what_was_done_and_survive_the_state():
    policy, _ = decided(net(), SingleShotOptions(images=8))
    document = policy.findings().document
    assert (document["method"], document["per"], document["images"], document["alignment"]) == ("3sp", "marginal", 8, 1)
    assert document["seconds"]["total"] >= document["seconds"]["scoring"] > 0
    assert 0.45 < document["kept"]["flops"] <= 0.5
    assert document["widths"]["first"]["dense"] == 12
    again = SingleShot(graph_of(net()), AIM)
    again.load_state_dict(policy.state_dict())
    assert again.findings() == policy.findings()
    assert again._standing.kept.tolist() == policy._standing.kept.tolist()


def test_channels_that_no_weight_reads_are_unjudged():
    model = net()
    graph = graph_of(model)
    unread = dataclasses.replace(graph, axes=tuple(axis for axis in graph.axes if axis.tensor != "head.weight"))
    scores = sensitivity_scores(unread, model, setting(), images=12)
    last = next(group for group in graph.groups if group.name == "second").channels
    assert set(scores[last]) == {UNJUDGED}
    assert np.isfinite(scores[graph.groups[0].channels]).all()


def test_what_cannot_be_done_is_refused():
    with pytest.raises(InputError, match="needs a target"):
        SingleShot(graph_of(net()), Aim())
    with pytest.raises(InputError, match="--per"):
        SingleShotOptions(per="each")
    with pytest.raises(InputError, match="did you mean l2"):
        SingleShotOptions(criterion="l22")
    with pytest.raises(InputError, match="--score-images"):
        SingleShotOptions(images=1)
    with pytest.raises(InputError, match="at least 4: two for each process"):
        decided(net(), SingleShotOptions(images=3), processes=2)
    with pytest.raises(InputError, match="no images"):
        decided(net(), samples=lambda n: [])
    with pytest.raises(TargetError, match="no plan reaches"):
        decided(net(), aim=dataclasses.replace(AIM, budget=Budget(flops=0.0001)))
    broken = net()
    nn.init.constant_(broken.head.weight, float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        decided(broken)


def splits():
    images, labels = pictures(48)
    train_part, rest = TensorDataset(images[:36], labels[:36]), TensorDataset(images[36:], labels[36:])
    return DataSplits(
        name="blobs",
        train=train_part,
        evaluation=rest,
        calibration=train_part,
        class_names=("a", "b", "c"),
        input_shape=(1, 6, 6),
    )


def test_a_training_begins_with_the_pruned_network(tmp_path):
    recipe = TrainingRecipe(epochs=3, batch_size=12, learning_rate=0.05, seed=2)
    model, graph = net(), graph_of(net())
    policy = SingleShot(graph, AIM, SingleShotOptions(images=12))
    result = train(model, splits(), recipe, policy=policy)
    assert result.plan is not None
    assert graph_of(model).cost.dense_flops <= 0.5 * graph.cost.dense_flops
    assert {record.parameters for record in result.history} == {sum(one.numel() for one in model.parameters())}


def test_a_resumed_training_equals_an_unbroken_one(tmp_path):
    recipe = TrainingRecipe(epochs=3, batch_size=12, learning_rate=0.05, seed=2)
    unbroken, resumed = net(), net()
    first = SingleShot(graph_of(net()), AIM)
    train(unbroken, splits(), recipe, policy=first)

    class Stopped(SingleShot):
        def decide(self, moment):
            if moment.when is When.AFTER_STEP and moment.step == 5:
                raise KeyboardInterrupt
            return super().decide(moment)

    state = tmp_path / "state.pt"
    with pytest.raises(KeyboardInterrupt):
        train(net(), splits(), recipe, state_path=state, policy=Stopped(graph_of(net()), AIM))
    second = SingleShot(graph_of(net()), AIM)
    train(resumed, splits(), recipe, state_path=state, resume=True, policy=second)
    for name, value in unbroken.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name])
    assert second.findings().document["widths"] == first.findings().document["widths"]
