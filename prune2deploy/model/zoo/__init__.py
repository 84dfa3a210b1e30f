"""The CIFAR-style networks of the pruning literature, for any input size from 8x8 and any class count.

Every entry takes ``num_classes`` and ``in_channels``. No forward pass knows a width or a spatial size, so slicing
weights is enough to prune them.
"""

from collections.abc import Callable, Mapping

from torch import nn

from prune2deploy.model.zoo.densenet import densenet_bc_40_12, densenet_bc_100_12
from prune2deploy.model.zoo.resnet import resnet8_wide, resnet18, resnet20, resnet32, resnet56
from prune2deploy.model.zoo.vgg import vgg16_bn, vgg19_bn
from prune2deploy.model.zoo.wide_resnet import wrn40_2

INPUT_SIZE = (32, 32)

ZOO: Mapping[str, Callable[..., nn.Module]] = {
    "densenet_bc_40_12": densenet_bc_40_12,
    "densenet_bc_100_12": densenet_bc_100_12,
    "resnet18": resnet18,
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet56": resnet56,
    "resnet8_wide": resnet8_wide,
    "vgg16_bn": vgg16_bn,
    "vgg19_bn": vgg19_bn,
    "wrn40_2": wrn40_2,
}
