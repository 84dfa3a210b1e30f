"""Methods that prune while they train hold a latency or a memory as they hold FLOPs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from prune2deploy.budget.from_mask import mask_from_plan
from prune2deploy.budget.priced import Priced, PricedTerm, priced_flops, priced_parameters
from prune2deploy.budget.target import Budget, Limit
from prune2deploy.data.splits import DataSplits
from prune2deploy.graph.trace import trace
from prune2deploy.policies.aim import Aim
from prune2deploy.policies.gradual import Gradual, GradualOptions
from prune2deploy.policies.registry import policy_named
from prune2deploy.policies.standing import Standing
from prune2deploy.training.loop import train
from prune2deploy.training.recipe import TrainingRecipe

RECIPE = TrainingRecipe(epochs=4, batch_size=8, learning_rate=0.05, warmup_epochs=0.0, seed=3)
OPTIONS = {
    "3sp": {},
    "epi": {"window": 1, "threshold": 0.5},
    "activation-density": {"window": 1, "epsilon": 0.9},
}
LATENCY = 0.7
SHARED_NS = 300.0


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.second, self.norm2 = nn.Conv2d(16, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24)
        self.head = nn.Linear(24, 3)

    def forward(self, images):
        hidden = self.norm1(self.first(images)).relu()
        return self.head(self.norm2(self.second(hidden)).relu().mean(dim=(2, 3)))


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net()


@pytest.fixture
def traced(model):
    return trace(model, torch.zeros(1, 1, 6, 6))


@pytest.fixture
def splits():
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(52) % 3
    images = torch.randn(52, 1, 6, 6, generator=generator)
    images[:, 0, :2] += 2 * labels[:, None, None]
    kept, rest = TensorDataset(images[:40], labels[:40]), TensorDataset(images[40:], labels[40:])
    return DataSplits(
        name="stripes",
        train=kept,
        evaluation=rest,
        calibration=kept,
        class_names=("a", "b", "c"),
        input_shape=(1, 6, 6),
    )


def by_tiles(price):
    """A price whose widths are rounded up to whole tiles of 2, and that costs something by itself."""
    return lambda *sizes: 5.0 + price(*(2 * np.ceil(np.asarray(size) / 2) for size in sizes))


def latency_of(graph) -> Priced:
    """Nanoseconds that grow in steps, with a share that no cut saves."""
    flops = priced_flops(graph.cost)
    terms = tuple(PricedTerm(name=term.name, widths=term.widths, price=by_tiles(term.price)) for term in flops.terms)
    return replace(flops, name="latency", unit="ns", terms=terms, fixed=SHARED_NS)


def latency_limit(graph, share=LATENCY) -> Limit:
    price = latency_of(graph)
    return Limit(prices=(price,), most=share * price.dense)


def trained(model, splits, policy):
    result = train(model, splits, RECIPE, policy=policy)
    assert result.plan is not None
    return result


@pytest.mark.parametrize("method", OPTIONS)
def test_a_method_comes_down_to_a_latency_and_stops_there(method, model, traced, splits):
    graph = traced.graph
    limit = latency_limit(graph)
    budget = Budget(latency=limit)
    result = trained(model, splits, policy_named(method, traced, Aim(budget=budget, granule=1), OPTIONS[method]))
    kept = mask_from_plan(graph, result.plan)
    assert 0.85 * limit.most < limit.total(kept) <= limit.most
    told = str(result.findings.document)
    assert f"'latency': {limit.total(kept) / limit.dense}" in told


def test_cuts_during_fine_tuning_come_down_to_a_latency_evenly(model, traced, splits):
    graph = traced.graph
    limit = latency_limit(graph, 0.6)
    policy = Gradual(
        graph, Aim(budget=Budget(latency=limit), granule=1), GradualOptions(cuts=3, images=16, criterion="l2")
    )
    result = trained(model, splits, policy)
    shares = [cut["latency"] for cut in result.findings.document["cuts"]]
    assert len(shares) == 3
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.75
    assert 0.5 < shares[-1] <= 0.6


@pytest.mark.parametrize("tighter", ["latency", "flops", "memory"])
def test_of_several_targets_all_hold_and_the_tightest_binds(tighter, model, traced, splits):
    graph = traced.graph
    shares = {name: 0.5 if name == tighter else 0.95 for name in ("latency", "flops", "memory")}
    weights = priced_parameters(graph.cost)
    moments = (weights, replace(weights, fixed=0.2 * weights.dense))
    memory = Limit(prices=moments, most=shares["memory"] * max(price.dense for price in moments))
    budget = Budget(flops=shares["flops"], memory=memory, latency=latency_limit(graph, shares["latency"]))
    result = trained(model, splits, policy_named("3sp", traced, Aim(budget=budget, granule=1), {}))
    achieved = budget.achieved(graph.cost, mask_from_plan(graph, result.plan))
    assert all(achieved[name] <= shares[name] for name in shares)
    assert achieved[tighter] > 0.4


@pytest.mark.parametrize("method", ["prunetrain", "activation-density"])
def test_a_latency_that_was_not_reached_is_told_as_one(method, model, traced, splits):
    graph = traced.graph
    unreachable = Limit(prices=(latency_of(graph),), most=SHARED_NS / 2)
    policy = policy_named(method, traced, Aim(budget=Budget(latency=unreachable), granule=1), {})
    findings = train(model, splits, RECIPE, policy=policy).findings
    left = findings.document["latency"]
    assert findings.document["reached"] is False
    assert f"the target was not reached: {left:.3f} of the latency stay" in findings.notes


def test_what_stands_is_told_of_every_cost_that_a_budget_is_about(traced):
    graph = traced.graph
    standing = Standing(graph)
    budget = Budget(parameters=0.5, latency=latency_limit(graph))
    assert standing.fractions() == {"flops": 1.0, "parameters": 1.0}
    assert standing.fractions(budget) == {"flops": 1.0, "parameters": 1.0, "latency": 1.0}
    assert standing.spelled(budget) == "1.000 of the parameters and 1.000 of the latency"
