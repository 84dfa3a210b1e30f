"""Which signals drop a round, which do not, and that the reader's own are fit for it."""

import os
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prune2deploy.bench.jobs import BuildJob
from prune2deploy.bench.machine.disturbance import (
    RUN_DELAY_SHARE,
    disturbance,
    disturbed_rounds,
    highest_mhz,
    too_disturbed,
)
from prune2deploy.bench.machine.nvml import no_gpu_signals
from prune2deploy.bench.process import run_build
from prune2deploy.bench.subjects import BenchOptions, BenchRequest

CALM = {
    "at_seconds": 100.0,
    "load_1min": 0.1,
    "frequency_mhz": 3000.0,
    "run_delay_seconds": 5.0,
    "run_delay_longest_seconds": 4.0,
    "working_threads": 1,
    "steal_seconds": 7.0,
    "steal_longest_seconds": 6.0,
    "other_cpu_seconds": 1000.0,
    "sibling_cpu_seconds": 500.0,
    "switches_involuntary": 12,
    "page_faults_major": 3,
    "cpu_throttles": 0,
    "quota_throttles": 2,
    "quota_throttled_seconds": 0.5,
    "gpu_clock_mhz": 1980,
    "gpu_memory_clock_mhz": 2619,
    "gpu_temperature_c": 54,
    "gpu_power_watts": 310.0,
    "gpu_throttle_reasons": 0,
    "gpu_other_processes": 1,
}


def after(seconds=0.2, **grown):
    """The sample after a round of so many seconds in which the counters grew by ``grown``."""
    later = {**CALM, "at_seconds": CALM["at_seconds"] + seconds}
    for name, growth in grown.items():
        later[name] = later[name] + growth
    return later


def reason_for(*, cpus=1, seconds=0.2, **grown):
    return disturbance(CALM, after(seconds, **grown), cpus=cpus)


@pytest.mark.parametrize(
    ("working_threads", "cpus", "others_seconds", "dropped"),
    [
        (1, 1, 0.0, True),  # nobody of its own to wait for, and others may have run for less than a tick
        (3, 1, 0.0, False),  # the threads of one engine are still awake when the next engine's turn begins
        (3, 4, 0.0, True),  # each has a CPU
        (3, 1, 0.05, True),
    ],
)
def test_threads_that_share_a_cpu_wait_for_each_other_unless_others_ran(working_threads, cpus, others_seconds, dropped):
    reason = reason_for(
        cpus=cpus,
        run_delay_longest_seconds=0.01,
        working_threads=working_threads - CALM["working_threads"],
        other_cpu_seconds=others_seconds,
    )
    assert (reason is not None) == dropped


@pytest.mark.parametrize(
    ("grown", "reason"),
    [
        ({"run_delay_longest_seconds": 0.0084}, "waited 4.2% of the round for a CPU"),
        ({"steal_longest_seconds": 0.03}, "lost 15.0% of a CPU to the hypervisor"),
        (
            {"sibling_cpu_seconds": 0.1},
            "shared its cores: their other hardware threads were busy for 50% of the round",
        ),
        ({"cpu_throttles": 1}, "was slowed down, since a CPU was too hot"),
        (
            {"quota_throttles": 1, "quota_throttled_seconds": 0.037, "run_delay_longest_seconds": 0.03},
            "was stopped for 37 ms, its CPU quota being used up",
        ),
        ({"page_faults_major": 1}, "waited for the disk (1 page of memory had to be read)"),
        ({"page_faults_major": 9}, "waited for the disk (9 pages of memory had to be read)"),
        ({"frequency_mhz": -400.0}, "ran at 2600 MHz after 3000 MHz"),
        ({"gpu_throttle_reasons": 0x20}, "was slowed down on the GPU by its driver, for heat"),
        ({"gpu_throttle_reasons": 0x48}, "was slowed down on the GPU by the hardware and the hardware, for heat"),
        ({"gpu_throttle_reasons": 0x80}, "was slowed down on the GPU by the power brake"),
        ({"gpu_other_processes": 1}, "met another process on the GPU"),
    ],
)
def test_a_disturbed_round_is_dropped_with_its_reason(grown, reason):
    assert reason_for(**grown) == reason


@pytest.mark.parametrize(
    "grown",
    [
        {},
        {"run_delay_longest_seconds": 0.2 * RUN_DELAY_SHARE},
        {"run_delay_seconds": 1.0},
        {"steal_longest_seconds": 0.02},
        {"sibling_cpu_seconds": 0.02},
        {"load_1min": 9.0},
        {"quota_throttles": 2, "quota_throttled_seconds": 0.0009},
        {"other_cpu_seconds": 0.4},
        {"switches_involuntary": 400},
        {"frequency_mhz": -290.0},
        {"gpu_clock_mhz": -900, "gpu_power_watts": 300.0, "gpu_temperature_c": 30},
        {"gpu_throttle_reasons": 0x1 | 0x2 | 0x4 | 0x10 | 0x100},
        {"gpu_other_processes": -1},
    ],
)
def test_what_is_ordinary_drops_no_round(grown):
    assert reason_for(**grown) is None


def test_a_wait_of_under_a_millisecond_is_no_neighbour_however_short_the_round():
    assert reason_for(seconds=0.005, run_delay_longest_seconds=0.0009) is None
    assert reason_for(seconds=0.005, run_delay_longest_seconds=0.0011) is not None


def test_in_a_long_round_the_same_steal_is_a_small_share():
    assert reason_for(seconds=0.2, steal_longest_seconds=0.05) is not None
    assert reason_for(seconds=2.0, steal_longest_seconds=0.05) is None


def test_a_throttled_gpu_drops_the_round_that_begins_with_it_too():
    assert disturbance({**CALM, "gpu_throttle_reasons": 0x40}, after(), cpus=1) is not None


def test_a_frequency_that_fell_in_an_earlier_round_still_counts():
    slow = {**CALM, "frequency_mhz": 2500.0}
    later = {**after(), "frequency_mhz": 2500.0}
    assert disturbance(slow, later, cpus=1) is None
    assert disturbance(slow, later, cpus=1, highest_mhz=3000.0) == "ran at 2500 MHz after 3000 MHz"


def test_a_cell_drops_its_disturbed_rounds_and_no_others():
    third = {**after(0.4, run_delay_longest_seconds=0.1)}
    signals = [CALM, after(0.2), third, {**third, "at_seconds": third["at_seconds"] + 0.2}]
    assert list(disturbed_rounds(signals, cpus=1)) == [1]
    assert disturbed_rounds(signals[:1], cpus=1) == {}
    assert disturbed_rounds([], cpus=1) == {}


def test_where_the_system_tells_nothing_nothing_is_dropped():
    nothing = {**dict.fromkeys(CALM), **no_gpu_signals()}
    assert disturbance(nothing, nothing, cpus=1) is None
    assert disturbance({}, {}, cpus=1) is None
    assert disturbance(nothing, after(run_delay_longest_seconds=1.0), cpus=1) is None
    assert highest_mhz([nothing, {}]) is None


@given(
    st.fixed_dictionaries({name: st.none() | st.floats(0, 1e6) for name in CALM}),
    st.fixed_dictionaries({name: st.none() | st.floats(0, 1e6) for name in CALM}),
)
def test_any_pair_of_samples_gets_a_sentence_or_none(before, later):
    reason = disturbance(before, later, cpus=2)
    assert reason is None or (reason.split()[0] in {"waited", "lost", "shared", "was", "ran", "met"})


@pytest.mark.parametrize(("kept", "dropped", "verdict"), [(12, 0, False), (6, 6, False), (5, 6, True), (0, 0, False)])
def test_more_than_half_is_too_much(kept, dropped, verdict):
    assert too_disturbed(kept, dropped) is verdict


@pytest.mark.skipif(sys.platform != "linux", reason="pins processes and reads /proc")
def test_beside_a_busy_neighbour_most_rounds_of_a_real_build_are_dropped_and_run_again(networks: Any) -> None:
    cpu = min(os.sched_getaffinity(0))
    loop = f"import os\nos.sched_setaffinity(0, [{cpu}])\nprint(flush=True)\nwhile True: pass"
    neighbour = subprocess.Popen([sys.executable, "-S", "-c", loop], stdout=subprocess.PIPE)
    options = BenchOptions(rounds=3, block_seconds=0.03)
    request = BenchRequest(subjects=(networks.subject("dense"),), engine="ort-cpu", options=options)
    try:
        neighbour.stdout.readline()
        samples = run_build(
            BuildJob(request=request, build=0, cpus=(cpu,), budget_seconds=None), tell=lambda fraction, text: None
        )
    finally:
        neighbour.kill()
        neighbour.communicate()
    cell = samples.cell("fp32", 1)
    assert len(cell.dropped) > cell.rounds / 2
    assert cell.rounds > options.rounds
    assert all("of the round for a CPU" in reason for reason in cell.dropped.values())
    # Told again with all samples at hand, when the highest frequency may be one that came later.
    assert cell.disturbed.keys() <= disturbed_rounds(cell.signals, cpus=1).keys()
