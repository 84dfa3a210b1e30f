"""A latency as the target of a training: fitted before it begins, and measured when it has ended."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from prune2deploy.budget.allocate import Allocation
from prune2deploy.budget.from_mask import mask_from_plan
from prune2deploy.budget.ladder import Scores
from prune2deploy.budget.plan import PrunePlan
from prune2deploy.budget.target import Budget
from prune2deploy.errors import TargetError
from prune2deploy.graph.channels import ChannelMask
from prune2deploy.latency.setting import Setting
from prune2deploy.pipeline.backends import Channels
from prune2deploy.pipeline.cutting import CutChoices
from prune2deploy.pipeline.latency.cut import engine_for, measured_after
from prune2deploy.pipeline.latency.record import latency_record
from prune2deploy.pipeline.latency.search import TOLERANCE, FittedLatency, LatencyOfEngine
from prune2deploy.pipeline.requests import LatencyTarget
from prune2deploy.pipeline.subject import Subject
from prune2deploy.policies.aim import Aim
from prune2deploy.progress import Progress


@dataclass(kw_only=True)
class MethodLatency:
    """A latency that a training is to come down to. ``budget`` is what its method is told, ``fitted`` what it is of.

    ``settle`` is for methods that cut for good: what they would cut is measured and corrected, as one cut is, and
    ``is_settled`` from then on.
    """

    engine: LatencyOfEngine
    fitted: FittedLatency
    choices: CutChoices
    scores: Scores
    is_settled: bool = False

    def settle(self, scores: Scores, available: ChannelMask | None, *, ranking: str) -> Allocation | None:
        """The allocation by ``scores`` that was measured to hold the latency; None where none was near it.

        ``scores`` and ``available``, the channels that are left (None: all), have shape (channel_count,).
        """
        choices = replace(self.choices, ranking=ranking)
        alone = replace(self.engine, measured=[])  # networks of other profiles would lead the correction astray
        try:
            fitted = alone.fit(self.fitted.target, choices, scores, available=available)
        except TargetError:
            return None
        self.fitted, self.choices, self.scores, self.is_settled = fitted, choices, scores, True
        return fitted.best.allocation

    @property
    def budget(self) -> Budget:
        """All targets, the latency by corrected prices: the middle of what counts as met, since no method measures."""
        limit = replace(self.fitted.limit, most=(1 - TOLERANCE / 2) * self.fitted.limit.most)
        others = self.choices.budget
        return Budget(latency=limit) if others is None else replace(others, latency=limit)

    @property
    def fraction(self) -> float:
        """The target as a share of the dense latency."""
        asked = self.fitted.target.fraction
        return self.fitted.target_ns / self.fitted.dense_ns if asked is None else asked

    def enter(self, record: dict[str, Any], plan: PrunePlan) -> tuple[str, ...]:
        """Measure the network that ``plan`` leaves, enter that in what the manifest keeps, and say what is to be said.

        Raises:
            EngineError: the engine does not run the network.
        """
        graph, fitted = self.engine.channels.graph, self.fitted
        if (mask_from_plan(graph, plan) == fitted.best.allocation.kept).all():
            document = latency_record(self.engine, fitted, self.choices, self.scores) | {"dense_ns": fitted.dense_ns}
        else:
            _, document = measured_after(self.engine, fitted, graph, plan, self.choices, self.scores)
        record["targets"]["latency"] = self.fraction
        record["achieved"]["latency"] = document["ratio"]
        record["latency"] = document
        used = document["pruned_ns"] / document["target"]["ns"]
        if not document["met"]:
            return (f"the measured latency of pruned is {used - 1:.1%} above the target",)
        if used < 1 - 2 * TOLERANCE:
            return (
                f"only {used:.1%} of the latency that is allowed is used: the network is faster than its layers were "
                "priced",
            )
        return ()


@contextmanager
def fitted_latency(
    subject: Subject,
    free: Channels,
    target: LatencyTarget,
    setting: Setting,
    choices: CutChoices,
    *,
    scores: Scores,
    progress: Progress,
) -> Iterator[MethodLatency]:
    """Measure the engine, and fit its prices to whole networks near the target.

    ``subject`` holds the dense model, ``free`` the channels that may leave, ``choices`` all other targets; ``scores``,
    shape (channel_count,), choose those networks.

    Raises:
        TargetError: no plan reaches the targets.
        EngineError, InputError: the engine cannot be measured.
    """
    with engine_for(subject, free, choices, setting, progress) as engine:
        yield MethodLatency(engine=engine, fitted=engine.fit(target, choices, scores), choices=choices, scores=scores)


def uniform_choices(aim: Aim) -> CutChoices:
    """Choices for uniformly narrower networks within the targets of ``aim``: nothing is trained yet to say more."""
    return CutChoices(
        budget=aim.budget,
        method="none",
        ranking="per-layer",
        granule=aim.granule,
        default_granule=aim.default_granule,
        seed=aim.seed,
        solver_seconds=aim.solver_seconds,
    )
