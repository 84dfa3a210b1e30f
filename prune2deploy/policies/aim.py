"""What every method is told: the budget, the alignment, how channels compete."""

from collections.abc import Callable
from dataclasses import dataclass

from prune2deploy.budget.allocate import OPTIMAL, Allocation, allocate
from prune2deploy.budget.ladder import Scores
from prune2deploy.budget.optimal import SOLVER_SECONDS
from prune2deploy.budget.target import Budget
from prune2deploy.graph.channels import ChannelGraph, ChannelMask
from prune2deploy.processes import on_main

Settle = Callable[[Scores, ChannelMask | None], Allocation | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """``granule`` None takes ``default_granule`` and gives way where the target cannot be reached with it.

    ``budget`` is of the dense model; methods that size themselves take it as a stop, or None. ``solver_seconds`` bounds
    each solution of the ranking ``optimal``. ``settle``, where a cost of the budget can be measured, takes scores and
    the channels that are left (None: all) to the allocation that was measured to hold it, or to None where none was.
    """

    budget: Budget | None = None
    granule: int | None = None
    default_granule: int = 16
    ranking: str = "global"
    seed: int = 0
    solver_seconds: float = SOLVER_SECONDS
    settle: Settle | None = None

    @property
    def widest_granule(self) -> int:
        """The granule to begin with."""
        return self.granule or self.default_granule

    def allocation(
        self, graph: ChannelGraph, scores: Scores, *, budget: Budget, available: ChannelMask | None = None
    ) -> Allocation:
        """The largest plan within ``budget`` that removes what scores least, as the user wants it aligned and ranked.

        ``graph`` is that of the dense model; ``scores`` and ``available`` have shape (channel_count,).

        Raises:
            TargetError: no plan reaches it, or nothing would be pruned.
        """

        def allocated() -> Allocation:
            return allocate(
                graph,
                scores,
                budget,
                granule=self.widest_granule,
                ranking=self.ranking,
                relax_alignment=self.granule is None,
                available=available,
                solver_seconds=self.solver_seconds,
            )

        # A solver that ends by the clock may end differently in each of several processes.
        return on_main(allocated) if self.ranking == OPTIMAL else allocated()

    def settled(self, allocation: Allocation, scores: Scores, *, available: ChannelMask | None = None) -> Allocation:
        """What is to be cut for good in place of ``allocation``, by the same scores: what was measured to hold."""
        measured = None if self.settle is None else self.settle(scores, available)
        return allocation if measured is None else measured
