"""Energy per inference by the GPU's own counter (NVML, Volta and newer). Measured aside, never in a timed round.

The counter is that of the whole board: memory, fans and what the GPU takes while it waits are in it, and so is every
other process on it. Power readings are averages over a time that differs from board to board, so where there is
no counter no energy is made up from them.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import mean, median
from typing import Any, Protocol

from prune2deploy.bench.samples import BuildSamples
from prune2deploy.bench.timed.rounds import Runner

ENERGY_BUILDS = 3
"""In how many builds energy is measured: an interval needs as many."""

_WARM_UP_SECONDS = 0.5
# The counter is read after bursts of runs: reading it takes time in which the GPU would wait.
_BURST_SECONDS = 0.005
# Boards update it every 20 to 100 ms. One that does not move for so long while the GPU works counts nothing.
_LONGEST_SILENCE_SECONDS = 1.0
_PAUSE_SECONDS = 0.002

Clock = Callable[[], float]


class EnergyMeter(Protocol):
    """Something that counts energy: ``signals.SignalReader`` for the GPU that the engine runs on."""

    def energy_joules(self) -> float | None:
        """Energy used since some fixed moment, in joules; None where it is not counted."""


def measure_energy(
    run: Callable[[], None], meter: EnergyMeter, *, batch: int, seconds: float = 2.0, clock: Clock = time.monotonic
) -> float | None:
    """Energy of one input in joules, over back-to-back runs of ``batch`` inputs for at least ``seconds``.

    The counter moves in steps, so the time measured begins and ends at one: what is left of the steps is one burst of
    runs (about 5 ms) at either end, 0.5% of two seconds. What the GPU takes while it waits (``measure_idle_watts``) is
    not taken off: whoever runs the model pays for it. None where the device counts no energy.
    """
    if meter.energy_joules() is None:
        return None
    warm_up_began, warm_up_runs = clock(), 0
    while clock() - warm_up_began < _WARM_UP_SECONDS:
        run()
        warm_up_runs += 1
    burst = max(1, int(warm_up_runs * _BURST_SECONDS / (clock() - warm_up_began)))
    runs = 0

    def work() -> None:
        nonlocal runs
        for _ in range(burst):
            run()
        runs += burst

    first = _at_next_step(meter, work, clock)
    if first is None:
        return None
    began, runs = clock(), 0
    while clock() - began < seconds:
        work()
    last = _at_next_step(meter, work, clock)
    return None if last is None or last <= first else (last - first) / (runs * batch)


def measure_idle_watts(
    meter: EnergyMeter,
    *,
    seconds: float = 1.0,
    clock: Clock = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> float | None:
    """What the GPU takes while it waits between runs, in watts; None where the device counts no energy.

    With engines loaded and clocks up, as between two requests: a GPU that nobody uses takes less.
    """

    def wait() -> None:
        sleep(_PAUSE_SECONDS)

    if meter.energy_joules() is None:
        return None
    first = _at_next_step(meter, wait, clock)
    if first is None:
        return None
    began = clock()
    while clock() - began < seconds:
        wait()
    last = _at_next_step(meter, wait, clock)
    return None if last is None or last <= first else (last - first) / (clock() - began)


def energies_of(
    runners: Sequence[Runner],
    meter: EnergyMeter,
    *,
    batch: int,
    clock: Clock = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> list[dict[str, Any]]:
    """The energy of each variant at one batch size, as JSON objects. Empty where the device counts none.

    Each has variant, precision, batch, joules (of one input) and idle_watts (None where that could not be told).
    """
    found = []
    for runner in runners:
        if runner.slot.copy == 0:
            idle_watts = measure_idle_watts(meter, clock=clock, sleep=sleep)
            runner.engine.bind(runner.buffers[0])
            joules = measure_energy(runner.engine.run, meter, batch=batch, clock=clock)
            if joules is not None:
                setting = {"variant": runner.slot.variant, "precision": runner.precision, "batch": batch}
                found.append({**setting, "joules": joules, "idle_watts": idle_watts})
    return found


def energy_found(builds: Sequence[BuildSamples], variant: str, precision: str, batch: int) -> float | None:
    """Energy of one input in joules: the median of the builds that measured it."""
    joules = energies_found(builds, variant, precision, batch)
    return median(joules) if joules else None


def energies_found(builds: Sequence[BuildSamples], variant: str, precision: str, batch: int) -> list[float]:
    """Energy of one input in joules, in each build that measured it."""
    setting = (variant, precision, batch)
    return [
        float(energy["joules"])
        for energy in _energies(builds)
        if (energy["variant"], energy["precision"], energy["batch"]) == setting
    ]


def notes_on_energy(builds: Sequence[BuildSamples]) -> Iterator[str]:
    """What to know of energies that were asked for: that there are none, or what is in them."""
    energies = list(_energies(builds))
    if not energies:
        yield "energy: no NVML energy counter on this device"
    if waiting := [energy["idle_watts"] for energy in energies if energy["idle_watts"] is not None]:
        yield f"energy: what the GPU takes while it waits between runs, {mean(waiting):.0f} W, is in the figures"


def _energies(builds: Sequence[BuildSamples]) -> Iterator[Mapping[str, Any]]:
    return (energy for build in builds for energy in build.energies)


def _at_next_step(meter: EnergyMeter, act: Callable[[], None], clock: Clock) -> float | None:
    """Act until the counter moves, and return where it then stands; None if it does not move."""
    before, began = meter.energy_joules(), clock()
    while clock() - began < _LONGEST_SILENCE_SECONDS:
        act()
        now = meter.energy_joules()
        if now is None or before is None:
            return None
        if now != before:
            return now
    return None
