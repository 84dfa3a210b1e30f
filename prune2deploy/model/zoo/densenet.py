"""Densely connected networks with bottlenecks and compression (DenseNet-BC), for small images.

Source: Huang et al. 2017, section 3 and 4.2. Dropout is left out, as with the paper's augmented data.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from prune2deploy.model.zoo.initial_weights import draw_initial_weights


class DenseLayer(nn.Module):
    """A 1x1 bottleneck of four times the growth, then a 3x3 convolution. Shape: (N, C, H, W) -> (N, growth, H, W)."""

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(in_channels, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The new channels alone."""
        out: Tensor = self.conv2(self.relu2(self.norm2(self.conv1(self.relu1(self.norm1(x))))))
        return out


class DenseBlock(nn.Module):
    """``count`` dense layers; each reads the input and all layers before it, concatenated.

    Shape: (N, C, H, W) -> (N, C + count * growth, H, W).
    """

    def __init__(self, count: int, in_channels: int, growth: int) -> None:
        super().__init__()
        for index in range(count):
            self.add_module(f"denselayer{index + 1}", DenseLayer(in_channels + index * growth, growth))

    def forward(self, x: Tensor) -> Tensor:
        """Concatenate the input with the new channels of every layer."""
        features = [x]
        for layer in self.children():
            features.append(layer(torch.cat(features, dim=1)))
        return torch.cat(features, dim=1)


def _transition(in_channels: int, out_channels: int) -> nn.Sequential:
    """Compression by a 1x1 convolution, then 2x2 average pooling."""
    return nn.Sequential(
        OrderedDict(
            norm=nn.BatchNorm2d(in_channels),
            relu=nn.ReLU(inplace=True),
            conv=nn.Conv2d(in_channels, out_channels, 1, bias=False),
            pool=nn.AvgPool2d(2, stride=2),
        )
    )


class DenseNet(nn.Module):
    """Three dense blocks of (depth - 4) / 6 layers, with transitions that halve channels and image between them.

    Shape: (N, in_channels, H, W) -> (N, num_classes).
    """

    def __init__(self, *, depth: int, growth: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        count = (depth - 4) // 6
        channels = 2 * growth
        self.features = nn.Sequential()
        self.features.add_module("conv0", nn.Conv2d(in_channels, channels, 3, padding=1, bias=False))
        for number in (1, 2, 3):
            self.features.add_module(f"denseblock{number}", DenseBlock(count, channels, growth))
            channels += count * growth
            if number < 3:
                self.features.add_module(f"transition{number}", _transition(channels, channels // 2))
                channels //= 2
        self.features.add_module("norm_final", nn.BatchNorm2d(channels))
        self.features.add_module("relu_final", nn.ReLU(inplace=True))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        draw_initial_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.classifier(self.avgpool(self.features(x)).flatten(1))
        return logits


def densenet_bc_40_12(*, num_classes: int = 10, in_channels: int = 3) -> DenseNet:
    """DenseNet-BC of depth 40 and growth 12: 0.18 M parameters."""
    return DenseNet(depth=40, growth=12, num_classes=num_classes, in_channels=in_channels)


def densenet_bc_100_12(*, num_classes: int = 10, in_channels: int = 3) -> DenseNet:
    """DenseNet-BC of depth 100 and growth 12: 0.77 M parameters."""
    return DenseNet(depth=100, growth=12, num_classes=num_classes, in_channels=in_channels)
