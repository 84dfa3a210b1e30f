"""The latency table of a network: a surface for each of its units, measured where nothing is kept yet."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from prune2deploy.budget.surface import Surface
from prune2deploy.errors import StorageError
from prune2deploy.graph.unit import Unit
from prune2deploy.latency.environment import Environment, environment_of
from prune2deploy.latency.placement import NEGLIGIBLE_SHARE, UNSTEADY, Known, Placement, Widths, multiples_of
from prune2deploy.latency.points import Point, Timing
from prune2deploy.latency.probing import EngineProber, Prober
from prune2deploy.latency.setting import Setting
from prune2deploy.latency.store import LatencyStore
from prune2deploy.latency.words import words
from prune2deploy.progress import SILENT, Progress

POINTS_AT_ONCE = 96
"""So many points are measured before they are kept: what a run loses that is stopped."""


@dataclass(frozen=True, kw_only=True)
class MeasuredTable:
    """What an engine takes for each unit of a network.

    ``timings`` are the points behind each surface. Of all of them ``measured`` were timed now, in ``seconds``, and
    ``reused`` were kept from earlier. ``spread`` is the median over points of a timing's spread, as a share of it.
    """

    surfaces: Mapping[Unit, Surface]
    timings: Mapping[Unit, Mapping[Widths, Timing]]
    measured: int
    reused: int
    seconds: float
    spread: float


def measured_surfaces(
    widest: Mapping[Unit, tuple[int, ...]],
    setting: Setting,
    *,
    granule: int,
    prober: Prober | None = None,
    store: LatencyStore | None = None,
    weights: Mapping[Unit, int] | None = None,
    progress: Progress = SILENT,
) -> MeasuredTable:
    """Measure each unit up to its ``widest`` sizes, the points of all units together, round after round.

    ``granule`` is that of the plans to come. ``weights`` say how often each unit occurs, once if None. What ``store``
    (None: in the user's cache folder) has is not measured again; where it fails, everything is measured and nothing
    kept, with a note. ``prober`` None is the engine itself, started only if something is missing.

    Raises:
        InputError: there is no such engine, or no table at that precision.
        EngineError: the engine does not run here, or not a unit.
    """
    began = time.perf_counter()
    with ExitStack() as stack:
        source = _Source(
            setting=setting,
            environment=environment_of(setting),
            store=LatencyStore(progress=progress) if store is None else store,
            prober=prober,
            stack=stack,
            progress=progress,
        )
        known: dict[Unit, dict[Widths, Timing]] = {unit: {} for unit in widest}
        _take(known, source.timings([Point(unit, widths) for unit, widths in widest.items()], again={}))
        placements = _placements(widest, known, granule=granule, weights=weights or {})
        while True:
            wanted = _points(placements, known, Placement.wanted)
            doubted = _points(placements, known, Placement.doubted)
            if not (wanted or doubted):
                break
            again = {point: known[point.unit][point.widths] for point in doubted}
            _take(known, source.timings(wanted, again=again))
    _tell_unsteady(placements, known, progress)
    spreads = [timing.spread for timings in known.values() for timing in timings.values()]
    return MeasuredTable(
        surfaces={unit: placement.surface(known[unit]) for unit, placement in placements.items()},
        timings=known,
        measured=source.measured,
        reused=source.reused,
        seconds=time.perf_counter() - began,
        spread=statistics.median(spreads) if spreads else 0.0,
    )


def _points(
    placements: Mapping[Unit, Placement],
    known: Mapping[Unit, Mapping[Widths, Timing]],
    ask: Callable[[Placement, Known], tuple[Widths, ...]],
) -> list[Point]:
    """The points of all units that ``ask`` gives of their placements."""
    return [Point(unit, widths) for unit, placement in placements.items() for widths in ask(placement, known[unit])]


def _tell_unsteady(
    placements: Mapping[Unit, Placement], known: Mapping[Unit, Mapping[Widths, Timing]], progress: Progress
) -> None:
    """Say it where units that matter stayed unsteady, however often they were timed."""
    unsteady = [
        words(unit)
        for unit, placement in placements.items()
        if placement.share >= NEGLIGIBLE_SHARE and any(one.spread > UNSTEADY for one in known[unit].values())
    ]
    if unsteady:
        others = len(unsteady) - 1
        more = f" and {others} more unit{'s' * (others > 1)}" if others else ""
        progress.note(
            f"timings of {unsteady[0]}{more} were not steady, so something else may have run:"
            " `p2d latency-table --clear` drops what is kept, to be measured when the machine is quiet"
        )


def _take(known: Mapping[Unit, dict[Widths, Timing]], timings: Mapping[Point, Timing]) -> None:
    for point, timing in timings.items():
        known[point.unit][point.widths] = timing


def _placements(
    widest: Mapping[Unit, tuple[int, ...]],
    known: Mapping[Unit, Mapping[Widths, Timing]],
    *,
    granule: int,
    weights: Mapping[Unit, int],
) -> dict[Unit, Placement]:
    """How each unit is to be measured, by its part of the time of all at their widest."""
    latencies = {unit: weights.get(unit, 1) * known[unit][widths].latency_ns for unit, widths in widest.items()}
    total = sum(latencies.values())
    return {
        unit: Placement(
            widest=widths,
            granule=granule,
            multiples=multiples_of(unit),
            share=latencies[unit] / total if total else 1.0,
        )
        for unit, widths in widest.items()
    }


@dataclass(kw_only=True)
class _Source:
    """Where timings come from: what is kept, else the engine, which is started when it is first needed."""

    setting: Setting
    environment: Environment
    store: LatencyStore
    prober: Prober | None
    stack: ExitStack
    progress: Progress
    measured: int = 0
    reused: int = 0
    _round: int = field(default=0, init=False)
    _keeps: bool = field(default=True, init=False)

    def timings(self, points: Sequence[Point], *, again: Mapping[Point, Timing]) -> dict[Point, Timing]:
        """Of all ``points``, and of those timed before that are to be timed ``again``: both timings as one."""
        self._round += 1
        found = self._kept(points)
        self.reused += len(found)
        missing = [*(point for point in points if point not in found), *again]
        if not missing:
            return found
        self.measured += len(missing) - len(again)
        if self.prober is None:
            self.prober = self.stack.enter_context(EngineProber(self.setting))
        words = f"timing units on {self.environment.engine}, round {self._round}"
        with self.progress.task(words, total=len(missing)) as task:
            for first in range(0, len(missing), POINTS_AT_ONCE):
                some = missing[first : first + POINTS_AT_ONCE]
                timed = dict(zip(some, self.prober.time(some, tell=task.advance), strict=True))
                timed = {
                    point: again[point].with_another(timing) if point in again else timing
                    for point, timing in timed.items()
                }
                self._keep(timed)
                found |= timed
        return found

    def _kept(self, points: Sequence[Point]) -> dict[Point, Timing]:
        if self._keeps:
            try:
                return self.store.find(self.environment, self.setting.batch, points)
            except StorageError as error:
                self._give_up(error)
        return {}

    def _keep(self, timings: Mapping[Point, Timing]) -> None:
        if self._keeps:
            try:
                self.store.add(self.environment, self.setting.batch, timings)
            except StorageError as error:
                self._give_up(error)

    def _give_up(self, error: StorageError) -> None:
        self._keeps = False
        self.progress.note(f"{error}: what is measured serves this run alone")
