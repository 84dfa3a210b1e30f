"""Energy by a counter that moves in steps, on a clock of the test's own: no GPU is needed for the arithmetic."""

import math
from typing import Any

import pytest

from prune2deploy.bench.aside.energy import (
    energies_of,
    energy_found,
    measure_energy,
    measure_idle_watts,
    notes_on_energy,
)
from prune2deploy.bench.machine.nvml import open_gpu
from prune2deploy.bench.measure import run_bench
from prune2deploy.bench.samples import BuildSamples
from prune2deploy.bench.subjects import BenchOptions, BenchRequest
from prune2deploy.bench.timed.rounds import Runner
from prune2deploy.bench.timed.schedule import Slot


class Board:
    """A board that takes ``idle_watts``, and ``run_joules`` more for a run; its counter moves every ``step_seconds``.

    Time passes only by running, by waiting and by reading the counter.
    """

    def __init__(self, *, run_seconds=0.001, run_joules=0.2, idle_watts=50.0, step_seconds=0.1, read_seconds=0.0002):
        self.now = 0.0
        self.joules = 1e6
        self.shown = (0, self.joules)
        self.run_seconds, self.run_joules, self.idle_watts = run_seconds, run_joules, idle_watts
        self.step_seconds, self.read_seconds = step_seconds, read_seconds

    def clock(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        self.joules += self.idle_watts * seconds
        step = math.floor(self.now / self.step_seconds)
        if step != self.shown[0]:
            self.shown = (step, self.joules)

    def run(self):
        self.joules += self.run_joules
        self.sleep(self.run_seconds)

    def energy_joules(self):
        self.sleep(self.read_seconds)
        return self.shown[1]


class NoCounter(Board):
    def energy_joules(self):
        return None


class StuckCounter(Board):
    def energy_joules(self):
        super().energy_joules()
        return 7.0


@pytest.mark.parametrize("step_seconds", [0.02, 0.1])
@pytest.mark.parametrize("batch", [1, 8])
def test_the_energy_of_an_input_is_that_of_a_run_over_its_batch(step_seconds, batch):
    board = Board(step_seconds=step_seconds)
    expected = (board.run_joules + board.idle_watts * board.run_seconds) / batch
    measured = measure_energy(board.run, board, batch=batch, clock=board.clock)
    # One burst of 5 ms at either end of two seconds, and the time it takes to read the counter.
    assert measured == pytest.approx(expected, rel=0.01)


def test_a_run_longer_than_a_burst_is_measured_too():
    board = Board(run_seconds=0.3, run_joules=60.0)
    expected = board.run_joules + board.idle_watts * board.run_seconds
    assert measure_energy(board.run, board, batch=1, clock=board.clock) == pytest.approx(expected, rel=0.06)


def test_two_seconds_are_measured_and_no_time_is_wasted():
    board = Board()
    measure_energy(board.run, board, batch=1, seconds=2.0, clock=board.clock)
    assert 2.0 <= board.now < 3.0


def test_the_power_while_waiting_is_told_in_watts():
    board = Board(idle_watts=70.0)
    assert measure_idle_watts(board, clock=board.clock, sleep=board.sleep) == pytest.approx(70.0, rel=0.01)


@pytest.mark.parametrize("kind", [NoCounter, StuckCounter])
def test_a_device_that_counts_nothing_gives_no_energy(kind):
    board = kind()
    assert measure_energy(board.run, board, batch=1, clock=board.clock) is None
    assert measure_idle_watts(board, clock=board.clock, sleep=board.sleep) is None
    assert board.now < 5.0


class Engine:
    """As much of a built engine as measuring its energy uses."""

    def __init__(self, board):
        self.run = board.run
        self.bound = []

    def bind(self, inputs):
        self.bound.append(inputs)


def test_every_variant_is_measured_once_and_its_copy_is_not():
    board = Board()
    engines = [Engine(board) for _ in range(3)]
    slots = (Slot(variant="dense"), Slot(variant="pruned"), Slot(variant="dense", copy=1))
    runners = [
        Runner(slot=slot, engine=engine, precision="fp16", where="a.onnx", facts={}, buffers=({"input": None},))
        for slot, engine in zip(slots, engines, strict=True)
    ]
    energies = energies_of(runners, board, batch=4, clock=board.clock, sleep=board.sleep)
    assert [(one["variant"], one["precision"], one["batch"]) for one in energies] == [
        ("dense", "fp16", 4),
        ("pruned", "fp16", 4),
    ]
    assert [len(engine.bound) for engine in engines] == [1, 1, 0]
    builds = [build_with(energies)]
    assert energy_found(builds, "pruned", "fp16", 4) == pytest.approx(0.25 / 4, rel=0.01)
    assert energy_found(builds, "pruned", "fp16", 1) is None
    assert list(notes_on_energy(builds)) == [
        "energy: what the GPU takes while it waits between runs, 50 W, is in the figures"
    ]
    assert BuildSamples.from_document(builds[0].to_document(), where="samples") == builds[0]


def test_where_nothing_counts_energy_a_note_says_so():
    board = NoCounter()
    runner = Runner(slot=Slot(variant="dense"), engine=Engine(board), precision="fp32", where="a.onnx", facts={})
    runner.buffers = ({},)
    energies = energies_of([runner], board, batch=1, clock=board.clock, sleep=board.sleep)
    assert energies == []
    assert list(notes_on_energy([build_with(energies)])) == ["energy: no NVML energy counter on this device"]


def test_energy_asked_for_on_a_cpu_is_a_note_and_no_error(networks: Any) -> None:
    options = BenchOptions(builds=1, rounds=1, block_seconds=0.001, energy=True)
    request = BenchRequest(subjects=(networks.subject("a"),), engine="ort-cpu", options=options)
    result = run_bench(request)
    assert [row.energy_joules for row in result.rows] == [None]
    assert "energy: no NVML energy counter on this device" in result.notes


def build_with(energies):
    return BuildSamples(build=0, cpus=None, cells=(), engines=(), energies=tuple(energies))


@pytest.mark.gpu
def test_this_gpu_counts_the_energy_of_waiting():
    gpu = open_gpu()
    assert gpu is not None
    try:
        if gpu.energy_joules() is None:
            pytest.skip("this GPU has no energy counter, or the engines get a slice of it")
        watts = measure_idle_watts(gpu)
        assert watts is not None
        assert 1 < watts < 2000
    finally:
        gpu.close()
