"""Wide residual networks, with the activation before each convolution.

Source: Zagoruyko and Komodakis 2016, table 1 (no dropout). The ``state_dict`` names are those
of the common PyTorch port.
"""

from torch import Tensor, nn

from prune2deploy.model.zoo.initial_weights import draw_initial_weights


class PreActivationBlock(nn.Module):
    """Norm, activation, convolution, twice, beside a shortcut.

    Where the width changes, the shortcut's 1x1 convolution reads the first activation. Shape:
    (N, C, H, W) -> (N, width, H / stride, W / stride).
    """

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.convShortcut: nn.Module | None = None
        if in_channels != width:
            self.convShortcut = nn.Conv2d(in_channels, width, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Add the shortcut to the two convolutions."""
        activated = self.relu1(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(activated)
        out: Tensor = self.conv2(self.relu2(self.bn2(self.conv1(activated))))
        return out + shortcut


class Stage(nn.Module):
    """``count`` blocks of one width in ``layer``; the first carries the stride."""

    def __init__(self, count: int, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        first = PreActivationBlock(in_channels, width, stride)
        self.layer = nn.Sequential(first, *(PreActivationBlock(width, width, 1) for _ in range(count - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Run the blocks in order."""
        out: Tensor = self.layer(x)
        return out


class WideResNet(nn.Module):
    """Three stages of (depth - 4) / 6 blocks, ``widening`` times as wide as 16/32/64.

    Shape: (N, in_channels, H, W) -> (N, num_classes).
    """

    def __init__(self, *, depth: int, widening: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        count = (depth - 4) // 6
        widths = (16 * widening, 32 * widening, 64 * widening)
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.block1 = Stage(count, 16, widths[0], stride=1)
        self.block2 = Stage(count, widths[0], widths[1], stride=2)
        self.block3 = Stage(count, widths[1], widths[2], stride=2)
        self.bn1 = nn.BatchNorm2d(widths[2])
        self.relu = nn.ReLU(inplace=True)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[2], num_classes)
        draw_initial_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        x = self.relu(self.bn1(x))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


def wrn40_2(*, num_classes: int = 10, in_channels: int = 3) -> WideResNet:
    """WRN-40-2: 2.2 M parameters, widths 32/64/128."""
    return WideResNet(depth=40, widening=2, num_classes=num_classes, in_channels=in_channels)
