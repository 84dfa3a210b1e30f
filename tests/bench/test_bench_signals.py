"""What the system tells between rounds: real neighbours are seen, and files of other systems are read as they are."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from prune2deploy.bench.machine.affinity import allowed_cpus, parse_cpus, siblings_of
from prune2deploy.bench.machine.disturbance import disturbance
from prune2deploy.bench.machine.nvml import no_gpu_signals
from prune2deploy.bench.machine.signals import TICK_SECONDS, SignalReader, cpu_times, quota_counts, quota_files

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

COUNTERS = (
    "at_seconds",
    "run_delay_seconds",
    "run_delay_longest_seconds",
    "steal_seconds",
    "steal_longest_seconds",
    "switches_involuntary",
    "page_faults_major",
)
# /proc/stat of a machine whose CPU 1 is off.
STAT = """cpu  300 30 60 9000 50 6 9 12 0 0
cpu0 100 10 20 3000 20 2 3 4 0 0
cpu2 200 20 40 6000 30 4 6 8 0 0
intr 123 4 5
ctxt 1000
"""


@pytest.fixture
def reader():
    reader = SignalReader(None, gpu=False)
    yield reader
    reader.close()


def test_a_sample_has_every_field_and_counters_never_fall(reader):
    first = reader.sample()
    sum(range(200_000))
    second = reader.sample()
    assert first.keys() == second.keys() >= {*COUNTERS, *no_gpu_signals(), "frequency_mhz", "cpu_throttles"}
    for name in COUNTERS:
        assert first[name] is None or second[name] >= first[name], name
    assert second["at_seconds"] > first["at_seconds"]
    assert all(second[name] is None for name in no_gpu_signals())


@on_linux
def test_linux_tells_waits_steal_and_what_else_ran(reader):
    sample = reader.sample()
    for name in ("load_1min", "run_delay_seconds", "steal_seconds", "other_cpu_seconds", "page_faults_major"):
        assert sample[name] is not None, name


@on_linux
def test_a_neighbour_on_the_same_cpu_is_seen_and_drops_the_round():
    everywhere = os.sched_getaffinity(0)
    cpu = min(everywhere)
    os.sched_setaffinity(0, {cpu})
    neighbour = subprocess.Popen(
        [sys.executable, "-S", "-c", "print(flush=True)\nwhile True: pass"], stdout=subprocess.PIPE
    )
    try:
        neighbour.stdout.readline()
        reader = SignalReader((cpu,), gpu=False)
        before = reader.sample()
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            pass
        after = reader.sample()
    finally:
        neighbour.kill()
        neighbour.communicate()
        os.sched_setaffinity(0, everywhere)
    assert after["run_delay_longest_seconds"] - before["run_delay_longest_seconds"] > 0.02
    assert after["other_cpu_seconds"] - before["other_cpu_seconds"] > 0.02
    reason = disturbance(before, after, cpus=1)
    assert reason is not None
    assert reason.startswith("waited")


@on_linux
def test_a_thread_that_ends_takes_no_wait_back(reader):
    done = threading.Event()
    threads = [threading.Thread(target=done.wait) for _ in range(4)]
    for thread in threads:
        thread.start()
    first = reader.sample()
    done.set()
    for thread in threads:
        thread.join()
    second = reader.sample()
    assert second["run_delay_seconds"] >= first["run_delay_seconds"]
    assert second["run_delay_longest_seconds"] <= second["run_delay_seconds"]


def test_an_unpinned_process_of_a_gpu_engine_is_told_nothing_about_all_cpus():
    reader = SignalReader(None, gpu=True)
    try:
        sample = reader.sample()
    finally:
        reader.close()
        reader.close()
    assert sample["steal_seconds"] is sample["other_cpu_seconds"] is sample["frequency_mhz"] is None
    assert sample["at_seconds"] > 0


def test_a_cpu_that_does_not_exist_is_no_error():
    reader = SignalReader((100_000,), gpu=False)
    sample = reader.sample()
    assert sample["frequency_mhz"] is None
    assert sample["cpu_throttles"] is None


def test_the_times_of_each_cpu_are_told_by_its_number():
    times = cpu_times(STAT)
    assert times.keys() == {0, 2}
    assert times[0] == pytest.approx((135 * TICK_SECONDS, 4 * TICK_SECONDS))
    assert times[2] == pytest.approx((270 * TICK_SECONDS, 8 * TICK_SECONDS))


def write_stat(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cpu.stat").write_text(text)
    return folder / "cpu.stat"


def test_quotas_of_version_2_are_read_up_to_the_root(tmp_path):
    top = write_stat(tmp_path, "usage_usec 5\n")
    slice_ = write_stat(tmp_path / "a.slice", "usage_usec 5\nnr_periods 9\nnr_throttled 2\nthrottled_usec 1500\n")
    own = write_stat(tmp_path / "a.slice/b", "nr_throttled 1\nthrottled_usec 500\n")
    found = quota_files("0::/a.slice/b\n", root=tmp_path)
    assert set(found) == {slice_, own}
    assert top not in found
    times, seconds = quota_counts(path.read_text() for path in found)
    assert (times, seconds) == (3, pytest.approx(0.002))


@pytest.mark.parametrize("mount", ["cpu,cpuacct", "cpu"])
def test_quotas_of_version_1_are_read_also_where_the_path_is_the_hosts(tmp_path, mount):
    own = write_stat(tmp_path / mount, "nr_periods 9\nnr_throttled 4\nthrottled_time 3000000\n")
    listing = "5:memory:/docker/1\n4:cpu,cpuacct:/docker/1\n1:name=systemd:/\n0::/\n"
    assert quota_files(listing, root=tmp_path) == [own]
    assert quota_counts([own.read_text()]) == (4, pytest.approx(0.003))


def test_without_control_groups_there_is_no_quota(tmp_path):
    assert quota_files("", root=tmp_path) == []
    assert quota_files("0::/\n", root=tmp_path / "missing") == []


@pytest.mark.parametrize(("text", "cpus"), [("0", {0}), ("0,64\n", {0, 64}), ("0-2,8", {0, 1, 2, 8}), ("", set())])
def test_lists_of_cpus_are_read_as_linux_writes_them(text, cpus):
    assert parse_cpus(text) == cpus


@on_linux
def test_no_cpu_is_its_own_sibling():
    cpus = frozenset(allowed_cpus())
    assert not siblings_of(cpus) & cpus
    one = frozenset({min(cpus)})
    assert one.isdisjoint(siblings_of(one))


def test_a_thread_that_hardly_runs_is_not_waited_for():
    samples = []

    def counted() -> dict[int, tuple[int, int]]:
        return samples.pop(0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prune2deploy.bench.machine.signals._waits_by_thread", counted)
        samples += [{1: (0, 0), 2: (0, 0)}, {1: (1000, 3), 2: (10, 400)}, {1: (2000, 4), 2: (1000, 500)}]
        reader = SignalReader(None, gpu=False)
        first, second = reader.sample(), reader.sample()
    assert first["run_delay_seconds"] == pytest.approx(403e-9)
    assert (first["run_delay_longest_seconds"], first["working_threads"]) == (pytest.approx(3e-9), 1)
    assert (second["run_delay_longest_seconds"], second["working_threads"]) == (pytest.approx(103e-9), 2)
