"""What a pruned model may cost."""

import math
from dataclasses import dataclass

from prune2deploy.budget.priced import Priced, priced_flops, priced_parameters
from prune2deploy.errors import InputError
from prune2deploy.graph.channels import ChannelMask
from prune2deploy.graph.cost import CostModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """At most ``most`` of a cost, in the unit of its prices. Of several prices the dearest counts.

    Memory has a price for each moment of a forward pass; everything else has one.
    """

    prices: tuple[Priced, ...]
    most: float

    def total(self, kept: ChannelMask) -> float:
        """What a mask costs. Shape: (channel_count,) -> ()."""
        return max(price.total(kept) for price in self.prices)

    @property
    def dense(self) -> float:
        """What the whole model costs."""
        return max(price.dense for price in self.prices)

    @property
    def fraction(self) -> float:
        """The share of the dense cost that may stay."""
        return self.most / self.dense


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What may stay of each cost; all that is given must hold.

    ``flops`` and ``parameters`` are fractions of the dense model, in (0, 1). ``memory`` and ``latency`` come with their
    prices, over the channels of the graph that the budget is for.

    Raises:
        InputError: nothing is given, or a fraction is not in (0, 1).
    """

    flops: float | None = None
    parameters: float | None = None
    memory: Limit | None = None
    latency: Limit | None = None

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
        """The fractions of the dense model that may stay, by the name of the cost."""
        given = {
            "flops": self.flops,
            "parameters": self.parameters,
            "memory": None if self.memory is None else self.memory.fraction,
            "latency": None if self.latency is None else self.latency.fraction,
        }
        return {name: fraction for name, fraction in given.items() if fraction is not None}

    def share_used(self, cost: CostModel, kept: ChannelMask) -> float:
        """The largest of achieved over allowed cost: at most 1 where all targets hold."""
        fractions = self.fractions
        return max(achieved / fractions[name] for name, achieved in self.achieved(cost, kept).items())

    def achieved(self, cost: CostModel, kept: ChannelMask) -> dict[str, float]:
        """The fraction of each budgeted dense cost that a mask keeps, by the name of the cost."""
        found = {}
        for name in self.fractions:
            limit = self._given_limit(name)
            found[name] = achieved_fraction(cost, name, kept) if limit is None else limit.total(kept) / limit.dense
        return found

    def limits(self, cost: CostModel) -> dict[str, Limit]:
        """All that must hold, as limits over prices, by the name of the cost."""
        prices = {"flops": priced_flops, "parameters": priced_parameters}
        found = {}
        for name, fraction in self.fractions.items():
            limit = self._given_limit(name)
            if limit is None:
                price = prices[name](cost)
                limit = Limit(prices=(price,), most=fraction * price.dense)
            found[name] = limit
        return found

    def _given_limit(self, name: str) -> Limit | None:
        return {"memory": self.memory, "latency": self.latency}.get(name)


_OPTIONS = {"flops": "flops", "parameters": "params", "memory": "memory", "latency": "latency"}


COST_WORDS = {"flops": "FLOPs", "parameters": "parameters", "memory": "memory", "latency": "latency"}
"""How each cost is written."""


def achieved_fraction(cost: CostModel, name: str, kept: ChannelMask) -> float:
    """The fraction of the dense ``flops`` or ``parameters`` that a mask keeps."""
    if name == "flops":
        return cost.flops(kept) / max(cost.dense_flops, 1)
    return cost.parameters(kept) / max(cost.dense_parameters, 1)
