"""What a pruned model may cost."""

import math
from dataclasses import dataclass

from prune2deploy.errors import InputError
from prune2deploy.graph.channels import ChannelMask
from prune2deploy.graph.cost import CostModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Fractions of the dense cost that may stay, each in (0, 1) or None; all that are given must hold.

    Raises:
        InputError: no fraction is given, or one is not in (0, 1).
    """

    flops: float | None = None
    parameters: float | None = None

    def __post_init__(self) -> None:
        if not self.fractions:
            raise InputError("no target is given", hint="say what may stay, for instance --flops 0.33")
        for name, fraction in self.fractions.items():
            if not (math.isfinite(fraction) and 0 < fraction < 1):
                raise InputError(
                    f"{fraction} is not a fraction between 0 and 1 of the dense {name} that may stay",
                    where=f"--{_OPTIONS[name]}",
                    hint=f"for a third write --{_OPTIONS[name]} 0.33",
                )

    @property
    def fractions(self) -> dict[str, float]:
        """The fractions that are given, by the name of the cost."""
        given = {"flops": self.flops, "parameters": self.parameters}
        return {name: fraction for name, fraction in given.items() if fraction is not None}

    def share_used(self, cost: CostModel, kept: ChannelMask) -> float:
        """The largest of achieved over allowed cost: at most 1 where all targets hold."""
        return max(achieved_fraction(cost, name, kept) / fraction for name, fraction in self.fractions.items())


_OPTIONS = {"flops": "flops", "parameters": "params"}


COST_WORDS = {"flops": "FLOPs", "parameters": "parameters"}
"""How each cost is written."""


def achieved_fraction(cost: CostModel, name: str, kept: ChannelMask) -> float:
    """The fraction of the dense ``flops`` or ``parameters`` that a mask keeps."""
    if name == "flops":
        return cost.flops(kept) / max(cost.dense_flops, 1)
    return cost.parameters(kept) / max(cost.dense_parameters, 1)
