"""What is left of a model that a policy prunes several times: a mask over the dense channels, and no new tracing."""

from collections.abc import Mapping
from typing import Any

import torch

from prune2deploy.budget.from_mask import plan_from_mask
from prune2deploy.budget.plan import PrunePlan
from prune2deploy.budget.target import COST_WORDS, Budget
from prune2deploy.errors import InputError
from prune2deploy.graph.channels import ChannelGraph, ChannelMask
from prune2deploy.graph.restrict import restricted_graph


class Standing:
    """The channels that a model still has, under their dense numbers.

    ``dense`` is the graph of the whole model; ``kept``, shape (channel_count,), what is left of it; ``graph`` that of
    the model as it stands, on which scores are taken.
    """

    def __init__(self, dense: ChannelGraph) -> None:
        self.dense = dense
        self.kept: ChannelMask = dense.everything()
        self.graph = dense

    def cut_to(self, kept: ChannelMask, provenance: Mapping[str, Any]) -> PrunePlan:
        """The plan from the model as it stands to ``kept``, which is what is left from now on.

        Raises:
            InputError: ``kept`` holds a channel that has left already.
        """
        if (kept & ~self.kept).any():
            raise InputError("a channel that has left cannot come back", where="plan")
        plan = plan_from_mask(self.graph, kept | ~self.kept, provenance)
        self._stand_at(kept)
        return plan

    def fractions(self, budget: Budget | None = None) -> dict[str, float]:
        """Shares of the dense FLOPs and parameters that are left, and of what else ``budget`` is about."""
        cost = self.dense.cost
        return {
            "flops": cost.flops(self.kept) / max(cost.dense_flops, 1),
            "parameters": cost.parameters(self.kept) / max(cost.dense_parameters, 1),
            **({} if budget is None else budget.achieved(cost, self.kept)),
        }

    def spelled(self, budget: Budget) -> str:
        """What is left of each cost that ``budget`` is about, in words."""
        shares = self.fractions(budget)
        return " and ".join(f"{shares[name]:.3f} of the {COST_WORDS[name]}" for name in budget.fractions)

    def state_dict(self) -> dict[str, Any]:
        """What ``load_state_dict`` takes back."""
        return {"kept": torch.from_numpy(self.kept.copy())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Stand where ``state_dict`` was taken."""
        self._stand_at(state["kept"].numpy().copy())

    def _stand_at(self, kept: ChannelMask) -> None:
        self.kept = kept
        self.graph = restricted_graph(self.dense, kept)
