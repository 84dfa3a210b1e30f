"""Whether the harness tells what an independent, minimal loop around the same session tells, and what it costs."""

import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from scipy import stats

from prune2deploy.bench.machine.affinity import pick_cpus, pin
from prune2deploy.bench.timed.timing import collection_paused, time_block
from prune2deploy.engines.engine import BuildOptions
from prune2deploy.engines.registry import engine_named

_PAIRS = 40


def agreement(path: Path, *, runs: int) -> dict[str, Any]:
    """Medians of our blocks and of a plain loop around the same session, by turns; their ratio with its interval."""
    built, session, binding = _session(path)
    ours, plain = [], []
    with collection_paused():
        for pair in range(_PAIRS):
            for side in (ours, plain) if pair % 2 else (plain, ours):
                if side is ours:
                    side.append(median(time_block(built.run, runs)))
                else:
                    side.append(median(_plain_loop(session, binding, runs)))
    built.close()
    return {"plain_ms": median(plain) / 1e6, "ours_ms": median(ours) / 1e6, "ratio": _ratio(ours, plain)}


def overhead(path: Path, *, runs: int) -> dict[str, Any]:
    """What timing each run adds to a whole block, against a loop that only runs; by turns, from the outside."""
    built, session, binding = _session(path)
    ours, bare = [], []
    with collection_paused():
        for pair in range(_PAIRS):
            for side in (ours, bare) if pair % 2 else (bare, ours):
                begun = time.perf_counter_ns()
                if side is ours:
                    time_block(built.run, runs)
                else:
                    for _ in range(runs):
                        session.run_with_iobinding(binding)
                side.append((time.perf_counter_ns() - begun) / runs)
        begun = time.perf_counter_ns()
        time_block(_nothing, 100_000)
        of_nothing_ns = (time.perf_counter_ns() - begun) / 100_000
    built.close()
    return {"bare_ms": median(bare) / 1e6, "ratio": _ratio(ours, bare), "of_nothing_ns": of_nothing_ns}


def _session(path: Path) -> tuple[Any, Any, Any]:
    pin(pick_cpus(1))
    built = engine_named("ort-cpu").build(path, BuildOptions())
    tensor = built.inputs[0]
    shape = (1, *(size or 1 for size in tensor.shape[1:]))
    built.bind({tensor.name: np.random.default_rng(0).standard_normal(shape).astype(np.float32)})
    time_block(built.run, 50)
    # The very session and arrays that the engine runs, for otherwise two sessions would be compared.
    return built, built._session, built._binding


def _plain_loop(session: Any, binding: Any, runs: int) -> list[float]:
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        session.run_with_iobinding(binding)
        times.append((time.perf_counter() - start) * 1e9)
    return times


def _ratio(first: list[float], second: list[float]) -> dict[str, float]:
    logs = np.log(first) - np.log(second)
    reach = float(stats.t.ppf(0.975, len(logs) - 1) * stats.sem(logs))
    centre = float(np.mean(logs))
    return {
        "estimate": float(np.exp(centre)),
        "low": float(np.exp(centre - reach)),
        "high": float(np.exp(centre + reach)),
    }


def _nothing() -> None:
    pass
