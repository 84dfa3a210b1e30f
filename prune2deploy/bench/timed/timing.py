"""The inner loop: one block of timed runs, and warming up until blocks agree."""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

MAXIMUM_ITERATIONS = 1024
_STEADY_TOLERANCE = 0.02
_MINIMUM_WARMUP_BLOCKS = 2
_MAXIMUM_WARMUP_BLOCKS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmUp:
    """How warming up went: the medians of its blocks in ns, and whether the last two agreed within 2%."""

    medians_ns: tuple[float, ...]
    steady: bool

    @property
    def latency_ns(self) -> float:
        """The last block's median."""
        return self.medians_ns[-1]


def time_block(run: Callable[[], None], iterations: int) -> list[int]:
    """Time ``iterations`` calls of ``run`` one by one. Unit: ns of wall-clock time."""
    clock = time.perf_counter_ns
    samples = [0] * iterations
    for index in range(iterations):
        start = clock()
        run()
        samples[index] = clock() - start
    return samples


def iterations_for(latency_ns: float, block_seconds: float) -> int:
    """How many runs fill a block: at least 1, at most 1024, so that memory stays bounded."""
    return max(1, min(MAXIMUM_ITERATIONS, round(block_seconds * 1e9 / max(latency_ns, 1.0))))


def warm_up(run: Callable[[], None], *, block_seconds: float) -> WarmUp:
    """Run blocks until two in a row have medians within 2% of each other, at most eight blocks.

    The first run alone is thrown away: engines allocate and choose kernels in it.
    """
    run()
    latency_ns = float(time_block(run, 1)[0])
    medians: list[float] = []
    while len(medians) < _MAXIMUM_WARMUP_BLOCKS:
        latency_ns = float(median(time_block(run, iterations_for(latency_ns, block_seconds))))
        medians.append(latency_ns)
        if len(medians) >= _MINIMUM_WARMUP_BLOCKS and _agree(medians[-2], medians[-1]):
            return WarmUp(medians_ns=tuple(medians), steady=True)
    return WarmUp(medians_ns=tuple(medians), steady=False)


@contextmanager
def collection_paused() -> Iterator[None]:
    """Keep Python's garbage collector out of the timed runs."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _agree(first_ns: float, second_ns: float) -> bool:
    return abs(first_ns - second_ns) <= _STEADY_TOLERANCE * max(first_ns, second_ns, 1.0)
