"""How many builds a pilot asks for, and what an interval after a pilot covers."""

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from prune2deploy.bench.measure import _measure_builds
from prune2deploy.bench.samples import Block, BuildSamples, Cell
from prune2deploy.bench.statistics.intervals import builds_needed, ratio_interval
from prune2deploy.bench.statistics.stopping import builds_wanted
from prune2deploy.bench.subjects import BenchOptions, BenchRequest
from prune2deploy.errors import InputError
from prune2deploy.progress import SILENT

PILOT = 5


def build_of(number: int, dense_ns: float, pruned_ns: float, *, dropped: int = 0, rounds: int = 4) -> BuildSamples:
    """A build whose every run took the same time, with ``dropped`` of its rounds disturbed."""
    blocks = tuple(
        Block(variant=variant, copy=copy, round=turn, position=place, samples_ns=(round(latency),) * 3)
        for turn in range(rounds)
        for place, (variant, copy, latency) in enumerate(
            [("dense", 0, dense_ns), ("pruned", 0, pruned_ns), ("dense", 1, dense_ns)]
        )
    )
    cell = Cell(
        precision="fp32",
        batch=1,
        blocks=blocks,
        warmup=(),
        signals=({},) * (rounds + 1),
        dropped={str(turn): "waited for a CPU" for turn in range(dropped)},
    )
    return BuildSamples(build=number, cpus=None, cells=(cell,), engines=(), seconds=1.0, minimum_seconds=0.5)


def request_for(networks: Any, **options: Any) -> BenchRequest:
    subjects = (networks.subject("dense"), networks.subject("pruned"))
    return BenchRequest(subjects=subjects, engine="ort-cpu", options=BenchOptions(**options))


def noisy_builds(count: int, spread: float, seed: int = 0) -> list[BuildSamples]:
    noise = np.exp(np.random.default_rng(seed).normal(0, spread, count))
    return [build_of(number, 1e8, 5e7 * factor) for number, factor in enumerate(noise)]


def test_the_number_of_builds_follows_steins_formula() -> None:
    logs = np.array([0.70, 0.72, 0.66, 0.69, 0.73])
    quantile = stats.t.ppf(0.975, 4)
    expected = math.ceil((quantile * logs.std(ddof=1) / math.log(1.02)) ** 2)
    assert expected > PILOT
    assert builds_needed(list(np.exp(logs)), [1.0] * 5, half_width=0.02) == expected


def test_a_quiet_pilot_is_enough_by_itself() -> None:
    assert builds_needed([2.0, 2.001, 1.999, 2.0, 2.0], [1.0] * 5, half_width=0.02) == PILOT


def test_a_single_build_is_no_pilot() -> None:
    with pytest.raises(InputError, match="at least two builds"):
        builds_needed([2.0], [1.0], half_width=0.02)


def test_intervals_after_a_pilot_cover_the_truth_and_reach_the_width() -> None:
    """Two-stage sampling at several noise levels: 95% coverage, within what 2,000 trials can tell."""
    generator = np.random.default_rng(7)
    for spread in (0.01, 0.03, 0.06):
        covered, trials = 0, 2000
        for _ in range(trials):
            logs = generator.normal(math.log(1.5), spread, PILOT)
            needed = builds_needed(list(np.exp(logs)), [1.0] * PILOT, half_width=0.02)
            everything = np.concatenate([logs, generator.normal(math.log(1.5), spread, needed - PILOT)])
            interval = ratio_interval(list(np.exp(everything)), [1.0] * needed, pilot=PILOT)
            covered += bool(interval.contains(1.5))
        assert covered / trials > 0.95 - 3 * math.sqrt(0.95 * 0.05 / trials)


def test_the_pilots_spread_gives_the_interval_when_it_is_the_wider_one() -> None:
    pilot, later = [2.0, 2.1, 1.9, 2.05, 1.95], [2.0] * 40
    two_stage = ratio_interval(pilot + later, [1.0] * 45, pilot=PILOT)
    ordinary = ratio_interval(pilot + later, [1.0] * 45)
    assert two_stage.half_width is not None
    assert ordinary.half_width is not None
    assert two_stage.half_width > 1.5 * ordinary.half_width
    assert two_stage.half_width < 0.021


def test_noise_that_grows_after_the_pilot_widens_the_interval() -> None:
    pilot, later = [2.0, 2.001, 1.999, 2.0, 2.0], [1.6, 2.4, 1.7, 2.3, 1.5, 2.5]
    assert ratio_interval(pilot + later, [1.0] * 11, pilot=PILOT) == ratio_interval(pilot + later, [1.0] * 11)


def test_the_widest_speedup_decides_how_many_builds_there_are(networks: Any) -> None:
    builds = noisy_builds(PILOT, 0.1)
    ratios = [build.cells[0].samples_of("dense")[0] / build.cells[0].samples_of("pruned")[0] for build in builds]
    needed = builds_needed(ratios, [1.0] * PILOT, half_width=0.02)
    assert builds_wanted(request_for(networks, half_width=0.02), builds) == needed > PILOT
    assert builds_wanted(request_for(networks, half_width=0.02, max_builds=7), builds) == 7
    assert builds_wanted(request_for(networks), builds) == PILOT


def test_disturbed_builds_ask_for_nothing(networks: Any) -> None:
    builds = [build_of(number, 1e8, 5e7 * (1 + number / 10), dropped=3) for number in range(PILOT)]
    assert builds_wanted(request_for(networks, half_width=0.02), builds) == PILOT


class Machine:
    """Stands for the processes and the clock: every build takes ten seconds."""

    def __init__(self, spread: float) -> None:
        self.builds, self.now, self.budgets = noisy_builds(200, spread), 0.0, list[float | None]()

    def run(self, job: Any, **_: Any) -> BuildSamples:
        self.now += 10
        self.budgets.append(job.budget_seconds)
        return self.builds[job.build]

    def clock(self) -> float:
        return self.now


@pytest.mark.parametrize(("max_seconds", "expected"), [(None, 60), (100.0, 10), (30.0, 3)])
def test_time_bounds_the_builds_after_the_pilot(networks: Any, max_seconds: float | None, expected: int) -> None:
    machine = Machine(spread=0.2)
    request = request_for(networks, half_width=0.001, max_seconds=max_seconds)
    found = _measure_builds(request, None, SILENT, run=machine.run, clock=machine.clock)
    assert [build.build for build in found] == list(range(expected))
    # Builds after the pilot are whole ones: a build with fewer rounds has another spread.
    assert set(machine.budgets[PILOT:]) <= {None}


def test_a_fixed_number_of_builds_stays_fixed(networks: Any) -> None:
    machine = Machine(spread=0.2)
    found = _measure_builds(request_for(networks, builds=3), None, SILENT, run=machine.run, clock=machine.clock)
    assert len(found) == 3
