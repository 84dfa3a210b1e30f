"""VGG with batch norm, and one linear layer as classifier, as used on CIFAR.

Source: Simonyan and Zisserman 2015, table 1, D and E. Departures: batch norm behind each convolution; global average
pooling and a single linear layer in place of the three. ``features`` has the ``state_dict`` names of torchvision's.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from prune2deploy.model.zoo.initial_weights import draw_initial_weights

_STAGE_WIDTHS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """Five stages of 3x3 convolutions, each followed by 2x2 max pooling.

    Shape: (N, in_channels, H, W) -> (N, num_classes). Pooling rounds up, so that a 1x1 map stays 1x1 and 8x8 images
    pass all five poolings; at multiples of 32 nothing is rounded.
    """

    def __init__(self, *, convolutions: Sequence[int], num_classes: int, in_channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        incoming = in_channels
        for count, width in zip(convolutions, _STAGE_WIDTHS, strict=True):
            for _ in range(count):
                layers += [nn.Conv2d(incoming, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                incoming = width
            layers.append(nn.MaxPool2d(2, stride=2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(incoming, num_classes)
        draw_initial_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.classifier(self.avgpool(self.features(x)).flatten(1))
        return logits


def vgg16_bn(*, num_classes: int = 10, in_channels: int = 3) -> VGG:
    """VGG-16 with batch norm: 14.7 M parameters."""
    return VGG(convolutions=(2, 2, 3, 3, 3), num_classes=num_classes, in_channels=in_channels)


def vgg19_bn(*, num_classes: int = 10, in_channels: int = 3) -> VGG:
    """VGG-19 with batch norm: 20.0 M parameters."""
    return VGG(convolutions=(2, 2, 4, 4, 4), num_classes=num_classes, in_channels=in_channels)
