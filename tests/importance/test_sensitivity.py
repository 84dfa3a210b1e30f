"""Gate gradients with batch statistics, what a FLOP saves, and Taylor from the gradients of a training."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from prune2deploy.graph.trace import trace
from prune2deploy.importance.criterion import UNJUDGED
from prune2deploy.importance.gradients import scoring_state
from prune2deploy.importance.running_taylor import RunningTaylor
from prune2deploy.importance.sensitivity import per_flop, summed_gate_gradients
from prune2deploy.importance.statistics import statistics_of
from prune2deploy.importance.taylor import taylor_sums


def test_summed_gate_gradients_are_those_of_explicit_gates_with_batch_statistics(network, batches):
    found, count = summed_gate_gradients(network.graph, network, batches)
    expected = np.zeros(network.graph.channel_count)
    network.train()
    for images, labels in batches:
        network.gate = torch.ones(network.graph.channel_count, dtype=torch.float64, requires_grad=True)
        loss = functional.cross_entropy(network(images), labels, reduction="sum")
        expected += torch.autograd.grad(loss, network.gate)[0].numpy()
    network.gate = None
    assert count == sum(len(images) for images, _ in batches)
    assert np.abs(expected).max() > 1e-4
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-12)


class NormBehind(nn.Module):
    """Its second convolution is normalised, and has no bias."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 4, 1)
        self.second = nn.Conv2d(4, 3, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 4)

    def forward(self, images):
        return self.head(self.norm(self.second(self.first(images).relu())).relu().mean(dim=(2, 3)))


def test_gates_in_front_of_a_normalised_layer_add_up_to_zero_with_batch_statistics():
    """Scaling all that a layer reads scales what it makes, and a norm with batch statistics takes that back."""
    torch.manual_seed(0)
    model = NormBehind().double()
    model.norm.eps = 1e-14
    graph = trace(model, torch.randn(1, 2, 5, 5, dtype=torch.float64)).graph
    images, labels = torch.randn(6, 2, 5, 5, dtype=torch.float64), torch.arange(6) % 4
    found, _ = summed_gate_gradients(graph, model, [(images, labels)])
    first = next(group for group in graph.groups if group.name == "first")
    assert np.abs(found[first.channels]).max() > 1e-3
    assert found[first.channels].sum() == pytest.approx(0, abs=1e-9)


def test_a_batch_of_one_image_is_passed_over_only_where_norms_need_two(make, batches):
    single = [(images[:1], labels[:1]) for images, labels in batches[:1]]
    with_norm, without = make("Chain"), make("Residual")
    two = summed_gate_gradients(with_norm.graph, with_norm, batches)
    three = summed_gate_gradients(with_norm.graph, with_norm, [*batches, *single])
    assert three[0].tolist() == two[0].tolist()
    assert three[1] == two[1] == 7
    assert summed_gate_gradients(without.graph, without, single)[1] == 1


def test_an_empty_batch_is_passed_over(make, batches):
    model = make("Residual")
    empty = [(images[:0], labels[:0]) for images, labels in batches[:1]]
    found, count = summed_gate_gradients(model.graph, model, [*batches, *empty])
    assert found.tolist() == summed_gate_gradients(model.graph, model, batches)[0].tolist()
    assert count == 7


def test_sensitivity_and_statistics_leave_the_model_as_it_was(make, batches):
    model = make("Chain")
    model.train()
    model.norm.eval()
    model.norm.momentum = 0.3
    model.conv2.weight.grad = torch.ones_like(model.conv2.weight)
    state, random_state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    flags = [module.training for module in model.modules()]
    summed_gate_gradients(model.graph, model, batches)
    with statistics_of(model, batches):
        assert [module.training for module in model.modules()] == flags
        assert not torch.equal(state["norm.running_var"], model.norm.running_var)
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert model.norm.momentum == 0.3
    assert torch.equal(model.conv2.weight.grad, torch.ones_like(model.conv2.weight))
    assert model.conv1.weight.grad is None
    assert torch.equal(random_state, torch.random.get_rng_state())


def test_statistics_of_batches_are_their_plain_average(make, batches):
    model = make("Chain")
    with torch.no_grad():
        made = [model.conv1(images) for images, _ in batches]
    expected = torch.stack([one.mean(dim=(0, 2, 3)) for one in made]).mean(dim=0)
    with statistics_of(model, batches):
        torch.testing.assert_close(model.norm.running_mean, expected)


def test_what_saves_no_flops_or_was_not_judged_leaves_last():
    scores, flops = np.array([6.0, 1.0, UNJUDGED, 0.0]), np.array([3.0, 0.0, 5.0, 2.0])
    assert per_flop(scores, flops).tolist() == [2.0, UNJUDGED, UNJUDGED, 0.0]


def step(model, batch):
    model.zero_grad()
    images, labels = batch
    functional.cross_entropy(model(images), labels).backward()


def test_running_taylor_is_the_mean_of_the_squared_sums_of_each_step(network, batches):
    running, expected = RunningTaylor(network.graph), np.zeros(network.graph.channel_count)
    axes = [axis for axis in network.graph.axes if axis.learnable]
    for batch in batches:
        step(network, batch)
        running.add(network)
        weights = dict(network.named_parameters())
        gradients = {name: weight.grad for name, weight in weights.items() if weight.grad is not None}
        expected += taylor_sums(network.graph, axes, weights, gradients) ** 2
    total, steps = running.total()
    assert steps == 2
    assert expected.max() > 1e-9
    np.testing.assert_allclose(total, expected, rtol=1e-9, atol=1e-20)
    running.forget()
    assert running.total()[1] == 0


def test_running_taylor_passes_over_a_step_that_overflowed(make, batches):
    model = make("Chain")
    running = RunningTaylor(model.graph)
    step(model, batches[1])
    running.add(model)
    before = running.total()
    model.conv1.weight.grad[0] = float("inf")
    running.add(model)
    assert running.total()[1] == before[1] == 1
    assert running.total()[0].tolist() == before[0].tolist()


def test_nested_scoring_keeps_the_statistics_that_were_given(make, batches):
    """A criterion's own ``scoring_state`` inside reads what ``statistics_of`` put there."""
    model = make("Chain")
    with statistics_of(model, batches):
        given = model.norm.running_mean.clone()
        with scoring_state(model):
            model(batches[0][0])
        assert torch.equal(model.norm.running_mean, given)
