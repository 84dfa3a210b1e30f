"""Memory as a price, against what a run of the pruned network really holds."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from prune2deploy.budget.from_mask import plan_from_mask
from prune2deploy.budget.memory import priced_memory
from prune2deploy.graph.channels import ChannelGraph, ChannelMask
from prune2deploy.graph.trace import Trace, trace
from prune2deploy.graph.units import unit_model
from prune2deploy.surgery.apply import pruned_copy

FLOAT = 4


def residual_network() -> nn.Module:
    return torchvision.models.resnet18(num_classes=10)


def dense_network() -> nn.Module:
    return torchvision.models.DenseNet(growth_rate=8, block_config=(3, 3), num_init_features=16, num_classes=10)


def with_folded_norms(network: nn.Module) -> nn.Module:
    """The network as engines run it: norms go into the convolution before them."""
    network = network.eval()
    for module in list(network.modules()):
        for (first, convolution), (second, norm) in itertools.pairwise(list(module.named_children())):
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, first, fuse_conv_bn_eval(convolution, norm))
                setattr(module, second, nn.Identity())
    return network


class _Held(torch.fx.Interpreter):
    """Runs a program and notes the most bytes that its values, weights apart, have held at once."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        super().__init__(program.graph_module, garbage_collect_values=True)
        self.most = 0
        self._weights = {*program.graph_signature.inputs_to_parameters, *program.graph_signature.inputs_to_buffers}

    def run_node(self, n: torch.fx.Node) -> Any:
        result = super().run_node(n)
        values = [(node.name, value) for node, value in self.env.items()] + [(n.name, result)]
        storages = {
            one.untyped_storage().data_ptr(): one.untyped_storage().nbytes()
            for name, value in values
            if name not in self._weights
            for one in torch.utils._pytree.tree_leaves(value)
            if isinstance(one, torch.Tensor)
        }
        self.most = max(self.most, sum(storages.values()))
        return result


def bytes_held(network: nn.Module, image: torch.Tensor) -> int:
    program = torch.export.export(network, (image,), strict=False)
    state = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    signature = program.graph_signature
    source = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    inputs = [node for node in program.graph.nodes if node.op == "placeholder"]
    held = _Held(program)
    with torch.no_grad():
        held.run(*(state[source[node.name]] if node.name in source else image for node in inputs))
    return held.most


def random_mask(graph: ChannelGraph) -> ChannelMask:
    random = np.random.default_rng(0)
    kept = graph.everything()
    for group in graph.groups:
        kept[random.permutation(group.channels)[: random.integers(1, len(group.channels))]] = False
    return kept


def seen(build: Callable[[], nn.Module]) -> tuple[nn.Module, Trace, torch.Tensor]:
    network, image = with_folded_norms(build()), torch.randn(1, 3, 64, 64)
    return network, trace(network, image), image


@pytest.mark.parametrize("build", [residual_network, dense_network])
def test_memory_of_a_mask_is_what_the_pruned_network_holds_at_most(build: Callable[[], nn.Module]) -> None:
    network, traced, image = seen(build)
    graph = traced.graph
    prices = priced_memory(graph.cost, unit_model(traced), batch=1, bytes_each=FLOAT)
    for kept in (graph.everything(), random_mask(graph)):
        pruned = pruned_copy(network, plan_from_mask(graph, kept))
        weights = FLOAT * sum(parameter.numel() for parameter in pruned.parameters())
        assert max(price.total(kept) for price in prices) == weights + bytes_held(pruned, image)
    assert {(price.name, price.unit) for price in prices} == {("memory", "bytes")}


def test_a_batch_multiplies_the_values_and_not_the_weights() -> None:
    _, traced, _ = seen(residual_network)
    cost, model = traced.graph.cost, unit_model(traced)
    once, thrice, halves = (
        max(price.dense for price in priced_memory(cost, model, batch=batch, bytes_each=size))
        for batch, size in ((1, FLOAT), (3, FLOAT), (1, FLOAT // 2))
    )
    weights = FLOAT * cost.dense_parameters
    assert thrice - weights == pytest.approx(3 * (once - weights))
    assert halves == pytest.approx(once / 2)


def test_without_a_residual_branch_its_weights_and_its_moments_cost_nothing() -> None:
    _, traced, _ = seen(residual_network)
    graph = traced.graph
    branch = graph.branches[0]
    kept = graph.everything()
    for index in branch.groups:
        kept[graph.groups[index].channels] = False
    model = unit_model(traced)
    prices = priced_memory(graph.cost, model, batch=1, bytes_each=FLOAT)
    weights = FLOAT * graph.cost.parameters(kept)
    assert weights < FLOAT * graph.cost.dense_parameters
    inside = [price for price, moment in zip(prices, model.moments, strict=True) if branch.name in moment.branches]
    outside = [price for price, moment in zip(prices, model.moments, strict=True) if not moment.branches]
    assert inside
    assert all(price.total(kept) == weights for price in inside)
    assert all(price.total(kept) > weights for price in outside)


def test_widths_of_weights_and_of_values_are_the_same_ones() -> None:
    _, traced, _ = seen(dense_network)
    cost, model = traced.graph.cost, unit_model(traced)
    widths = priced_memory(cost, model, batch=1, bytes_each=FLOAT)[0].widths
    assert len(widths) < len(cost.widths) + len(model.widths)
    assert all(np.array_equal(one, other) for one, other in zip(widths, cost.widths, strict=False))
