"""Timing points on an engine in this process: which networks they are put into, how often each is run, what comes out.

Whatever disturbs a machine lasts longer than a run, so each network is profiled several times, with the others in
between, and a point has the middle of what those passes say.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
import onnx

from prune2deploy.engines.capabilities import LayerProfiler
from prune2deploy.engines.engine import BuildOptions, BuiltEngine, Engine
from prune2deploy.engines.preconditions import require_usable
from prune2deploy.engines.torch.engine import TorchEngine
from prune2deploy.errors import EngineError, InputError, P2DError
from prune2deploy.latency.networks import TestNetwork, bytes_of, flops_of, write_network
from prune2deploy.latency.points import Point, Timing
from prune2deploy.latency.setting import Setting
from prune2deploy.latency.whole_runs import time_alone

Tell = Callable[[float], None]
"""Told how much of the work is done, from 0 to 1."""

# In a real network each layer finds the caches full of what the others left there; few points leave too little.
_BYTES_OF_A_RUN = 32 << 20
_MOST_COPIES_IN_A_NETWORK = 64
_MOST_BYTES_IN_A_NETWORK = 192 << 20
# A profiler that counts microseconds has to see about so much of a point; longer ones are in a network once.
_LONG_ENOUGH_NS = 40_000.0
_MOST_COPIES = 8
# About what one core does; only to guess how many copies are needed.
_FLOPS_PER_NS, _BYTES_PER_NS = 60.0, 16.0

_PASSES, _MOST_PASSES = 3, 4
_SETTLED_BELOW = 0.03
_SECONDS_OF_A_PASS = 0.4
_LEAST_RUNS, _MOST_RUNS = 2, 12
# Two figures of the same thing lie so close, unless one was disturbed.
_ALIKE = 0.25


@dataclass
class _Trial:
    """One network on disk, and what was found of each of its points in each pass. Unit: ns."""

    network: TestNetwork
    path: Path
    numbers: tuple[int, ...]
    found: list[list[float | None]] = field(default_factory=list)
    runs: int = 0

    def settled(self) -> bool:
        """Whether another pass would say the same of most points."""
        if len(self.found) < _PASSES:
            return False
        return self.common_spread() < _SETTLED_BELOW

    def common_spread(self) -> float:
        """What is typical of its points: the standard error over the middle."""
        return median([spread / middle for middle, spread in filter(None, self.middles()) if middle] or [0.0])

    def middles(self) -> list[tuple[float, float] | None]:
        """The middle of the passes for each point, and the standard error of that; None where passes do not tell."""
        return [_middle(values) for values in zip(*self.found, strict=True)]


def time_points(engine: Engine, points: Sequence[Point], setting: Setting, *, tell: Tell) -> tuple[Timing, ...]:
    """Time ``points`` on ``engine``, which runs in this process: by its profiler where that tells, else by whole runs.

    Raises:
        InputError: the precision has no latencies, or an operator is not known.
        EngineError: the engine is not usable here, or cannot run a unit (named).
    """
    if setting.precision == "int8":
        raise InputError(
            "there are no latency tables at int8: scales decide what an engine fuses, and test networks have none",
            where="--precision int8",
            hint="prune with --flops and --align 32, or with --latency at another precision",
        )
    require_usable(engine, setting.precision)
    if isinstance(engine, TorchEngine):
        raise EngineError(
            "there are no latency tables of torch: it runs bundles, and test networks are ONNX files",
            where=f"--engine {engine.name}",
            hint="prune with --flops, or with --latency for another --engine",
        )
    with tempfile.TemporaryDirectory(prefix="p2d-latency-") as folder:
        timings = _profiled(engine, points, setting, Path(folder), tell)
        for number, timing in enumerate(timings):
            if timing is None:
                timings[number] = _alone(engine, points[number], setting, Path(folder))
                tell((number + 1) / len(points))
    return tuple(timing for timing in timings if timing is not None)


def _profiled(
    engine: Engine, points: Sequence[Point], setting: Setting, folder: Path, tell: Tell
) -> list[Timing | None]:
    """Timings by the engine's profiler; None for a point of which it does not tell."""
    trials = [
        _trial(numbers, points, setting, folder / f"{index}.onnx")
        for index, numbers in enumerate(_shared_out(points, setting.batch))
    ]
    done = 0
    for number in range(_MOST_PASSES):
        for trial in trials:
            if trial.settled():
                continue
            if not _profile(engine, trial, setting):
                return [None] * len(points)
            if number < _PASSES:
                done += 1
                tell(done / (_PASSES * len(trials)))
    return _timings(trials, len(points))


def _alone(engine: Engine, point: Point, setting: Setting, folder: Path) -> Timing:
    try:
        return time_alone(point, setting, lambda path: engine.build(path, _options(setting)), folder)
    except P2DError as error:
        raise _cannot_run(engine, point, error) from error


def _shared_out(points: Sequence[Point], batch: int) -> Iterator[tuple[int, ...]]:
    """The numbers of the points of each network: as many as fit, in their order."""
    taken: list[int] = []
    copies = size = 0
    for number, point in enumerate(points):
        more = copies_of(point, batch)
        bytes_more = more * bytes_of(point, batch)
        if taken and (copies + more > _MOST_COPIES_IN_A_NETWORK or size + bytes_more > _MOST_BYTES_IN_A_NETWORK):
            yield tuple(taken)
            taken, copies, size = [], 0, 0
        taken.append(number)
        copies, size = copies + more, size + bytes_more
    if taken:
        yield tuple(taken)


def copies_of(point: Point, batch: int) -> int:
    """How often a point is put into a network, so that a profiler that counts microseconds tells enough of it."""
    guessed_ns = flops_of(point, batch) / _FLOPS_PER_NS + bytes_of(point, batch) / _BYTES_PER_NS
    return int(np.clip(np.ceil(_LONG_ENOUGH_NS / max(guessed_ns, 1.0)), 1, _MOST_COPIES))


def _trial(numbers: tuple[int, ...], points: Sequence[Point], setting: Setting, path: Path) -> _Trial:
    mine = [points[number] for number in numbers]
    copies = [copies_of(point, setting.batch) for point in mine]
    own = sum(times * bytes_of(point, setting.batch) for point, times in zip(mine, copies, strict=True))
    network = write_network(
        mine, copies, batch=setting.batch, precision=setting.precision, ballast_bytes=_BYTES_OF_A_RUN - own
    )
    onnx.save(network.model, path)
    network.model.Clear()
    return _Trial(network=network, path=path, numbers=numbers)


def _profile(engine: Engine, trial: _Trial, setting: Setting) -> bool:
    """One pass over a network: build it, choose the number of runs, profile them. False where that is not to be had."""
    built = _built(engine, trial, setting)
    try:
        if not isinstance(built, LayerProfiler):
            return False
        built.bind(trial.network.arrays)
        runs = _runs_for(built)
        try:
            profile = built.profile_layers(runs)
        except EngineError:
            return False
    finally:
        built.close()
    trial.found.append(trial.network.shared_out(profile))
    trial.runs += runs
    return True


def _built(engine: Engine, trial: _Trial, setting: Setting) -> BuiltEngine:
    try:
        return engine.build(trial.path, _options(setting))
    except P2DError as error:
        culprit = _culprit(engine, trial, setting)
        if culprit is None:
            raise
        raise _cannot_run(engine, culprit, error) from error


def _culprit(engine: Engine, trial: _Trial, setting: Setting) -> Point | None:
    """The first point of a network that the engine does not take by itself."""
    path = trial.path.with_name("single.onnx")
    for point in trial.network.points:
        onnx.save(write_network([point], [1], batch=setting.batch, precision=setting.precision).model, path)
        try:
            engine.build(path, _options(setting)).close()
        except P2DError:
            return point
    return None


def _cannot_run(engine: Engine, point: Point, error: P2DError) -> EngineError:
    return EngineError(f"cannot run {_spelled(point)} ({error.what})", where=engine.name, hint="name another --engine")


def _options(setting: Setting) -> BuildOptions:
    return BuildOptions(precision=setting.precision, batches=(setting.batch,), threads=setting.threads)


def _runs_for(built: BuiltEngine) -> int:
    built.run()
    begun = time.perf_counter()
    built.run()
    seconds = time.perf_counter() - begun
    return int(np.clip(_SECONDS_OF_A_PASS / max(seconds, 1e-6), _LEAST_RUNS, _MOST_RUNS))


def _timings(trials: Sequence[_Trial], count: int) -> list[Timing | None]:
    timings: list[Timing | None] = [None] * count
    for trial in trials:
        # A handful of passes tells little of one point's noise: no point is taken to be quieter than most.
        common = trial.common_spread()
        for number, copies, told in zip(trial.numbers, trial.network.copies, trial.middles(), strict=True):
            if told is not None:
                middle, spread = told
                timings[number] = Timing(
                    latency_ns=middle, spread_ns=max(spread, common * middle), runs=trial.runs * copies
                )
    return timings


def _middle(values: Sequence[float | None]) -> tuple[float, float] | None:
    """The mean of the values near the median, and its standard error; None where one is missing."""
    told = [value for value in values if value is not None]
    if len(told) < len(values):
        return None
    middle = median(told)
    near = np.asarray([value for value in told if abs(value - middle) <= _ALIKE * middle])
    if len(near) < 2:
        return middle, (max(told) - min(told)) / 2
    return float(near.mean()), float(near.std(ddof=1) / np.sqrt(len(near)))


def _spelled(point: Point) -> str:
    names = " + ".join(operator.name for operator in point.unit.operators)
    read = ", ".join("x".join(map(str, point.unit.at(shape, point.widths))) for shape in point.unit.inputs)
    return f"{names} of {read}"
