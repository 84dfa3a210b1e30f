"""What one engine is timed at in one round: whole runs, and what only some engines can tell beside them.

The scenarios "single-stream" and "offline" are MLPerf's (``bench.statistics.figures`` has the source): in the one each
query is sent when the query before has been answered; in the other all samples are there at the start.
"""

import time
from dataclasses import dataclass

from prune2deploy.bench.samples import COPY, DEVICE, MINIMUM_ROUNDS, QUEUE, WALL
from prune2deploy.bench.statistics.intervals import MINIMUM_SAMPLES_P90
from prune2deploy.bench.subjects import OFFLINE, SINGLE_STREAM
from prune2deploy.bench.timed.timing import time_block
from prune2deploy.engines.capabilities import DeviceClock, InputCopies, Queue
from prune2deploy.engines.engine import BuiltEngine

# Every build counts at least so many rounds: together their blocks hold the runs that a 90th percentile needs.
_LEAST_QUERIES = -(-MINIMUM_SAMPLES_P90 // MINIMUM_ROUNDS)
# What is timed beside whole runs decides no ratio, and shall not cost as much as they do.
_SHARE_ASIDE = 4
_MOST_COPIES = 16
# In a queue of that many times what it holds, filling and draining it weigh little.
_FILLINGS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedBlock:
    """Consecutive samples of one kind (``samples.WALL`` and so on); each took ``runs`` runs. Unit: ns."""

    kind: str
    samples_ns: tuple[int, ...]
    runs: int = 1


def time_kinds(engine: BuiltEngine, *, iterations: int, scenario: str) -> tuple[TimedBlock, ...]:
    """Time what is bound, ``iterations`` runs or, where that is too few for the scenario, more.

    Offline is one queue; an engine that holds one run at a time gets them back to back. Else each run is timed by
    itself. In the scenario "batches" an engine whose device has a clock is also timed by that, and over a queue, and
    one whose inputs must be copied at copying them. (A CPU's queue is a build of its own, for throughput: only offline
    asks for it.)

    Raises:
        EngineError: the engine failed, or cannot build what serves its queue.
        ParityError: what serves its queue computes something else.
    """
    if scenario == OFFLINE:
        return (_time_queue(engine, iterations),)
    if scenario == SINGLE_STREAM:
        iterations = max(iterations, _LEAST_QUERIES)
    blocks = [TimedBlock(kind=WALL, samples_ns=tuple(time_block(engine.run, iterations)))]
    if scenario == SINGLE_STREAM:
        return tuple(blocks)
    aside = max(1, iterations // _SHARE_ASIDE)
    if isinstance(engine, DeviceClock):
        blocks.append(TimedBlock(kind=DEVICE, samples_ns=tuple(engine.time_on_device(aside))))
    if isinstance(engine, InputCopies):
        copies = tuple(engine.time_copies(min(aside, _MOST_COPIES)))
        blocks.append(TimedBlock(kind=COPY, samples_ns=copies))
    if isinstance(engine, DeviceClock) and isinstance(engine, Queue):
        blocks.append(_time_queue(engine, aside))
    return tuple(blocks)


def settle_queue(engine: BuiltEngine, *, scenario: str) -> None:
    """Have what serves an engine's queue built and warm before the rounds, where they will ask for it.

    Raises:
        EngineError: the engine failed, or cannot build it.
        ParityError: what serves its queue computes something else.
    """
    if scenario == OFFLINE and isinstance(engine, Queue):
        engine.run_queued(engine.queue_depth())


def _time_queue(engine: BuiltEngine, runs: int) -> TimedBlock:
    """One sample: ``runs`` runs, or as many as its queue must be given, from the first's start to the last's end."""
    queue = engine if isinstance(engine, Queue) else None
    if queue is not None:
        depth = queue.queue_depth()
        runs = max(runs, _FILLINGS * depth)
        # Untimed: what serves the queue may be another build than what serves single runs, and not in the caches.
        queue.run_queued(depth)
    begun = time.perf_counter_ns()
    if queue is not None:
        queue.run_queued(runs)
    else:
        for _ in range(runs):
            engine.run()
    return TimedBlock(kind=QUEUE, samples_ns=(time.perf_counter_ns() - begun,), runs=runs)
