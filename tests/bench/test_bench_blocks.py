"""What a slot is timed at in each scenario, by engines that count what is asked of them."""

from collections.abc import Callable
from typing import Any

import pytest

from prune2deploy.bench.samples import COPY, DEVICE, MINIMUM_ROUNDS, QUEUE, WALL
from prune2deploy.bench.timed.blocks import time_kinds
from prune2deploy.engines.capabilities import DeviceClock, InputCopies, Queue
from prune2deploy.engines.engine import BuildOptions
from prune2deploy.engines.registry import engine_named


class Engine:
    """Runs nothing, and keeps what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def run(self) -> None:
        self.asked.append("run")


class QueueEngine(Engine):
    """As a CPU engine that builds a queue of its own."""

    def queue_depth(self) -> int:
        return 3

    def run_queued(self, runs: int) -> None:
        self.asked.append(f"queue {runs}")


class GpuEngine(QueueEngine):
    """As an engine on a GPU."""

    def time_on_device(self, runs: int) -> list[int]:
        self.asked.append(f"device {runs}")
        return list(range(1, runs + 1))

    def time_copies(self, copies: int) -> list[int]:
        self.asked.append(f"copies {copies}")
        return [7] * copies


def kinds(engine: Any, iterations: int, scenario: str) -> list[tuple[str, int, int]]:
    """Kind, samples and runs of each block."""
    blocks = time_kinds(engine, iterations=iterations, scenario=scenario)
    return [(block.kind, len(block.samples_ns), block.runs) for block in blocks]


def test_an_engine_that_can_do_nothing_else_is_timed_run_by_run() -> None:
    engine = Engine()
    assert kinds(engine, 5, "batches") == [(WALL, 5, 1)]
    assert engine.asked == ["run"] * 5


def test_on_a_gpu_the_device_copies_and_a_queue_are_timed_after_the_runs_and_shorter() -> None:
    engine = GpuEngine()
    assert kinds(engine, 200, "batches") == [(WALL, 200, 1), (DEVICE, 50, 1), (COPY, 16, 1), (QUEUE, 1, 50)]
    assert engine.asked[200:] == ["device 50", "copies 16", "queue 3", "queue 50"]


def test_a_slow_engine_fills_its_queue_all_the_same() -> None:
    assert kinds(GpuEngine(), 1, "batches") == [(WALL, 1, 1), (DEVICE, 1, 1), (COPY, 1, 1), (QUEUE, 1, 12)]


def test_a_queue_without_a_device_clock_is_left_to_offline() -> None:
    engine = QueueEngine()
    assert kinds(engine, 5, "batches") == [(WALL, 5, 1)]
    assert kinds(engine, 40, "offline") == [(QUEUE, 1, 40)]
    assert engine.asked[5:] == ["queue 3", "queue 40"]


@pytest.mark.parametrize("kind", [Engine, GpuEngine])
def test_single_stream_runs_as_often_as_its_percentile_needs_and_times_nothing_else(kind: Callable[[], Engine]) -> None:
    (block,) = kinds(kind(), 1, "single-stream")
    assert block[0] == WALL
    assert block[1] * MINIMUM_ROUNDS >= 64
    assert kinds(kind(), 300, "single-stream") == [(WALL, 300, 1)]


def test_offline_runs_back_to_back_where_there_is_no_queue() -> None:
    engine = Engine()
    assert kinds(engine, 6, "offline") == [(QUEUE, 1, 6)]
    assert engine.asked == ["run"] * 6


def test_a_cpu_engine_has_no_clock_and_no_copies_of_its_own(networks: Any) -> None:
    built = engine_named("ort-cpu").build(networks.subject("dense").onnx_path, BuildOptions())
    assert not isinstance(built, DeviceClock)
    assert not isinstance(built, InputCopies)
    assert not isinstance(built, Queue)
    built.close()
