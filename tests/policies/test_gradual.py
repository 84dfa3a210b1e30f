"""Pruning during fine-tuning: Fisher from the steps themselves, and iterative schedules for any criterion."""

import copy
import dataclasses
import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from prune2deploy.budget.from_mask import mask_from_plan
from prune2deploy.budget.target import Budget
from prune2deploy.data.splits import DataSplits
from prune2deploy.errors import InputError, TargetError
from prune2deploy.graph.marginal import marginal_flops
from prune2deploy.graph.trace import trace
from prune2deploy.importance.fisher import fisher
from prune2deploy.importance.flop_penalty import with_flop_penalty
from prune2deploy.importance.running_fisher import RunningFisher
from prune2deploy.importance.taylor import taylor
from prune2deploy.policies.aim import Aim
from prune2deploy.policies.gradual import Gradual, GradualOptions, cutting_steps
from prune2deploy.policies.policy import NoPruning, When
from prune2deploy.training.loop import train
from prune2deploy.training.recipe import TrainingRecipe

AIM = Aim(budget=Budget(flops=0.5), granule=1, seed=5)
RECIPE = TrainingRecipe(epochs=3, batch_size=8, learning_rate=0.02, warmup_epochs=0.0, seed=3)
FROZEN = dataclasses.replace(RECIPE, learning_rate=1e-30, weight_decay=0.0, epochs=1)


class Plain(nn.Module):
    """A stream that three layers read, a grouped convolution, and no norm: images do not influence one another."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.inside = nn.Conv2d(8, 12, 3, padding=1)
        self.grouped = nn.Conv2d(12, 12, 3, padding=1, groups=2)
        self.back = nn.Conv2d(12, 8, 1)
        self.head = nn.Linear(8, 3)

    def forward(self, images):
        stream = self.stem(images).tanh()
        stream = stream + self.back(self.grouped(self.inside(stream).relu()).relu())
        return self.head(stream.mean(dim=(2, 3)))


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(1, 10, 3, padding=1, bias=False), nn.BatchNorm2d(10)
        self.second, self.norm2 = nn.Conv2d(10, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.head = nn.Linear(12, 3)

    def forward(self, images, gates=None):
        hidden = self.norm1(self.first(images)).relu()
        if gates is not None:
            hidden = hidden * gates[0][:, :, None, None]
        hidden = self.norm2(self.second(hidden)).relu().mean(dim=(2, 3))
        return self.head(hidden if gates is None else hidden * gates[1])


class Functional(Plain):
    """Its classifier is a module whose weight is read by a function: no hook of the module hears it."""

    def forward(self, images):
        stream = self.stem(images).tanh()
        return functional.linear(stream.mean(dim=(2, 3)), self.head.weight, self.head.bias)


def net(kind=Normed, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind()


def graph_of(model):
    return trace(model, torch.zeros(1, 1, 6, 6)).graph


def make_splits(count=40):
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(count + 12) % 3
    images = torch.randn(count + 12, 1, 6, 6, generator=generator)
    images[:, 0, :2] += 2 * labels[:, None, None]
    train_split, rest = TensorDataset(images[:count], labels[:count]), TensorDataset(images[count:], labels[count:])
    return DataSplits(
        name="stripes",
        train=train_split,
        evaluation=rest,
        calibration=train_split,
        class_names=("a", "b", "c"),
        input_shape=(1, 6, 6),
    )


class Listening(NoPruning):
    """Keeps what a running Fisher heard in all steps."""

    def __init__(self, graph):
        self.graph = graph

    def begin(self, model, setting):
        self.fisher = RunningFisher(self.graph, model)

    def observe(self, step):
        gates = self.fisher.step(step.model, len(step.images), scale=step.loss_scale)
        if gates is not None:
            self.fisher.settle(*gates)

    def end(self):
        self.fisher.remove()

    @property
    def scores(self):
        return self.fisher.scores(*self.fisher.sums())


@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize("batch_size", [8, 40, 12])
def test_fisher_of_the_steps_is_fisher_of_the_images_while_the_weights_rest(micro_batches, batch_size):
    model, splits = net(Plain), make_splits()
    before = copy.deepcopy(model)
    listening = Listening(graph_of(model))
    recipe = dataclasses.replace(FROZEN, batch_size=batch_size, micro_batches=micro_batches)
    train(model, splits, recipe, policy=listening)
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), before.parameters(), strict=True))
    assert listening.fisher.fit is True
    assert listening.fisher.sums()[1] == 40
    expected = fisher(graph_of(before), before, [splits.train.tensors])
    np.testing.assert_allclose(listening.scores, expected, rtol=1e-4, atol=1e-7 * expected.max())


def test_with_batch_statistics_each_image_has_its_own_gate_as_autograd_has_it():
    model, splits = net(), make_splits()
    images, labels = splits.train.tensors
    gates = [torch.ones(40, width, requires_grad=True) for width in (10, 12)]
    reference = copy.deepcopy(model).train()
    functional.cross_entropy(reference(images, gates), labels, reduction="sum").backward()
    expected = torch.cat([gate.grad.square().sum(dim=0) for gate in gates]) / (2 * 40)

    graph = graph_of(model)
    listening = Listening(graph)
    train(model, splits, dataclasses.replace(FROZEN, batch_size=40), policy=listening)
    first, second = (group.channels for group in graph.groups)
    np.testing.assert_allclose(listening.scores[np.r_[first, second]], expected.numpy(), rtol=1e-3)


def test_listening_changes_nothing_and_leaves_nothing_on_the_model():
    alone, heard = net(), net()
    train(alone, make_splits(), RECIPE)
    train(heard, make_splits(), RECIPE, policy=Listening(graph_of(heard)))
    for one, other in zip(alone.state_dict().values(), heard.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert not any(module._forward_pre_hooks for module in heard.modules())


def flops_left(findings):
    return [cut["flops"] for cut in findings.document["cuts"]]


@pytest.mark.parametrize("criterion", ["fisher", "taylor", "taylor-bn", "l2", "random"])
@pytest.mark.parametrize("when", [{"every_steps": 2}, {"cuts": 3}])
def test_the_target_is_met_by_the_last_cut_along_a_straight_line(criterion, when):
    model = net()
    dense = copy.deepcopy(model)
    graph = graph_of(model)
    policy = Gradual(graph, AIM, GradualOptions(criterion=criterion, images=16, **when))
    result = train(model, make_splits(), RECIPE, policy=policy)
    left = flops_left(result.findings)
    steps = [cut["step"] for cut in result.findings.document["cuts"]]
    assert steps == list(cutting_steps(policy._options, 15))
    assert all(after < before for before, after in itertools.pairwise([1.0, *left]))
    for number, share in enumerate(left, start=1):
        assert share <= 1 - 0.5 * number / len(left) + 1e-9
    assert 0.9 * 0.5 <= left[-1] <= 0.5
    kept = mask_from_plan(graph, result.plan)
    assert graph.cost.flops(kept) / graph.cost.dense_flops == left[-1]
    assert sum(cut["removed"] for cut in result.findings.document["cuts"]) == int((~kept).sum())
    assert model.second.weight.shape[0] < dense.second.weight.shape[0]
    assert result.history[-1].parameters < sum(one.numel() for one in dense.parameters())


def test_one_cut_after_resting_weights_removes_what_offline_fisher_removes():
    model, splits = net(Plain), make_splits()
    graph = graph_of(model)
    expected = AIM.allocation(graph, fisher(graph, model, [splits.train.tensors]), budget=AIM.budget)
    options = GradualOptions(criterion="fisher", cuts=1, share=1.0)
    result = train(model, splits, FROZEN, policy=Gradual(graph, AIM, options))
    assert (mask_from_plan(graph, result.plan) == expected.kept).all()
    (cut,) = result.findings.document["cuts"]
    assert cut["images"] == 40
    assert result.findings.document["scored"] == "on the training steps"


def test_sums_begin_anew_after_each_cut():
    model = net(Plain)
    options = GradualOptions(criterion="fisher", every_steps=2, share=0.9)
    result = train(model, make_splits(), RECIPE, policy=Gradual(graph_of(model), AIM, options))
    assert {cut["images"] for cut in result.findings.document["cuts"]} == {16}


def test_where_one_unit_at_a_time_goes_below_the_line_the_target_is_met_early_and_no_further():
    model = net(Plain)
    aim = Aim(budget=Budget(flops=0.9), granule=1)
    options = GradualOptions(criterion="l2", every_steps=1, share=1.0)
    result = train(model, make_splits(), RECIPE, policy=Gradual(graph_of(model), aim, options))
    left = flops_left(result.findings)
    assert len(left) < 15
    assert left[-1] <= 0.9 < left[-2]
    assert left[-1] >= 0.97 * 0.9 or any("of the target is used" in note for note in result.findings.notes)


def test_aligned_groups_go_down_by_granules():
    class Wide(Plain):
        def __init__(self):
            super().__init__()
            self.inside, self.grouped = nn.Conv2d(8, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
            self.back = nn.Conv2d(32, 8, 1)

    model = net(Wide)
    graph = graph_of(model)
    seen = []

    class Watched(Gradual):
        def decide(self, moment):
            decision = super().decide(moment)
            if decision is not None:
                seen.append(graph.kept_widths(self._standing.kept))
            return decision

    aim = Aim(budget=Budget(flops=0.4), granule=8)
    train(model, make_splits(), RECIPE, policy=Watched(graph, aim, GradualOptions(criterion="fisher", cuts=4)))
    wide = [index for index, group in enumerate(graph.groups) if group.width == 32]
    assert len(wide) == 2
    assert {widths[index] % 8 for widths in seen for index in wide} == {0}
    assert len(seen) == 4


def test_what_no_hook_hears_is_scored_on_images_and_said():
    model = net(Functional)
    policy = Gradual(graph_of(model), Aim(budget=Budget(flops=0.7), granule=1), GradualOptions(cuts=2, images=16))
    result = train(model, make_splits(), RECIPE, policy=policy)
    assert result.findings.document["scored"] == "on images of the training split"
    assert [cut["images"] for cut in result.findings.document["cuts"]] == [16, 16]
    assert any("cannot be listened to" in note for note in result.findings.notes)


@pytest.mark.parametrize("criterion", ["fisher", "taylor", "l2"])
@pytest.mark.parametrize("epoch", [1, 2])
def test_a_killed_training_goes_on_bit_by_bit(criterion, epoch, tmp_path):
    options = GradualOptions(criterion=criterion, every_steps=4)
    recipe = dataclasses.replace(RECIPE, epochs=4)
    whole = net()
    unbroken = train(whole, make_splits(), recipe, policy=Gradual(graph_of(whole), AIM, options))

    class Killed(Gradual):
        def decide(self, moment):
            if moment.when is When.AFTER_STEP and moment.step == 5 * epoch + 1:
                raise KeyboardInterrupt
            return super().decide(moment)

    broken, state = net(), tmp_path / "state.pt"
    graph = graph_of(broken)
    with pytest.raises(KeyboardInterrupt):
        train(broken, make_splits(), recipe, policy=Killed(graph, AIM, options), state_path=state)
    again = net()
    resumed = train(again, make_splits(), recipe, policy=Gradual(graph, AIM, options), state_path=state, resume=True)
    assert resumed.resumed_at == epoch
    assert resumed.plan == unbroken.plan
    assert resumed.findings == unbroken.findings
    for one, other in zip(whole.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_beta_lets_expensive_channels_leave_sooner():
    model = net()
    graph = graph_of(model)
    share = marginal_flops(graph.cost, graph.everything()) / graph.cost.dense_flops
    scores = np.arange(graph.channel_count, dtype=float)
    np.testing.assert_allclose(with_flop_penalty(graph, scores, 3.0), scores - 3.0 * share)
    assert with_flop_penalty(graph, scores, 0.0) is scores

    def widths(penalty):
        options = GradualOptions(criterion="fisher", cuts=1, share=1.0, flop_penalty=penalty)
        trained = net()
        result = train(trained, make_splits(), RECIPE, policy=Gradual(graph, AIM, options))
        return graph.kept_widths(mask_from_plan(graph, result.plan))

    dear = int(np.argmax([share[group.channels].mean() for group in graph.groups]))
    assert widths(1e6)[dear] < widths(0.0)[dear]


@pytest.mark.parametrize(
    ("options", "steps", "expected"),
    [
        ({"every_steps": 100}, 1000, (100, 200, 300, 400, 500, 600, 700)),
        ({"every_steps": 3, "share": 1.0}, 9, (3, 6, 9)),
        ({"cuts": 3}, 40, (10, 20, 30)),
        ({"cuts": 1, "share": 1.0}, 7, (7,)),
    ],
)
def test_cuts_fall_evenly_into_the_share_of_the_tuning(options, steps, expected):
    assert cutting_steps(GradualOptions(**options), steps) == expected


@pytest.mark.parametrize(("options", "hint"), [({"every_steps": 8}, "--every-steps 7"), ({"cuts": 8}, "--cuts 7")])
def test_a_training_too_short_for_the_cuts_is_refused_with_what_would_do(options, hint):
    with pytest.raises(InputError, match=hint):
        cutting_steps(GradualOptions(**options), 10)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cuts": 2, "every_steps": 2},
        {"cuts": 0},
        {"every_steps": -1},
        {"cuts": 1, "share": 0.0},
        {"cuts": 1, "share": 1.5},
        {"cuts": 1, "flop_penalty": -1.0},
        {"cuts": 1, "criterion": "l3"},
    ],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(InputError):
        GradualOptions(**options)


def test_a_target_out_of_reach_is_refused_before_the_first_step():
    model = net()
    before = copy.deepcopy(model.state_dict())
    policy = Gradual(graph_of(model), Aim(budget=Budget(flops=0.001), granule=1), GradualOptions(cuts=2))
    with pytest.raises(TargetError, match="no plan reaches the target"):
        train(model, make_splits(), RECIPE, policy=policy)
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    with pytest.raises(InputError, match="needs a target"):
        Gradual(graph_of(model), Aim(), GradualOptions(cuts=2))


def test_taylor_of_the_steps_is_taylor_of_the_batches_while_the_weights_rest():
    model, splits = net(Plain), make_splits()
    graph = graph_of(model)
    batches = [splits.train.tensors]
    scores = taylor(graph, model, batches)
    for group in graph.groups:
        scores[group.channels] /= scores[group.channels].mean()
    expected = AIM.allocation(graph, scores, budget=AIM.budget)
    options = GradualOptions(criterion="taylor", cuts=1, share=1.0)
    recipe = dataclasses.replace(FROZEN, batch_size=40)
    result = train(model, splits, recipe, policy=Gradual(graph, AIM, options))
    assert (mask_from_plan(graph, result.plan) == expected.kept).all()


def test_the_scale_of_half_precision_is_taken_out_and_a_step_that_overflows_is_left_out():
    images, labels = make_splits().train.tensors
    heard = []
    for scale in (1.0, 4096.0):
        model = net(Plain).train()
        listening = RunningFisher(graph_of(model), model)
        for factor in (scale, float("inf")):  # the second step overflows
            model.zero_grad()
            (functional.cross_entropy(model(images), labels) * factor).backward()
            for parameter in model.parameters():
                parameter.grad /= factor
            gates = listening.step(model, len(images), scale=scale)
            if gates is not None:
                listening.settle(*gates)
        assert listening.fit is True
        heard.append(listening.sums())
        listening.remove()
    assert [count for _, count in heard] == [40, 40]
    np.testing.assert_allclose(heard[0][0], heard[1][0], rtol=1e-5)
