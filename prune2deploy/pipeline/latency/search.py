"""Cutting a network to a latency: predict by the table, build, measure the whole network, correct, and cut again.

The table prices units one by one; what lies between them (the call, waiting, layouts that change) it cannot see. So a
line is fitted through what whole networks were predicted and measured to take, and the target is looked for on it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from torch import nn

from prune2deploy.budget.allocate import Allocation, allocate
from prune2deploy.budget.from_mask import plan_from_mask
from prune2deploy.budget.ladder import Scores
from prune2deploy.budget.priced import Priced, priced_latency
from prune2deploy.budget.target import Budget, Limit
from prune2deploy.errors import TargetError
from prune2deploy.graph.channels import ChannelMask
from prune2deploy.graph.unit import UnitModel
from prune2deploy.graph.units import unit_model
from prune2deploy.latency.setting import Setting
from prune2deploy.latency.table import MeasuredTable, measured_surfaces
from prune2deploy.pipeline.backends import Channels
from prune2deploy.pipeline.cutting import CutChoices
from prune2deploy.pipeline.latency.whole_models import WholeModels, WholeTiming
from prune2deploy.pipeline.requests import LatencyTarget
from prune2deploy.processes import on_main
from prune2deploy.progress import SILENT, Progress

TOLERANCE = 0.03
"""A measured latency meets its target where it is at most this share below it, and not above."""
_AIM, _CLOSER = 1 - TOLERANCE / 2, 0.998
"""Where the solver aims, as shares of the target: at the middle of what meets it, and closer where nothing else is."""
_ROUNDS = 5
_PLAUSIBLE = (0.3, 3.0)
"""What a fitted slope may be, in measured over predicted; beyond it, two measurements lay too close to each other."""


@dataclass(frozen=True, kw_only=True)
class Round:
    """One network that was predicted, built and measured. Latencies in ns of one run of the batch."""

    predicted_ns: float
    timing: WholeTiming
    allocation: Allocation


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """What a whole network takes, from what the table says: ``offset_ns`` and ``scale`` times that."""

    offset_ns: float
    scale: float


@dataclass(frozen=True, kw_only=True)
class FittedLatency:
    """A target in one setting, the prices that predict it, and the network that meets it best.

    ``limit`` holds the corrected prices against the target. ``rounds`` are all networks measured for it; ``best`` is
    the one that was taken, and ``met`` whether it was measured not to exceed the target.
    """

    setting: Setting
    target: LatencyTarget
    target_ns: float
    dense_ns: float
    limit: Limit
    correction: Correction
    rounds: tuple[Round, ...]
    best: Round
    met: bool


@dataclass(kw_only=True)
class LatencyOfEngine:
    """What a network takes on an engine: the table of its units, and all that was measured of whole networks so far.

    ``channels`` are those that may leave; prices are over them. Several targets share one. Of several processes the
    main one measures and solves.
    """

    model: nn.Module
    channels: Channels
    setting: Setting
    units: UnitModel
    table: MeasuredTable
    price: Priced
    whole: WholeModels
    measured: list[Round] = field(default_factory=list)

    def fit(
        self, target: LatencyTarget, choices: CutChoices, scores: Scores, *, available: ChannelMask | None = None
    ) -> FittedLatency:
        """Cut, measure and correct until the latency lies within ``TOLERANCE`` below the target; five times at most.

        ``choices.budget`` holds the other targets, or None; ``scores`` has shape (channel_count,), as has
        ``available``: the channels that are left where some have gone before.

        Raises:
            TargetError: no plan reaches the target, or all that were measured exceed it by more than ``TOLERANCE``.
        """
        self._require_less_than_dense(target)
        rounds: list[Round] = []
        aim = _AIM
        while len(rounds) < _ROUNDS:
            limit = self._limit(self._correction(target), aim * self._wanted_ns(target))
            allocation = on_main(partial(self._allocation, choices, scores, limit, available))
            done = next((one for one in self.measured if (one.allocation.kept == allocation.kept).all()), None)
            if any(done is one for one in rounds):  # no other network lies there
                if aim == _CLOSER:
                    break
                aim = _CLOSER
                continue
            if done is None:
                done = self._measure(allocation)
                self.measured.append(done)
            rounds.append(done)
            if 1 - TOLERANCE <= done.timing.latency_ns / self._wanted_ns(target) <= 1:
                break
        return self._fitted(target, rounds)

    def _require_less_than_dense(self, target: LatencyTarget) -> None:
        """A time says nothing of what must go until it is known what the dense network takes: the table may be off.

        Raises:
            TargetError: the dense network is as fast already.
        """
        if target.nanoseconds is None:
            return
        if not self.measured:
            whole = self.channels.graph.everything()
            dense = Allocation(kept=whole, flops_fraction=1.0, parameters_fraction=1.0, granule=1)
            self.measured.append(self._measure(dense))
        if target.nanoseconds >= self.dense_ns:
            raise TargetError(
                f"nothing would be pruned: the dense model takes {self.dense_ns / 1e6:.3f} ms",
                where=f"--latency {target.nanoseconds / 1e6:.3f}ms",
                hint="ask for less",
            )

    def _fitted(self, target: LatencyTarget, rounds: Sequence[Round]) -> FittedLatency:
        wanted = self._wanted_ns(target)
        within = [one for one in rounds if one.timing.latency_ns <= wanted]
        best = max(within, key=_latency) if within else min(rounds, key=_latency)
        if _latency(best) > (1 + TOLERANCE) * wanted:
            raise TargetError(
                f"after {len(rounds)} networks the fastest takes {_latency(best) / 1e6:.3f} ms where "
                f"{wanted / 1e6:.3f} ms are wanted ({best.timing.ratio:.3f} of the dense latency)",
                where=f"--latency on {self.setting}",
                hint="ask for no less, pass a smaller --align, or measure on a machine with nothing else to do",
            )
        correction = self._correction(target)
        return FittedLatency(
            setting=self.setting,
            target=target,
            target_ns=wanted,
            dense_ns=self.dense_ns,
            limit=self._limit(correction, wanted),
            correction=correction,
            rounds=tuple(rounds),
            best=best,
            met=bool(within),
        )

    @property
    def dense_ns(self) -> float:
        """The median of what the dense network was measured to take, or predicted before anything was."""
        return float(np.median([one.timing.dense_ns for one in self.measured])) if self.measured else self.price.dense

    def _wanted_ns(self, target: LatencyTarget) -> float:
        if target.nanoseconds is not None:
            return target.nanoseconds
        assert target.fraction is not None
        return target.fraction * self.dense_ns

    def _limit(self, correction: Correction, most_ns: float) -> Limit:
        price = self.price.corrected(offset=correction.offset_ns, scale=correction.scale)
        return Limit(prices=(price,), most=most_ns)

    def _allocation(
        self, choices: CutChoices, scores: Scores, limit: Limit, available: ChannelMask | None
    ) -> Allocation:
        given = choices.budget
        budget = Budget(latency=limit) if given is None else replace(given, latency=limit)
        return allocate(
            self.channels.graph,
            scores,
            budget,
            granule=choices.granule or choices.default_granule,
            ranking=choices.ranking,
            relax_alignment=choices.granule is None,
            available=available,
            solver_seconds=choices.solver_seconds,
        )

    def pruned(self, kept: ChannelMask) -> nn.Module:
        """The network that keeps the channels of ``kept``, shape (channel_count,)."""
        return self.channels.cut(self.model, plan_from_mask(self.channels.graph, kept))

    def measure(self, kept: ChannelMask) -> WholeTiming:
        """Build the network that keeps the channels of ``kept``, shape (channel_count,), and time it."""
        return on_main(lambda: self.whole.time(self.pruned(kept)))

    def _measure(self, allocation: Allocation) -> Round:
        timing = self.measure(allocation.kept)
        # Each run's own dense network is the measure, so that a machine that has slowed down since changes nothing.
        return Round(
            predicted_ns=self.price.total(allocation.kept),
            timing=replace(timing, latency_ns=timing.ratio * self._dense_with(timing)),
            allocation=allocation,
        )

    def _dense_with(self, timing: WholeTiming) -> float:
        return float(np.median([*(one.timing.dense_ns for one in self.measured), timing.dense_ns]))

    def _correction(self, target: LatencyTarget) -> Correction:
        """The line through the two measured networks nearest to the target, the dense one among them.

        One by which the dense network would meet the target already is none: it was measured to take longer.
        """
        if not self.measured:
            return Correction(offset_ns=0.0, scale=1.0)
        dense = self.dense_ns
        wanted = self._wanted_ns(target)
        points = [(self.price.dense, dense), *((one.predicted_ns, one.timing.ratio * dense) for one in self.measured)]
        points.sort(key=lambda point: abs(point[1] - wanted))
        predicted, measured = points[0]
        for other_predicted, other_measured in points[1:]:
            if abs(other_predicted - predicted) > 0.02 * self.price.dense:
                slope = (other_measured - measured) / (other_predicted - predicted)
                offset = measured - slope * predicted
                if _PLAUSIBLE[0] <= slope <= _PLAUSIBLE[1] and offset + slope * self.price.dense > wanted:
                    return Correction(offset_ns=offset, scale=slope)
        scale = measured / predicted
        return Correction(offset_ns=0.0, scale=scale if scale * self.price.dense > wanted else dense / self.price.dense)


def latency_of_engine(
    model: nn.Module,
    channels: Channels,
    input_shape: Sequence[int],
    setting: Setting,
    *,
    granule: int,
    folder: Path,
    progress: Progress = SILENT,
) -> LatencyOfEngine:
    """Take ``model`` apart into units, and measure those on the engine that no earlier run has measured.

    ``channels`` are those that may leave, ``input_shape`` is (C, H, W). ``folder`` holds the ONNX files of whole
    networks; the caller removes it, at the end.

    Raises:
        InputError: the engine has no latencies at that precision.
        EngineError: it does not run here, or not a unit.
    """
    units = unit_model(channels.traced)
    table = on_main(
        lambda: measured_surfaces(
            units.widest(),
            setting,
            granule=granule,
            weights=Counter(term.unit for term in units.terms),
            progress=progress,
        )
    )
    return LatencyOfEngine(
        model=model,
        channels=channels,
        setting=setting,
        units=units,
        table=table,
        price=priced_latency(channels.graph.cost, units, table.surfaces),
        whole=WholeModels(model, tuple(input_shape), setting, folder, progress=progress),
    )


def _latency(one: Round) -> float:
    return one.timing.latency_ns
