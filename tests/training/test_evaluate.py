import math

import pytest
import torch
from torch import nn
from torch.utils.data import IterableDataset, TensorDataset

from prune2deploy.errors import DataError, ModelError
from prune2deploy.training.evaluate import evaluate
from prune2deploy.training.recalibrate import recalibrate_batchnorm


class Notes:
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def test_accuracy_and_loss_are_means_over_samples_whatever_the_batch():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    labels = torch.tensor([0, 1, 1])
    losses = [math.log(1 + math.exp(-2)), math.log(1 + math.exp(-1)), math.log(1 + math.exp(3))]
    for batch_size in (1, 2, 256):
        found = evaluate(nn.Flatten(), TensorDataset(logits.reshape(3, 2, 1, 1), labels), batch_size=batch_size)
        assert found.accuracy == pytest.approx(2 / 3)
        assert found.loss == pytest.approx(sum(losses) / 3, rel=1e-6)
        assert found.samples == 3


def test_evaluation_leaves_the_model_as_it_was(net, splits):
    model = net()
    model.train()
    model.norm.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first, second = evaluate(model, splits.evaluation), evaluate(model, splits.evaluation)
    assert first == second
    assert model.training
    assert model.dropout.training
    assert not model.norm.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_failing_evaluation_still_restores_the_training_flags(net):
    model = net()
    with pytest.raises(RuntimeError):
        evaluate(model, TensorDataset(torch.zeros(2, 5, 4, 4), torch.zeros(2, dtype=torch.int64)))
    assert model.training


def test_an_empty_split_a_stream_and_wrong_labels_are_data_errors(net):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(())

    with pytest.raises(DataError, match="evaluation split is empty"):
        evaluate(net(), TensorDataset(torch.zeros(0, 1, 4, 4), torch.zeros(0)))
    with pytest.raises(DataError, match="Stream is a stream without a length"):
        evaluate(net(), Stream())
    with pytest.raises(DataError, match="labels run from 1 to 3, but the model has 3 classes"):
        evaluate(net(), TensorDataset(torch.zeros(2, 1, 4, 4), torch.tensor([1, 3])))


def test_a_model_that_returns_no_class_scores_is_a_model_error(net):
    dataset = TensorDataset(torch.zeros(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ModelError, match=r"a tensor of shape \(2, 1, 4, 4\) for 2 images"):
        evaluate(nn.Identity(), dataset)


def test_recalibrated_statistics_are_the_mean_over_full_batches(net, splits):
    model = net()
    model.norm.momentum = 0.3
    weights = {name: parameter.clone() for name, parameter in model.named_parameters()}
    done = recalibrate_batchnorm(model, splits.calibration, images=20, batch_size=20)
    assert (done.norms, done.images) == (1, 20)
    values = model.conv(splits.calibration.tensors[0]).detach().transpose(0, 1).flatten(1)
    torch.testing.assert_close(model.norm.running_mean, values.mean(dim=1))
    torch.testing.assert_close(model.norm.running_var, values.var(dim=1))
    assert model.norm.momentum == 0.3
    assert model.training
    assert all(torch.equal(weights[name], parameter) for name, parameter in model.named_parameters())


def test_recalibration_uses_whole_batches_and_repeats_with_its_seed(net, splits):
    first, second, other = net(), net(), net()
    random_state = torch.random.get_rng_state()
    assert recalibrate_batchnorm(first, splits.calibration, batch_size=8, seed=1).images == 16
    recalibrate_batchnorm(second, splits.calibration, batch_size=8, seed=1)
    recalibrate_batchnorm(other, splits.calibration, batch_size=8, seed=2)
    assert torch.equal(first.norm.running_mean, second.norm.running_mean)
    assert not torch.equal(first.norm.running_mean, other.norm.running_mean)
    assert torch.equal(random_state, torch.random.get_rng_state())


def test_recalibration_keeps_dropout_off(splits):
    inner = nn.BatchNorm2d(1)
    model = nn.Sequential(nn.Dropout(0.9), inner, nn.Flatten())
    model.train()
    recalibrate_batchnorm(model, splits.calibration, images=20, batch_size=20)
    torch.testing.assert_close(inner.running_mean[0], splits.calibration.tensors[0].mean())
    assert model[0].training


def test_a_model_without_batch_norm_is_left_alone_and_this_is_said(splits):
    progress = Notes()
    done = recalibrate_batchnorm(nn.Linear(2, 2), splits.calibration, progress=progress)
    assert (done.norms, done.images) == (0, 0)
    assert progress.notes == ["the model has no batch-norm statistics to recalibrate"]


def test_one_image_is_too_few_to_recalibrate(net):
    with pytest.raises(DataError, match="need at least 2 images"):
        recalibrate_batchnorm(net(), TensorDataset(torch.zeros(1, 1, 4, 4), torch.zeros(1)))
