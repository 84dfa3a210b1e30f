"""Residual networks for small images: a 3x3 stem, no max pooling, global average pooling.

Source: He et al. 2016, sections 4.2 (CIFAR, depth 6n + 2) and 4.1 (ResNet-18). Departure: a stage that changes the
width has a 1x1 convolution in its shortcut (option B), as in the published PyTorch weights, whose ``state_dict``
names these are.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from prune2deploy.model.zoo.initial_weights import draw_initial_weights


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut. Shape: (N, C, H, W) -> (N, width, H / stride, W / stride)."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != width:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Add the shortcut to the two convolutions."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        activated: Tensor = self.relu2(out + shortcut)
        return activated


class ResNet(nn.Module):
    """Stages ``layer1``, ``layer2``, ... of basic blocks; each but the first halves the image.

    ``blocks`` and ``widths`` have one entry a stage. Shape: (N, in_channels, H, W) -> (N, num_classes).
    """

    def __init__(self, *, blocks: Sequence[int], widths: Sequence[int], num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        stages = []
        incoming = widths[0]
        for number, (count, width) in enumerate(zip(blocks, widths, strict=True), start=1):
            first = BasicBlock(incoming, width, stride=1 if number == 1 else 2)
            stage = nn.Sequential(first, *(BasicBlock(width, width, stride=1) for _ in range(count - 1)))
            self.add_module(f"layer{number}", stage)
            stages.append(f"layer{number}")
            incoming = width
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(incoming, num_classes)
        self._stages = tuple(stages)
        draw_initial_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.relu(self.bn1(self.conv1(x)))
        for stage in self._stages:
            x = self.get_submodule(stage)(x)
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


def resnet20(*, num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """ResNet-20: 0.27 M parameters, widths 16/32/64."""
    return ResNet(blocks=(3, 3, 3), widths=(16, 32, 64), num_classes=num_classes, in_channels=in_channels)


def resnet32(*, num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """ResNet-32: 0.47 M parameters, widths 16/32/64."""
    return ResNet(blocks=(5, 5, 5), widths=(16, 32, 64), num_classes=num_classes, in_channels=in_channels)


def resnet56(*, num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """ResNet-56: 0.86 M parameters, widths 16/32/64."""
    return ResNet(blocks=(9, 9, 9), widths=(16, 32, 64), num_classes=num_classes, in_channels=in_channels)


def resnet18(*, num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """ResNet-18 with the stem of the CIFAR networks: 11.2 M parameters, widths 64/128/256/512."""
    return ResNet(blocks=(2, 2, 2, 2), widths=(64, 128, 256, 512), num_classes=num_classes, in_channels=in_channels)


def resnet8_wide(*, num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """One block a stage, widths 64/128/256: small, and wide enough for removed channels to become time.

    Depth 8 = 6n + 2 with n = 1, four times as wide as the CIFAR networks.
    """
    return ResNet(blocks=(1, 1, 1), widths=(64, 128, 256), num_classes=num_classes, in_channels=in_channels)
