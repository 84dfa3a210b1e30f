import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from prune2deploy.budget.target import Budget
from prune2deploy.data.splits import DataSplits
from prune2deploy.errors import InputError
from prune2deploy.graph.trace import trace
from prune2deploy.policies.aim import Aim
from prune2deploy.policies.batch_growth import activation_sizes, grown_batch
from prune2deploy.policies.group_lasso import GroupLasso
from prune2deploy.policies.policy import Moment, Setting, When
from prune2deploy.policies.prunetrain import PruneTrain, PruneTrainOptions, reconfigured
from prune2deploy.surgery.apply import apply_plan, pruned_copy
from prune2deploy.training.loop import train
from prune2deploy.training.recipe import TrainingRecipe

UNALIGNED = Aim(granule=1)
RECIPE = TrainingRecipe(
    epochs=8, batch_size=8, learning_rate=0.1, warmup_epochs=0, seed=3, nesterov=False, weight_decay=0.0
)
STRONG = PruneTrainOptions(ratio=0.9, interval=2, dead_below=5e-3, dynamic_batch=False)


class Net(nn.Module):
    """Two convolutions and a classifier."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 6, 3, padding=1)
        self.classifier = nn.Linear(6, 3)

    def forward(self, images):
        hidden = self.norm(self.first(images)).relu()
        return self.classifier(self.second(hidden).relu().mean(dim=(2, 3)))


class Residual(nn.Module):
    """A stream of 6 channels, a branch of 4 with a grouped and a depthwise convolution beside it."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.inner = nn.Conv2d(6, 4, 3, padding=1)
        self.outer = nn.Conv2d(4, 6, 3, padding=1)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.classifier = nn.Linear(6, 3)

    def forward(self, images):
        stream = self.stem(images).relu()
        stream = stream + self.outer(self.inner(stream).relu())
        return self.classifier(self.depthwise(stream.relu()).mean(dim=(2, 3)))


def seeded(model):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return model()


def graph_of(model):
    return trace(model, torch.zeros(1, 1, 4, 4)).graph


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


def setting(epochs=10, **changes):
    fields = {"epochs": epochs, "steps_per_epoch": 100, "batch_size": 64, "processes": 1}
    return Setting(samples=lambda count: iter(()), **{**fields, **changes})


def after(model, epoch):
    return Moment(when=When.AFTER_EPOCH, model=model, epoch=epoch, step=epoch * 100, training_loss=1.0)


def root(*squares):
    return sum(math.sqrt(square + 1e-8) for square in squares)


def kill(model, path, channel):
    """Set the weights that make a channel of ``first`` to almost nothing, and those that read it."""
    with torch.no_grad():
        model.get_submodule(path).weight[channel] *= 1e-6
        reader = {"first": "second", "second": "classifier", "inner": "outer"}[path]
        model.get_submodule(reader).weight[:, channel] *= 1e-6


def begun(model, options=None, aim=UNALIGNED, **changes):
    policy = PruneTrain(graph_of(model), aim, options or PruneTrainOptions(interval=1, dynamic_batch=False))
    policy.begin(model, setting(**changes))
    policy.penalty(model, torch.tensor(2.0))
    return policy


def test_the_penalty_is_the_sum_of_norms_of_input_and_output_slices():
    model = seeded(Net)
    first, second, last = (module.weight.detach().double() for module in (model.first, model.second, model.classifier))
    expected = root(*first.square().sum(dim=(1, 2, 3)).tolist())  # its input is the image
    expected += root(*second.square().sum(dim=(1, 2, 3)).tolist(), *second.square().sum(dim=(0, 2, 3)).tolist())
    expected += root(*last.square().sum(dim=0).tolist())  # its outputs are classes
    penalty = GroupLasso(graph_of(model), model).penalty(model)
    assert float(penalty.detach()) == pytest.approx(expected, rel=1e-6)
    penalty.backward()
    norms = second.square().sum(dim=(1, 2, 3)).sqrt()[:, None, None, None]
    norms_in = second.square().sum(dim=(0, 2, 3)).sqrt()[None, :, None, None]
    torch.testing.assert_close(model.second.weight.grad.double(), second / norms + second / norms_in)
    assert model.norm.weight.grad is None
    assert model.second.bias.grad is None


def test_a_dead_slice_has_a_finite_gradient():
    model = seeded(Net)
    with torch.no_grad():
        model.first.weight[0] = 0
    GroupLasso(graph_of(model), model).penalty(model).backward()
    assert bool(model.first.weight.grad.isfinite().all())


def test_grouped_kernels_and_what_cannot_leave_are_not_regularised():
    model = seeded(Residual)
    graph = graph_of(model)
    stream = next(group.index for group in graph.groups if group.stream)
    GroupLasso(graph, model).penalty(model).backward()
    assert model.depthwise.weight.grad is None
    assert model.stem.weight.grad is not None
    model.zero_grad()
    held = graph.without_groups({stream: "stays"})
    penalty = GroupLasso(held, model).penalty(model)
    squares = model.inner.weight.detach().square().sum(dim=(1, 2, 3)).tolist()
    squares += model.outer.weight.detach().square().sum(dim=(0, 2, 3)).tolist()
    assert float(penalty.detach()) == pytest.approx(root(*squares), rel=1e-5)
    penalty.backward()
    assert model.stem.weight.grad is None


def test_a_channel_with_several_indices_is_one_slice():
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Flatten(), nn.Linear(64, 3))
    squares = model[0].weight.detach().square().sum(dim=(1, 2, 3)).tolist()
    squares += model[2].weight.detach().square().reshape(3, 4, 16).sum(dim=(0, 2)).tolist()
    penalty = GroupLasso(graph_of(model), model).penalty(model)
    assert float(penalty.detach()) == pytest.approx(root(*squares), rel=1e-5)


def test_the_coefficient_makes_the_penalty_its_share_of_the_first_loss_and_stays():
    model = seeded(Net)
    policy = PruneTrain(graph_of(model), UNALIGNED, PruneTrainOptions(ratio=0.2))
    # two processes, with losses of 2 and 4
    policy.begin(model, setting(processes=2, summed=lambda values: values + 4.0))
    penalty = policy.penalty(model, torch.tensor(2.0))
    assert float(penalty.detach()) == pytest.approx(0.2 / 0.8 * 3.0)
    assert penalty.requires_grad
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 2
    assert float(policy.penalty(model, torch.tensor(9.0)).detach()) == pytest.approx(
        2 * float(penalty.detach()), rel=1e-6
    )
    resumed = PruneTrain(graph_of(model), UNALIGNED, PruneTrainOptions(ratio=0.2))
    resumed.load_state_dict(policy.state_dict())
    resumed.begin(model, setting())
    assert torch.equal(resumed.penalty(model, torch.tensor(1.0)), policy.penalty(model, torch.tensor(1.0)))


def test_dead_channels_leave_exactly():
    model = seeded(Net).eval()
    policy = begun(model)
    kill(model, "first", 3)
    kill(model, "second", 0)
    images = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    before = model(images)
    pruned = pruned_copy(model, policy.decide(after(model, 1)).plan)
    assert (pruned.first.out_channels, pruned.second.out_channels) == (7, 5)
    torch.testing.assert_close(pruned(images), before, atol=1e-5, rtol=1e-5)
    (note,) = policy.findings().document["reconfigurations"]
    assert note["widths"] == {"first": 7, "second": 5}
    assert (note["dead"], note["removed"]) == (2, 2)


@pytest.mark.parametrize("part", ["made", "read", "negative"])
def test_a_channel_is_alive_while_any_weight_that_makes_or_reads_it_is(part):
    model = seeded(Net)
    policy = begun(model)
    kill(model, "first", 3)
    with torch.no_grad():
        if part == "made":
            model.first.weight[3, 0, 1, 1] = 2e-4
        else:
            model.second.weight[2, 3, 0, 0] = 2e-4 if part == "read" else -2e-4
    assert policy.decide(after(model, 1)) is None
    assert policy.findings().document["reconfigurations"][0]["dead"] == 0


def test_a_stream_channel_is_dead_only_where_all_layers_that_share_it_agree():
    model = seeded(Residual)
    policy = begun(model)
    with torch.no_grad():
        for channel in (1, 4):
            model.stem.weight[channel] = 0
            model.outer.weight[channel] = 0
            model.inner.weight[:, channel] = 0
            model.classifier.weight[:, channel] = 0
        model.outer.weight[4, 0, 0, 0] = 0.1
    pruned = pruned_copy(model, policy.decide(after(model, 1)).plan)
    assert pruned.stem.out_channels == pruned.outer.out_channels == pruned.depthwise.out_channels == 5
    assert torch.equal(pruned.depthwise.weight, model.depthwise.weight[[0, 2, 3, 4, 5]])


def test_a_dead_layer_takes_its_residual_branch_with_it():
    model = seeded(Residual).eval()
    policy = begun(model)
    for channel in range(4):
        kill(model, "inner", channel)
    with torch.no_grad():
        model.outer.bias.zero_()
    images = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    before = model(images)
    decision = policy.decide(after(model, 1))
    assert policy.findings().document["reconfigurations"][0]["branches"] == ["outer"]
    apply_plan(model, decision.plan)
    torch.testing.assert_close(model(images), before, atol=1e-5, rtol=1e-5)
    assert not any(name.startswith(("inner", "outer")) for name in model.state_dict())
    assert policy.penalty(model, torch.tensor(1.0)) is not None
    assert policy.decide(after(model, 2)) is None
    assert policy.findings().document["reconfigurations"][1]["branches"] == []


def test_a_dead_layer_outside_a_branch_keeps_its_strongest_channel():
    model = seeded(Net)
    policy = begun(model)
    for channel in range(8):
        kill(model, "first", channel)
    with torch.no_grad():
        model.second.weight[0, 5, 0, 0] = 9e-5
    pruned = pruned_copy(model, policy.decide(after(model, 1)).plan)
    assert pruned.first.out_channels == 1
    assert pruned.second.weight[0, 0, 0, 0] == 9e-5
    assert any("a layer may not become empty" in note for note in policy.findings().notes)


def test_aligned_layers_keep_their_strongest_dead_channels():
    model = nn.Sequential(nn.Conv2d(1, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 3, 1))
    graph = graph_of(model)
    strengths = np.linspace(0, 0.98e-4, 64)
    strengths[:20] = 1
    left = reconfigured(graph, graph.everything(), strengths, dead_below=1e-4, granule=16)
    assert np.flatnonzero(left.kept).tolist() == [*range(20), *range(52, 64)]
    assert (left.dead, left.rounded, left.last) == (44, 12, 0)
    left = reconfigured(graph, left.kept, np.where(np.arange(64) < 16, 1.0, 0.0), dead_below=1e-4, granule=16)
    assert np.flatnonzero(left.kept).tolist() == [*range(16)]
    exact = reconfigured(graph, graph.everything(), strengths, dead_below=1e-4, granule=1)
    assert exact.kept.sum() == 20


def test_cuts_come_every_interval_and_after_the_last_epoch():
    model = seeded(Net)
    policy = begun(model, PruneTrainOptions(interval=3, dynamic_batch=False), epochs=7)
    kill(model, "first", 0)
    decided = []
    for epoch in range(1, 8):
        if epoch == 4:
            kill(model, "first", 1)
        decision = policy.decide(after(model, epoch))
        if decision is not None:
            apply_plan(model, decision.plan)
            decided.append(epoch)
        if epoch == 6:
            kill(model, "first", 2)
    assert decided == [3, 6, 7]
    assert model.first.out_channels == 5


def test_a_target_ends_penalty_and_cuts():
    model = seeded(Net)
    policy = begun(model, aim=Aim(granule=1, budget=Budget(parameters=0.8)))
    kill(model, "first", 0)
    apply_plan(model, policy.decide(after(model, 1)).plan)
    assert policy.findings().document["reached"] is False
    assert policy.penalty(model, torch.tensor(1.0)) is not None
    kill(model, "first", 0)
    apply_plan(model, policy.decide(after(model, 2)).plan)
    document = policy.findings().document
    assert (document["reached"], document["stopped_at"]) == (True, 2)
    assert document["parameters"] <= 0.8
    assert policy.penalty(model, torch.tensor(1.0)) is None
    kill(model, "first", 0)
    assert policy.decide(after(model, 3)) is None


def test_activation_sizes_are_positions_times_widths():
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 6, 2, stride=2), nn.Flatten(), nn.Linear(24, 3))
    graph = graph_of(model)
    assert activation_sizes(graph.cost, graph.everything()) == 4 * 16 + 6 * 4 + 3
    kept = graph.everything()
    kept[graph.groups[0].channels[:3]] = False
    assert activation_sizes(graph.cost, kept) == 1 * 16 + 6 * 4 + 3
    residual = graph_of(seeded(Residual))
    kept = residual.everything()
    assert activation_sizes(residual.cost, kept) == (6 + 4 + 6 + 6) * 16 + 3
    kept[residual.groups[1].channels] = False
    assert activation_sizes(residual.cost, kept) == (6 + 6) * 16 + 3


@pytest.mark.parametrize(
    ("batch_size", "current", "ratio", "largest", "images", "processes", "expected"),
    [
        (128, 128, 0.5, None, 50_000, 1, 256),
        (128, 128, 0.9, None, 50_000, 1, 128),  # 142 is no multiple of 32
        (128, 128, 0.7, None, 50_000, 1, 160),
        (128, 256, 0.9, None, 50_000, 1, 256),  # it never shrinks
        (128, 128, 0.1, 512, 50_000, 1, 512),
        (128, 128, 0.1, None, 1_437, 1, 128),  # ten steps an epoch
        (128, 128, 0.1, None, 4_000, 1, 384),
        (8, 8, 0.3, None, 1_437, 1, 24),
        (120, 120, 0.5, None, 50_000, 3, 192),
    ],
)
def test_the_batch_grows_into_the_memory_that_is_free(batch_size, current, ratio, largest, images, processes, expected):
    grown = grown_batch(
        batch_size, current=current, memory_ratio=ratio, largest=largest, images=images, processes=processes
    )
    assert grown == expected


def test_the_batch_that_the_loop_takes_is_the_one_that_was_meant():
    model = seeded(Net)
    options = PruneTrainOptions(interval=1, largest_batch=4096)
    policy = begun(model, options, batch_size=96, steps_per_epoch=1000, epochs=30)
    batch, seen = 96, []
    for epoch in range(1, 8):
        kill(model, "first" if epoch % 2 else "second", 0)
        decision = policy.decide(after(model, epoch))
        apply_plan(model, decision.plan)
        batch = int(batch * decision.batch_factor)
        seen.append(batch)
        assert policy.findings().document["reconfigurations"][-1]["batch_size"] == batch
    assert seen == sorted(seen)
    assert seen[-1] > 96
    assert all(one % 32 == 0 for one in seen)


def test_nothing_to_regularise_is_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    policy = PruneTrain(graph_of(model), UNALIGNED, PruneTrainOptions())
    with pytest.raises(InputError, match="nothing to regularise"):
        policy.begin(model, setting())


@pytest.mark.parametrize(
    "wrong", [{"ratio": 0.0}, {"ratio": 1.0}, {"interval": 0}, {"dead_below": 0.0}, {"largest_batch": 0}]
)
def test_options_out_of_range_are_refused_by_name(wrong):
    (name,) = wrong
    with pytest.raises(InputError, match=f"prunetrain {name}"):
        PruneTrainOptions(**wrong)


def test_training_kills_channels_and_goes_on_without_them():
    model = seeded(Net)
    policy = PruneTrain(graph_of(model), UNALIGNED, STRONG)
    result = train(model, splits(120), dataclasses.replace(RECIPE, epochs=12), policy=policy)
    document = result.findings.document
    assert result.plan is not None
    assert model.first.out_channels < 8 or model.second.out_channels < 6
    assert document["reconfigurations"][-1]["widths"] == {
        "first": model.first.out_channels,
        "second": model.second.out_channels,
    }
    assert [one["epoch"] for one in document["reconfigurations"]] == [2, 4, 6, 8, 10, 12]
    assert [one["epoch"] for one in document["penalty_shares"]] == [*range(1, 13)]
    assert 0 < document["penalty_shares"][0]["share"] < 1
    assert document["schedule"]["steps"] == 12 * 15
    assert "the schedule has 180 steps" in result.findings.notes[0]
    assert " channels were removed" in result.findings.notes[0]
    kept = trace(model, torch.zeros(1, 1, 4, 4)).graph
    assert policy.findings().document["flops"] == kept.cost.dense_flops / graph_of(seeded(Net)).cost.dense_flops


def test_a_short_gentle_schedule_kills_nothing_and_says_so():
    model = seeded(Net)
    policy = PruneTrain(graph_of(model), UNALIGNED, PruneTrainOptions())
    result = train(model, splits(), dataclasses.replace(RECIPE, epochs=2), policy=policy)
    assert result.plan is None
    assert "the schedule has 10 steps; no channel was removed" in result.findings.notes[0]


def test_momentum_is_sliced_with_the_channels():
    moments = {}

    class Watched(PruneTrain):
        def decide(self, moment):
            self.seen = moment.model
            return super().decide(moment)

    model = seeded(Net)
    policy = Watched(graph_of(model), UNALIGNED, STRONG)
    original = torch.optim.SGD.step

    def step(optimizer, *arguments, **keywords):
        result = original(optimizer, *arguments, **keywords)
        for parameter in optimizer.param_groups[0]["params"]:
            momentum = optimizer.state[parameter]["momentum_buffer"]
            moments[tuple(parameter.shape)] = momentum.shape == parameter.shape
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", step)
        train(model, splits(120), dataclasses.replace(RECIPE, epochs=12), policy=policy)
    assert all(moments.values())
    assert len({shape for shape in moments if len(shape) == 4}) > 2  # widths changed on the way


@pytest.mark.parametrize("stop_in", [1, 8])
def test_an_interrupted_training_resumes_to_the_same_bits(tmp_path, stop_in):
    options = dataclasses.replace(STRONG, ratio=0.8, dead_below=0.03, interval=1, dynamic_batch=True, largest_batch=32)
    recipe = dataclasses.replace(RECIPE, epochs=10)

    class StopError(Exception):
        pass

    class Interrupted(PruneTrain):
        def decide(self, moment):
            if moment.when is When.AFTER_STEP and moment.epoch == stop_in:
                raise StopError
            return super().decide(moment)

    whole, resumed = seeded(Net), seeded(Net)
    uninterrupted = train(whole, splits(120), recipe, policy=PruneTrain(graph_of(whole), UNALIGNED, options))
    state = tmp_path / "state.pt"
    policy = Interrupted(graph_of(resumed), UNALIGNED, options)
    with pytest.raises(StopError):
        train(copy.deepcopy(resumed), splits(120), recipe, policy=policy, state_path=state)
    policy = PruneTrain(graph_of(resumed), UNALIGNED, options)
    again = train(resumed, splits(120), recipe, policy=policy, state_path=state, resume=True)
    assert again.resumed_at == stop_in
    batches = [record.batch_size for record in uninterrupted.history]
    assert batches[0] == 8
    assert batches[-1] == 32
    assert [record.batch_size for record in again.history] == batches
    assert again.plan == uninterrupted.plan
    assert again.findings == uninterrupted.findings
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())
