import numpy as np
import pytest
import torch
from torch import nn

from prune2deploy.graph.trace import trace
from prune2deploy.importance.criteria import CRITERIA, score_channels
from prune2deploy.importance.gradients import scoring_state
from prune2deploy.importance.sample_gates import SampleGates
from prune2deploy.model.spec import ModelSpec, build_model


@pytest.mark.parametrize("name", ["resnet20", "densenet_bc_100_12", "torchvision:mobilenet_v3_small"])
def test_every_criterion_ranks_a_real_network_and_fisher_agrees_with_its_definition(name):
    model = build_model(ModelSpec.parse(f"{name}?num_classes=10"), seed=0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2.0, generator=torch.Generator().manual_seed(0))
    graph = trace(model, torch.randn(2, 3, 32, 32)).graph
    generator = torch.Generator().manual_seed(1)
    images, labels = torch.randn(3, 3, 32, 32, generator=generator), torch.arange(3)
    for criterion in CRITERIA.values():
        scores = score_channels(graph, model, [(images, labels)], criterion=criterion)
        judged = scores[np.isfinite(scores)]
        assert scores.shape == (graph.channel_count,)
        assert judged.min() >= 0
        assert np.unique(judged).size > 1 or criterion.name == "bn-scale"
    gates = SampleGates(graph, model)
    with scoring_state(model):
        at_once, one_by_one = gates.gradients(images, labels), gates._one_by_one(images, labels)
    assert gates._fast
    assert np.linalg.norm(at_once - one_by_one) < 1e-4 * np.linalg.norm(one_by_one)
