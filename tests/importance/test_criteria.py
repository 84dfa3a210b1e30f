import copy

import numpy as np
import pytest
import torch
from torch.nn import functional

from prune2deploy.errors import DataError, InputError, ModelError
from prune2deploy.graph.channels import Role
from prune2deploy.importance.criteria import CRITERIA, criterion_named, score_channels
from prune2deploy.importance.criterion import UNJUDGED
from prune2deploy.importance.normalize import normalise


def scores_of(model, name, batches=None, *, seed=0):
    return CRITERIA[name].function(model.graph, model, batches, seed=seed)


def fill(parameter, values):
    with torch.no_grad():
        parameter.copy_(torch.tensor(values, dtype=parameter.dtype).reshape(parameter.shape))


@pytest.fixture
def residual(make):
    model = make("Residual")
    fill(model.stem.weight, [[1.0, -2.0], [0.0, 3.0], [-1.0, -1.0]])
    kernel = torch.zeros(3, 3, 3, 3)
    kernel[0, 0, 1, 1], kernel[1, 2, 0, 0], kernel[2, 1, 2, 2] = -2.0, 4.0, 0.5
    fill(model.branch.weight, kernel.tolist())
    return model


def test_l1_sums_the_absolute_weights_of_all_producers(residual):
    assert scores_of(residual, "l1").tolist() == [1 + 2 + 2, 3 + 4, 1 + 1 + 0.5]


def test_l2_takes_one_root_over_the_squares_of_all_producers(residual):
    expected = np.sqrt([1 + 4 + 4, 9 + 16, 1 + 1 + 0.25])
    np.testing.assert_allclose(scores_of(residual, "l2"), expected, rtol=1e-15)


def test_bn_scale_is_the_absolute_gamma_and_leaves_unscaled_channels_unjudged(make):
    model = make("Chain")
    fill(model.norm.weight, [0.5, -2.0, 0.0])
    assert scores_of(model, "bn-scale").tolist() == [0.5, 2.0, 0.0, UNJUDGED, UNJUDGED]


@pytest.mark.parametrize("name", ["bn-scale", "taylor-bn"])
def test_norm_criteria_refuse_a_model_without_norm_scales(make, batches, name):
    with pytest.raises(InputError, match=r"no channel of this model is scaled by a norm layer.*such as l2"):
        scores_of(make("Residual"), name, batches)


def test_taylor_is_the_squared_first_order_change_of_removing_all_slices(network, batches):
    """The derivative along the line that shrinks everything that leaves with a channel, found by autograd."""
    graph, expected = network.graph, np.zeros(network.graph.channel_count)
    network.eval()
    for images, labels in batches:
        for channel in range(graph.channel_count):
            shrink = torch.ones((), dtype=torch.float64, requires_grad=True)
            shrunk = {}
            for name, parameter in network.named_parameters():
                leaves = torch.zeros(parameter.shape, dtype=torch.bool)
                for axis in graph.axes:
                    if axis.tensor == name:
                        index = torch.from_numpy(np.flatnonzero(axis.channels == channel))
                        leaves.index_fill_(axis.dim, index, True)
                shrunk[name] = torch.where(leaves, parameter.detach() * shrink, parameter.detach())
            loss = functional.cross_entropy(torch.func.functional_call(network, shrunk, (images,)), labels)
            expected[channel] += float(torch.autograd.grad(loss, shrink)[0]) ** 2 / len(batches)
    np.testing.assert_allclose(scores_of(network, "taylor", batches), expected, rtol=1e-9, atol=1e-18)


@pytest.mark.parametrize("name", ["Chain", "Depthwise"])
def test_taylor_on_norms_is_the_squared_gradient_of_a_gate_behind_the_norm(make, batches, name):
    model = make(name)
    model.eval()
    expected = np.zeros(3)
    for images, labels in batches:
        gate = torch.ones(1, 3, 1, 1, dtype=torch.float64, requires_grad=True)
        handle = model.norm.register_forward_hook(lambda module, inputs, output, gate=gate: output * gate)
        loss = functional.cross_entropy(model(images), labels)
        handle.remove()
        expected += torch.autograd.grad(loss, gate)[0].flatten().numpy() ** 2 / len(batches)
    np.testing.assert_allclose(scores_of(model, "taylor-bn", batches)[:3], expected, rtol=1e-9)


def test_fisher_equals_a_loop_over_samples_with_explicit_gates(network, batches):
    expected = np.zeros(network.graph.channel_count)
    network.eval()
    for images, labels in batches:
        for image, label in zip(images, labels, strict=True):
            network.gate = torch.ones(network.graph.channel_count, dtype=torch.float64, requires_grad=True)
            loss = functional.cross_entropy(network(image[None]), label[None])
            expected += torch.autograd.grad(loss, network.gate)[0].numpy() ** 2 / (2 * 7)
    network.gate = None
    assert expected.max() > 1e-6
    np.testing.assert_allclose(scores_of(network, "fisher", batches), expected, rtol=1e-9)


def test_fisher_by_hand_on_one_linear_reader(make):
    """Loss of sample n: logits z = W2 h; dL/dh = W2^T (softmax(z) - onehot); Δ = (h · dL/dh)² / 2."""
    model = make("WindowsFirst")
    fill(model.first.weight, np.eye(3, 4).tolist())
    fill(model.first.bias, [0.0, 0.0, 0.0])
    fill(model.second.weight, np.eye(4, 3).tolist())
    fill(model.second.bias, [0.0, 0.0, 0.0, 0.0])
    row = np.array([1.0, 2.0, 0.5, 7.0])
    image = torch.from_numpy(np.stack([row[:2], row[2:]])[:, None, :].repeat(2, axis=1))[None]
    logits = np.array([1.0, 2.0, 0.5, 0.0])
    probabilities = np.exp(logits) / np.exp(logits).sum()
    expected = (row[:3] * (probabilities - [0, 1, 0, 0])[:3]) ** 2 / 2
    np.testing.assert_allclose(scores_of(model, "fisher", [(image, torch.tensor([1]))]), expected, rtol=1e-12)


def test_fisher_does_not_depend_on_how_samples_are_batched(network, batches):
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    one_batch = scores_of(network, "fisher", [(images, labels)])
    np.testing.assert_allclose(scores_of(network, "fisher", batches), one_batch, rtol=1e-9)


def test_random_repeats_with_its_seed_and_leaves_the_global_generators_alone(make):
    model = make("Chain")
    before, numpy_before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    first = scores_of(model, "random", seed=3)
    assert first.tolist() == scores_of(model, "random", seed=3).tolist()
    assert first.tolist() != scores_of(model, "random", seed=4).tolist()
    assert torch.equal(before, torch.random.get_rng_state())
    assert np.array_equal(numpy_before, np.random.get_state()[1])


@pytest.mark.parametrize("name", CRITERIA)
def test_scoring_leaves_the_model_as_it_was(make, batches, name):
    model = make("Chain")
    model.train()
    model.norm.eval()
    model.conv1.weight.requires_grad_(False)
    model.conv2.weight.grad = torch.ones_like(model.conv2.weight)
    state, random_state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    flags = [module.training for module in model.modules()]
    with torch.no_grad():
        assert np.all(np.isfinite(scores_of(model, name, batches)[:3]))
    assert [module.training for module in model.modules()] == flags
    assert not model.conv1.weight.requires_grad
    assert model.conv2.weight.requires_grad
    assert torch.equal(model.conv2.weight.grad, torch.ones_like(model.conv2.weight))
    assert model.classifier.weight.grad is None
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert torch.equal(random_state, torch.random.get_rng_state())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_channels_that_no_weight_reads_are_unjudged_by_fisher(make, batches):
    model = make("Chain")
    unread = tuple(axis for axis in model.graph.axes if axis.tensor != "classifier.weight")
    graph = type(model.graph)(**{**vars(model.graph), "axes": unread})
    scores = CRITERIA["fisher"].function(graph, model, batches, seed=0)
    assert np.isfinite(scores).tolist() == [True, True, True, False, False]


def test_the_mean_of_each_group_becomes_one(make):
    graph = make("Chain").graph
    scores = normalise(graph, np.array([1.0, 2.0, 3.0, 10.0, 30.0]), "mean")
    assert scores.tolist() == [0.5, 1.0, 1.5, 0.5, 1.5]


def test_normalising_keeps_unjudged_and_zero_groups(make):
    graph = make("Chain").graph
    assert normalise(graph, np.array([1.0, 3.0, UNJUDGED, 0.0, 0.0]), "mean").tolist() == [0.5, 1.5, UNJUDGED, 0, 0]
    assert normalise(graph, np.array([1.0, 3.0, 5.0, 0.0, 2.0]), "none").tolist() == [1, 3, 5, 0, 2]
    with pytest.raises(InputError, match="use none or mean"):
        normalise(graph, np.zeros(5), "max")


def test_score_channels_normalises_by_default_and_on_request(make):
    model = make("Chain")
    raw = scores_of(model, "l2")
    scored = score_channels(model.graph, model, criterion=criterion_named("l2"))
    np.testing.assert_allclose(scored, normalise(model.graph, raw, "mean"))
    plain = score_channels(model.graph, model, criterion=criterion_named("l2"), normalization="none")
    np.testing.assert_allclose(plain, raw)


class Notes:
    def __init__(self):
        self.notes = []

    def task(self, description, *, total=None):
        from prune2deploy.progress import SILENT

        return SILENT.task(description, total=total)

    def note(self, text):
        self.notes.append(text)


def test_score_channels_says_which_groups_are_unjudged(make):
    model, progress = make("Chain"), Notes()
    score_channels(model.graph, model, criterion=criterion_named("bn-scale"), progress=progress)
    assert progress.notes == ["bn-scale cannot judge the channels of conv2; they leave last"]


def test_an_unknown_criterion_is_refused_with_the_nearest_name():
    with pytest.raises(InputError, match=r"did you mean fisher\?.*choose one of l1, l2"):
        criterion_named("fischer")


@pytest.mark.parametrize("batches", [None, []])
def test_a_gradient_criterion_without_images_is_refused(make, batches):
    model = make("Chain")
    with pytest.raises(InputError, match="pass --data"):
        score_channels(model.graph, model, batches, criterion=criterion_named("taylor"))


def test_weights_that_are_not_finite_are_refused_by_name(make):
    model = make("Chain")
    with torch.no_grad():
        model.conv2.weight[0, 0, 0, 0] = float("inf")
    with pytest.raises(ModelError, match=r"conv2.weight: holds values that are not finite"):
        score_channels(model.graph, model, criterion=criterion_named("l1"))


@pytest.mark.parametrize("name", ["taylor", "fisher"])
def test_gradients_that_are_not_finite_are_refused(make, batches, name):
    model = make("Chain")
    with torch.no_grad():
        model.conv1.weight.fill_(1e308)
    with pytest.raises(ModelError, match=r"gradients of the loss are not finite.*such as l2"):
        score_channels(model.graph, model, batches, criterion=criterion_named(name))


def test_labels_beyond_the_classes_are_a_data_error(make, batches):
    with pytest.raises(DataError, match="labels run from 0 to 9, but the model has 4 classes"):
        scores_of(make("Chain"), "taylor", [(batches[0][0], torch.tensor([0, 9]))])


def test_a_model_that_returns_no_class_scores_is_a_model_error(make, batches):
    model = make("Chain")
    model.forward = lambda images: (images, images)
    with pytest.raises(ModelError, match=r"returns tuple .* needs class scores"):
        scores_of(model, "fisher", batches)


def test_a_graph_of_another_model_is_refused(make):
    with pytest.raises(ModelError, match=r"conv1.weight: is missing.*trace the graph from this very model"):
        CRITERIA["l2"].function(make("Chain").graph, make("Depthwise"), None, seed=0)


def test_every_registered_criterion_scores_a_network_the_graph_knows(make, batches):
    model = make("Depthwise")
    assert model.graph.axes_with(Role.CONSUMER)
    for criterion in CRITERIA.values():
        scores = score_channels(model.graph, model, batches, criterion=criterion)
        assert scores.shape == (3,)
        assert scores.dtype == np.float64
