import numpy as np
import pytest
import torch
from torch.nn import functional

from prune2deploy.graph.channels import Role
from prune2deploy.importance.gates import gate_gradients, readable_channels
from prune2deploy.importance.gradients import loss_gradients, scoring_state, summed_loss
from prune2deploy.importance.parameters import parameters_of
from prune2deploy.importance.sample_gates import SampleGates


def gradients_of(model, images, labels, *, batch_statistics=False):
    readers = parameters_of(model, model.graph.axes_with(Role.CONSUMER))
    with scoring_state(model, batch_statistics=batch_statistics):
        loss = summed_loss(model, images, labels)
        return gate_gradients(model.graph, readers, loss_gradients(loss, readers))


def test_consumer_slices_give_the_gradient_of_a_real_gate(network, batches):
    images, labels = batches[1]
    found = gradients_of(network, images, labels)
    network.eval()
    network.gate = torch.ones(network.graph.channel_count, dtype=torch.float64, requires_grad=True)
    loss = functional.cross_entropy(network(images), labels, reduction="sum")
    np.testing.assert_allclose(found, torch.autograd.grad(loss, network.gate)[0].numpy(), rtol=1e-9)


def test_consumer_slices_give_the_finite_difference_of_a_real_gate(network, batches):
    images, labels = batches[1]
    found = gradients_of(network, images, labels)
    network.eval()
    step, difference = 1e-5, np.zeros_like(found)
    with torch.no_grad():
        for channel in range(network.graph.channel_count):
            losses = []
            for change in (step, -step):
                network.gate = torch.ones(network.graph.channel_count, dtype=torch.float64)
                network.gate[channel] += change
                losses.append(float(functional.cross_entropy(network(images), labels, reduction="sum")))
            difference[channel] = (losses[0] - losses[1]) / (2 * step)
    np.testing.assert_allclose(found, difference, rtol=1e-5, atol=1e-8)


def test_gates_before_a_reader_under_batch_statistics_sum_to_zero(make, batches):
    """The norm behind the reader undoes a common scale of all that it reads."""
    model = make("Depthwise")
    model.pointwise = torch.nn.Sequential(model.pointwise, torch.nn.BatchNorm2d(4).double())
    model.pointwise[0].bias = None
    renamed = tuple(
        type(axis)(
            tensor=axis.tensor.replace("pointwise.", "pointwise.0."),
            dim=axis.dim,
            role=axis.role,
            learnable=axis.learnable,
            channels=axis.channels,
        )
        for axis in model.graph.axes
    )
    model.graph = type(model.graph)(**{**vars(model.graph), "axes": renamed})
    model.pointwise[1].eps = 1e-12
    images, labels = batches[1]
    under_batch_statistics = gradients_of(model, images, labels, batch_statistics=True)
    assert np.abs(under_batch_statistics).max() > 1e-2
    assert abs(under_batch_statistics.sum()) < 1e-9
    assert abs(gradients_of(model, images, labels).sum()) > 1e-3


def test_batch_statistics_leave_running_statistics_as_they_were(make, batches):
    model = make("Chain")
    model.train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    gradients_of(model, *batches[1], batch_statistics=True)
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())
    assert all(module.training for module in model.modules())


def test_a_failing_forward_leaves_the_model_as_it_was(make):
    model = make("Chain")
    model.train()
    with pytest.raises(RuntimeError):
        gradients_of(model, torch.zeros(1, 9, 2, 2), torch.zeros(1))
    assert all(module.training for module in model.modules())


def test_readable_channels_are_those_with_a_consumer(make):
    graph = make("Chain").graph
    assert readable_channels(graph).all()
    without = tuple(axis for axis in graph.axes if axis.tensor != "conv2.weight")
    assert readable_channels(type(graph)(**{**vars(graph), "axes": without})).tolist() == [False] * 3 + [True] * 2


@pytest.mark.parametrize(
    ("name", "fast"),
    [
        ("Chain", True),
        ("Residual", True),
        ("Depthwise", True),
        ("Grouped", True),
        ("Functional", False),
        ("WindowsFirst", False),
    ],
)
def test_the_fast_way_is_taken_only_where_it_agrees_with_the_definition(make, batches, name, fast):
    model = make(name)
    gates = SampleGates(model.graph, model)
    with scoring_state(model):
        for images, labels in batches:
            found = gates.gradients(images, labels)
            exact = np.stack([gradients_of(model, images[n : n + 1], labels[n : n + 1]) for n in range(len(images))])
            np.testing.assert_allclose(found, exact, rtol=1e-9, atol=1e-15)
    assert gates._fast is fast
