"""How the zoo draws its weights."""

from torch import nn


def draw_initial_weights(model: nn.Module) -> None:
    """Convolutions: normal with variance 2 / fan-out, zero bias. Batch norm: 1 and 0. Linear: torch's own, zero bias.

    Source: He et al. 2015, eq. 14 (the backward case).
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
