"""Small networks with their channel graphs written by hand, and a gate that each can multiply in where it reads."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prune2deploy.graph.channels import Axis, ChannelGraph, Group, Role
from prune2deploy.graph.cost import CostModel


def axis(tensor: str, dim: int, role: Role, channels: Sequence[int], *, learnable: bool = True) -> Axis:
    return Axis(tensor=tensor, dim=dim, role=role, learnable=learnable, channels=np.array(channels, dtype=np.int64))


def norm_axes_of(name: str, channels: Sequence[int]) -> list[Axis]:
    statistics = [
        axis(f"{name}.{part}", 0, Role.AFFINE, channels, learnable=False) for part in ("running_mean", "running_var")
    ]
    return [
        axis(f"{name}.weight", 0, Role.AFFINE, channels),
        axis(f"{name}.bias", 0, Role.AFFINE, channels),
        *statistics,
    ]


def graph_of(model: nn.Module, groups: dict[str, Sequence[int]], axes: Sequence[Axis]) -> ChannelGraph:
    channel_count = 1 + max(channel for channels in groups.values() for channel in channels)
    return ChannelGraph(
        fingerprint="by hand",
        shapes={name: tuple(tensor.shape) for name, tensor in model.state_dict().items()},
        axes=tuple(axes),
        groups=tuple(
            Group(index=index, name=name, channels=np.array(channels), positions=1, exact=True, stream=False)
            for index, (name, channels) in enumerate(groups.items())
        ),
        frozen=(),
        cost=CostModel(channel_count=channel_count, widths=(), flop_terms=(), parameter_terms=()),
        channel_count=channel_count,
    )


class Gated(nn.Module):
    """A network that multiplies each channel by ``gate`` wherever it reads it; shape (channels,) or (N, channels)."""

    graph: ChannelGraph
    gate: Tensor | None = None

    def read(self, values: Tensor, first: int, last: int) -> Tensor:
        if self.gate is None:
            return values
        gate = self.gate[..., first:last]
        return values * gate.reshape(-1, last - first, *[1] * (values.ndim - 2))


class Chain(Gated):
    """conv1 -> norm -> relu -> conv2 -> relu -> flatten -> linear. Channels 0-2: conv1; 3-4: conv2, 4 columns."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 3, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(3)
        self.conv2 = nn.Conv2d(3, 2, 3, padding=1)
        self.classifier = nn.Linear(8, 4)
        self.graph = graph_of(
            self,
            {"conv1": range(3), "conv2": range(3, 5)},
            [
                axis("conv1.weight", 0, Role.PRODUCER, range(3)),
                *norm_axes_of("norm", range(3)),
                axis("conv2.weight", 1, Role.CONSUMER, range(3)),
                axis("conv2.weight", 0, Role.PRODUCER, [3, 4]),
                axis("conv2.bias", 0, Role.AFFINE, [3, 4]),
                axis("classifier.weight", 1, Role.CONSUMER, [3] * 4 + [4] * 4),
            ],
        )

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.norm(self.conv1(images)).relu()
        hidden = self.conv2(self.read(hidden, 0, 3)).relu()
        return self.classifier(self.read(hidden, 3, 5).flatten(1))


class Residual(Gated):
    """A stream of three channels (stem + branch), read by the branch and, after the addition, by the head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 3, 1)
        self.branch = nn.Conv2d(3, 3, 3, padding=1)
        self.head = nn.Linear(3, 4)
        stream = range(3)
        self.graph = graph_of(
            self,
            {"stem": stream},
            [
                axis("stem.weight", 0, Role.PRODUCER, stream),
                axis("stem.bias", 0, Role.AFFINE, stream),
                axis("branch.weight", 0, Role.PRODUCER, stream),
                axis("branch.weight", 1, Role.CONSUMER, stream),
                axis("branch.bias", 0, Role.AFFINE, stream),
                axis("head.weight", 1, Role.CONSUMER, stream),
            ],
        )

    def forward(self, images: Tensor) -> Tensor:
        stream = self.stem(images)
        stream = stream + self.branch(self.read(stream, 0, 3))
        return self.head(self.read(stream.tanh().mean(dim=(2, 3)), 0, 3))


class Depthwise(Gated):
    """conv -> depthwise -> norm -> pointwise: the middle two carry channels 0-2, pointwise reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 1)
        self.depthwise = nn.Conv2d(3, 3, 3, padding=1, groups=3)
        self.norm = nn.BatchNorm2d(3)
        self.pointwise = nn.Conv2d(3, 4, 1)
        self.graph = graph_of(
            self,
            {"conv": range(3)},
            [
                axis("conv.weight", 0, Role.PRODUCER, range(3)),
                axis("conv.bias", 0, Role.AFFINE, range(3)),
                axis("depthwise.weight", 0, Role.AFFINE, range(3)),
                axis("depthwise.bias", 0, Role.AFFINE, range(3)),
                *norm_axes_of("norm", range(3)),
                axis("pointwise.weight", 1, Role.CONSUMER, range(3)),
            ],
        )

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.norm(self.depthwise(self.conv(images))).relu()
        return self.pointwise(self.read(hidden, 0, 3)).mean(dim=(2, 3))


class Grouped(Gated):
    """conv -> grouped convolution of two groups: equal counts leave each, so 0 owns outputs 0 and 2, 1 owns 1 and 3."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 1)
        self.grouped = nn.Conv2d(4, 4, 1, groups=2)
        self.graph = graph_of(
            self,
            {"conv": range(2)},
            [
                axis("conv.weight", 0, Role.PRODUCER, [0, 1, 0, 1]),
                axis("conv.bias", 0, Role.AFFINE, [0, 1, 0, 1]),
                axis("grouped.weight", 1, Role.CONSUMER, [0, 1]),
            ],
        )

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.conv(images).relu()
        if self.gate is not None:
            hidden = hidden * self.gate.repeat(1, 2).reshape(-1, 4, 1, 1)
        return self.grouped(hidden).mean(dim=(2, 3))


class Functional(Chain):
    """The same as Chain, but its layers are called as functions, so that no module sees what they read."""

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.norm(torch.conv2d(images, self.conv1.weight, padding=1)).relu()
        hidden = torch.conv2d(self.read(hidden, 0, 3), self.conv2.weight, self.conv2.bias, padding=1).relu()
        return nn.functional.linear(self.read(hidden, 3, 5).flatten(1), self.classifier.weight, self.classifier.bias)


class WindowsFirst(Gated):
    """Its linear readers see the two halves of each image as rows of their own, halves first: not one row a sample."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 3)
        self.second = nn.Linear(3, 4)
        self.graph = graph_of(
            self,
            {"first": range(3)},
            [
                axis("first.weight", 0, Role.PRODUCER, range(3)),
                axis("first.bias", 0, Role.AFFINE, range(3)),
                axis("second.weight", 1, Role.CONSUMER, range(3)),
            ],
        )

    def forward(self, images: Tensor) -> Tensor:
        rows = images.permute(2, 0, 1, 3).flatten(2)
        hidden = self.first(rows).relu()
        if self.gate is not None:
            hidden = hidden * self.gate.reshape(1, -1, 3)
        return self.second(hidden).mean(dim=0)


NETWORKS = {kind.__name__: kind for kind in (Chain, Residual, Depthwise, Grouped, Functional, WindowsFirst)}


def randomised(name: str, seed: int = 0) -> Gated:
    """In double precision, with norms and statistics that are not those of a fresh network."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = NETWORKS[name]().double()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, 0.5, 1.5)
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> Gated:
    return randomised(request.param)


@pytest.fixture
def batches() -> list[tuple[Tensor, Tensor]]:
    """Two batches of images (2, 2, 2), the first as long as an image has rows."""
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(count, 2, 2, 2, generator=generator, dtype=torch.float64), torch.arange(count) % 4)
        for count in (2, 5)
    ]


@pytest.fixture
def make() -> Callable[[str], Gated]:
    return randomised
