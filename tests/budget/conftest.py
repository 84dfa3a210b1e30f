"""Traced networks of a few aligned widths, once for all tests of the budget."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from prune2deploy.graph.channels import ChannelGraph
from prune2deploy.graph.trace import trace


class Residual(nn.Module):
    def __init__(self, width: int, inside: int) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(width, inside, 3, padding=1, bias=False), nn.BatchNorm2d(inside)
        self.second = nn.Conv2d(inside, width, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x + self.second(self.norm(self.first(x)).relu())).relu()


def network(*insides: int, width: int = 64) -> nn.Sequential:
    """A stem of ``width`` channels and residual blocks: groups ``0`` (the stream) and ``1.first``, ``2.first``, ..."""
    blocks = [Residual(width, inside) for inside in insides]
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)
    )


@pytest.fixture(scope="session")
def graph_of() -> Callable[[nn.Module], ChannelGraph]:
    def traced(model: nn.Module) -> ChannelGraph:
        return trace(model, torch.randn(1, 3, 8, 8)).graph

    return traced


@pytest.fixture(scope="session")
def model() -> nn.Sequential:
    return network(64, 128, 96)


@pytest.fixture(scope="session")
def graph(model: nn.Module, graph_of: Callable[[nn.Module], ChannelGraph]) -> ChannelGraph:
    """Groups: 64 (the stream), 64, 128, 96; every one at least four granules of 16 wide."""
    return graph_of(model)


@pytest.fixture(scope="session")
def narrow_graph(graph_of: Callable[[nn.Module], ChannelGraph]) -> ChannelGraph:
    """Groups: 24 (the stream), 20, 10; none is aligned at 16."""
    return graph_of(network(20, 10, width=24))
