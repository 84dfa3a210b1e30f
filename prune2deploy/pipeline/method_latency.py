"""A latency as the target of a training: fitted before it begins, and measured when it has ended."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from prune2deploy.budget.ladder import Scores
from prune2deploy.budget.plan import PrunePlan
from prune2deploy.budget.target import Limit
from prune2deploy.latency.setting import Setting
from prune2deploy.pipeline.backends import Channels
from prune2deploy.pipeline.cutting import CutChoices
from prune2deploy.pipeline.latency import TOLERANCE, FittedLatency, LatencyOfEngine
from prune2deploy.pipeline.latency_cut import engine_for, measured_after
from prune2deploy.pipeline.requests import LatencyTarget
from prune2deploy.pipeline.subject import Subject
from prune2deploy.policies.aim import Aim
from prune2deploy.progress import Progress

_METHOD, _RANKING = "none", "per-layer"


@dataclass(frozen=True, kw_only=True)
class MethodLatency:
    """A latency that a training is to come down to. ``limit`` is what its method is told."""

    engine: LatencyOfEngine
    fitted: FittedLatency
    choices: CutChoices
    scores: Scores

    @property
    def limit(self) -> Limit:
        """The corrected prices, and the middle of what counts as met: no method measures what it cuts."""
        return replace(self.fitted.limit, most=(1 - TOLERANCE / 2) * self.fitted.limit.most)

    @property
    def fraction(self) -> float:
        """The target as a share of the dense latency."""
        asked = self.fitted.target.fraction
        return self.fitted.target_ns / self.fitted.dense_ns if asked is None else asked

    def document_of(self, plan: PrunePlan) -> dict[str, Any]:
        """What the manifest keeps under ``latency`` of the network that ``plan`` leaves, which is measured for it."""
        graph = self.engine.channels.graph
        return measured_after(self.engine, self.fitted, graph, plan, self.choices, self.scores)[1]


@contextmanager
def fitted_latency(
    subject: Subject,
    free: Channels,
    target: LatencyTarget,
    setting: Setting,
    aim: Aim,
    progress: Progress,
) -> Iterator[MethodLatency]:
    """Measure the engine, and fit its prices to whole networks near the target: uniformly narrower ones.

    No weights are trained yet that could say more, so all channels of a layer count alike; what the manifest keeps of
    importance is the share of channels. ``subject`` holds the dense model, ``free`` the channels that may leave, and
    ``aim`` all other targets.

    Raises:
        TargetError: no plan reaches the targets.
        EngineError, InputError: the engine cannot be measured.
    """
    alike = np.ones(free.graph.channel_count)
    choices = CutChoices(
        budget=aim.budget,
        method=_METHOD,
        ranking=_RANKING,
        granule=aim.granule,
        default_granule=aim.default_granule,
        seed=aim.seed,
        solver_seconds=aim.solver_seconds,
    )
    with engine_for(subject, free, choices, setting, progress) as engine:
        yield MethodLatency(engine=engine, fitted=engine.fit(target, choices, alike), choices=choices, scores=alike)
