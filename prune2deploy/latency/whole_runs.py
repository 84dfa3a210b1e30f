"""Timing one point on an engine that does not tell what its layers take: by how much longer a network with more copies
of it runs.

Networks of a few and of many copies side by side are run in turn; the difference, shared among the copies that the one
has more, is free of what every run costs. Launches between layers are in it, as they are in a network.
"""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import onnx

from prune2deploy.engines.capabilities import DeviceClock
from prune2deploy.engines.engine import BuiltEngine
from prune2deploy.latency.networks import write_network
from prune2deploy.latency.points import Point, Timing
from prune2deploy.latency.setting import Setting

_FEW, _MANY = 2, 10
_TURNS = 7
_SECONDS_OF_A_TURN = 0.05
_LEAST_RUNS, _MOST_RUNS = 3, 50

Build = Callable[[Path], BuiltEngine]


def time_alone(point: Point, setting: Setting, build: Build, folder: Path) -> Timing:
    """Time one point. ``build`` makes an engine of an ONNX file; ``folder`` is where those may lie.

    Raises:
        EngineError: what ``build`` and the engine raise.
    """
    engines = []
    try:
        for copies in (_FEW, _MANY):
            network = write_network([point], [copies], batch=setting.batch, precision=setting.precision, bare=True)
            path = folder / f"copies_{copies}.onnx"
            onnx.save(network.model, path)
            engines.append(build(path))
            engines[-1].bind(network.arrays)
        few, many = engines
        runs = _runs_for(many)
        each = []
        for _ in range(_TURNS):
            shorter, longer = _latency_ns(few, runs), _latency_ns(many, runs)
            each.append((longer - shorter) / (_MANY - _FEW))
    finally:
        for engine in engines:
            engine.close()
    middle = median(each)
    # 1.4826 makes a median of deviations what a standard deviation would be, 1.2533 is that of a median over a mean's.
    deviation = 1.4826 * median(abs(one - middle) for one in each)
    return Timing(
        latency_ns=max(middle, 0.0), spread_ns=1.2533 * deviation / np.sqrt(_TURNS), runs=runs * _TURNS * _MANY
    )


def _latency_ns(engine: BuiltEngine, runs: int) -> float:
    """The median of so many runs, by the device's own clock where it has one."""
    if isinstance(engine, DeviceClock):
        return float(median(engine.time_on_device(runs)))
    samples = []
    for _ in range(runs):
        begun = time.perf_counter_ns()
        engine.run()
        samples.append(time.perf_counter_ns() - begun)
    return float(median(samples))


def _runs_for(engine: BuiltEngine) -> int:
    engine.run()
    begun = time.perf_counter()
    engine.run()
    seconds = max(time.perf_counter() - begun, 1e-6)
    return int(np.clip(_SECONDS_OF_A_TURN / seconds, _LEAST_RUNS, _MOST_RUNS))
