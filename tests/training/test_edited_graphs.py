"""Training a model whose graph was edited."""

from pathlib import Path

import pytest
import torch
from torch import nn

from prune2deploy.budget.from_mask import plan_from_mask
from prune2deploy.graph.trace import trace
from prune2deploy.policies.policy import NoPruning, When
from prune2deploy.surgery.edit import Editor
from prune2deploy.surgery.edited import EditedModule
from prune2deploy.surgery.trial import trial_mask
from prune2deploy.training.loop import train
from prune2deploy.training.recipe import TrainingRecipe

INPUTS = (torch.ones(1, 1, 4, 4),)


@pytest.fixture
def make(net):
    model: nn.Module = net(8)
    traced = trace(model, INPUTS, sizes_are_free=True)
    editor = Editor.of(model, traced, INPUTS)
    plan = plan_from_mask(traced.graph, trial_mask(traced.graph, [0]))
    return lambda: editor.edited_copy(model, plan)


@pytest.mark.parametrize("mixed_precision", ["no", "bf16"])
def test_an_edited_graph_is_trained_and_evaluated_like_a_module(make, splits, mixed_precision: str) -> None:
    model: EditedModule = make()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    recipe = TrainingRecipe(epochs=6, batch_size=8, learning_rate=0.05, seed=3, mixed_precision=mixed_precision)
    result = train(model, splits, recipe)
    assert result.history[-1].loss < result.history[0].loss
    assert {name for name, tensor in model.state_dict().items() if torch.equal(tensor, before[name])} == set()
    assert "forward" not in model.__dict__
    assert model(torch.ones(2, 1, 4, 4)).dtype is torch.float32


def test_resuming_gives_the_same_weights_bit_by_bit(make, splits, tmp_path: Path) -> None:
    recipe = TrainingRecipe(epochs=2, batch_size=8, learning_rate=0.05, seed=3)
    whole, first, second = make(), make(), make()
    train(whole, splits, recipe, state_path=tmp_path / "whole")

    class StopError(Exception):
        pass

    class Stopping(NoPruning):
        def decide(self, moment):
            if moment.when is When.AFTER_STEP and moment.epoch == 1:
                raise StopError

    with pytest.raises(StopError):
        train(first, splits, recipe, state_path=tmp_path / "state", policy=Stopping())
    resumed = train(second, splits, recipe, state_path=tmp_path / "state", resume=True)
    assert resumed.resumed_at == 1
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
