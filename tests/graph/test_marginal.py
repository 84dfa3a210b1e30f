"""What one channel costs, against the plain difference of two whole models."""

import numpy as np
import pytest
import torch
from torch import nn

from prune2deploy.graph.marginal import marginal_flops, own_layer_flops
from prune2deploy.graph.restrict import restricted_graph


class Mixed(nn.Module):
    """A residual stream, a depthwise convolution, a grouped one, a concatenation and a flattened map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.inside = nn.Conv2d(8, 6, 3, padding=1, stride=2)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.grouped = nn.Conv2d(6, 12, 1, groups=2)
        self.branch = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(12 * 36 + 8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        stream = self.stem(x)
        stream = (stream + self.branch(stream)).relu()
        hidden = self.grouped(self.depthwise(self.inside(stream)).relu()).relu()
        return self.head(torch.cat([hidden.flatten(1), stream.mean(dim=(2, 3))], dim=1))


@pytest.fixture(scope="module")
def cost(see):
    return see(Mixed()).graph.cost


def some(cost, seed):
    kept = np.random.default_rng(seed).random(cost.channel_count) < 0.6
    kept[0] = True
    return kept


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
def test_the_marginal_flops_are_the_difference_of_two_models(cost, seed):
    kept = np.ones(cost.channel_count, dtype=bool) if seed is None else some(cost, seed)
    expected = np.zeros(cost.channel_count)
    for channel in np.flatnonzero(kept):
        without = kept.copy()
        without[channel] = False
        expected[channel] = cost.flops(kept) - cost.flops(without)
    found = marginal_flops(cost, kept)
    assert found.tolist() == expected.tolist()
    assert found.max() > found[kept].min() > 0


def test_own_layer_flops_by_hand(see):
    """Stem and branch: 2·144·k²·C_in each; inside: 2·36·9·8, and its depthwise 2·36·9; grouped: 2·36·3 an output."""
    seen = see(Mixed())
    found = own_layer_flops(seen.graph.cost, seen.graph.everything())
    by_group = {group.name: set(found[group.channels]) for group in seen.graph.groups}
    assert by_group["stem"] == {2 * 144 * 9 * 3 + 2 * 144 * 9 * 8}
    inside = seen.channels("inside.weight", 0)
    assert inside[0] == inside[3]
    assert set(found[np.unique(inside)]) == {2 * (2 * 36 * 9 * 8 + 2 * 36 * 9)}


def test_own_layers_count_the_inputs_that_are_left(see):
    seen = see(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 6, 1), nn.Flatten(), nn.Linear(6 * 144, 2)))
    first, second = seen.channels("0.weight", 0), seen.channels("2.weight", 0)
    kept = seen.graph.everything()
    kept[first[0]] = kept[second[5]] = False
    found = own_layer_flops(seen.graph.cost, kept)
    assert found[first].tolist() == [0] + [2 * 144 * 3] * 3
    assert found[second].tolist() == [2 * 144 * 3] * 5 + [0]


def test_a_channel_of_a_model_without_counted_operators_costs_nothing(see):
    cost = see(Mixed()).graph.cost
    bare = type(cost)(channel_count=cost.channel_count, widths=(), flop_terms=(), parameter_terms=())
    everything = np.ones(cost.channel_count, dtype=bool)
    assert not marginal_flops(bare, everything).any()
    assert not own_layer_flops(bare, everything).any()


def test_restricting_the_graph_changes_no_marginal_cost(see):
    graph = see(Mixed()).graph
    kept = some(graph.cost, 4)
    restricted = restricted_graph(graph, kept)
    assert marginal_flops(restricted.cost, kept).tolist() == marginal_flops(graph.cost, kept).tolist()
