"""The modules that stand in for those of a residual branch that left. They have no parameters and no state."""

from typing import Any

import torch
from torch import Tensor, nn

from prune2deploy.graph.becomes import Becomes


class Zeros(nn.Module):
    """New zeros of the shape, type and memory layout of the input, whatever that holds; no gradient passes.

    Further arguments (masks and the like) are ignored, as the module that left would have been called with them.
    """

    def forward(self, data: Tensor, *_: Any, **__: Any) -> Tensor:
        """Shape: any -> the same."""
        return torch.zeros_like(data)


class PassedOn(nn.Module):
    """The input itself, the same object; further arguments are ignored."""

    def forward(self, data: Tensor, *_: Any, **__: Any) -> Tensor:
        """Shape: any -> the same."""
        return data


_MODULES: dict[Becomes, type[nn.Module]] = {Becomes.ZEROS: Zeros, Becomes.INPUT: PassedOn}


def replacement(becomes: Becomes, module: nn.Module) -> nn.Module:
    """What stands in for ``module``, in its mode."""
    return _MODULES[becomes]().train(module.training)
