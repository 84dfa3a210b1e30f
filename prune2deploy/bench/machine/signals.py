"""Signs that something else than the engines took part in a round. Read between rounds, never inside a block.

Sources: Linux's /proc and /sys (man pages proc_stat(5), proc_pid_schedstat(5); Documentation/scheduler/sched-stats and
Documentation/admin-guide/cgroup-v2 of the kernel), ``getrusage``, and NVML for GPUs.
"""

import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from prune2deploy.bench.machine.affinity import allowed_cpus, siblings_of
from prune2deploy.bench.machine.nvml import no_gpu_signals, open_gpu

TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 0.01

_CPU_FOLDER = Path("/sys/devices/system/cpu")
_CGROUP_FOLDER = Path("/sys/fs/cgroup")
# Asking a CPU for its frequency can take 20 us and an interrupt there.
_MOST_FREQUENCIES = 16
_WORKING_SHARE = 0.05
"""Of what the busiest thread ran: a thread that ran less does none of the work."""


class SignalReader:
    """Reads the signs of disturbance for one worker process.

    ``cpus`` are those the process is pinned to, None for all it may use. ``gpu`` says whether the engine runs on an
    NVIDIA GPU, which is then asked, too; a process that is not pinned then uses one CPU after the other, and what
    happens on all of them is not read. ``close`` when done. On a virtual machine with two CPUs a sample takes 0.1 to
    0.7 ms.
    """

    def __init__(self, cpus: Sequence[int] | None, *, gpu: bool) -> None:
        used = cpus if cpus is not None else (None if gpu else allowed_cpus())
        self._cpus = frozenset(used or ())
        self._siblings = siblings_of(self._cpus)
        self._throttle_counts = [path for cpu in sorted(self._cpus) for path in _throttle_counts(cpu)]
        self._frequencies = _frequency_files(self._cpus)
        self._quotas = quota_files(_text(Path("/proc/self/cgroup")) or "", root=_CGROUP_FOLDER)
        self._waits_ns = _waits_by_thread()
        self._wait_total_ns = self._wait_longest_ns = self._working_threads = 0
        self._stolen: Mapping[int, float] = {}
        self._stolen_most = 0.0
        self._gpu = open_gpu() if gpu else None

    def sample(self) -> dict[str, float | None]:
        """The signs as they are now, None for what this system cannot tell. Never raises.

        Of the moment: ``at_seconds`` (monotonic), ``load_1min``, ``frequency_mhz`` (of the used CPU that runs fastest:
        the others may be idle just now, and heat slows all), ``gpu_clock_mhz``, ``gpu_memory_clock_mhz``,
        ``gpu_temperature_c``, ``gpu_power_watts``, ``gpu_throttle_reasons`` (NVML's bit mask), ``gpu_other_processes``;
        ``working_threads`` are those of this process that did the work since the sample before.

        Counters, of which only differences mean something: ``run_delay_seconds`` is how long threads of this process
        were ready and had no CPU, all together, and ``run_delay_longest_seconds`` that of the working thread that
        waited the longest since the sample before, added up. ``steal_seconds`` is what a hypervisor took from all used
        CPUs and ``steal_longest_seconds`` from that which lost the most, likewise; ``other_cpu_seconds`` what ran on
        them and was not this process; ``sibling_cpu_seconds`` what ran on the other hardware threads of their cores;
        ``switches_involuntary``, ``page_faults_major``; ``cpu_throttles`` (times a used CPU or its package was slowed
        down for its heat); ``quota_throttles`` and ``quota_throttled_seconds`` (a control group's CPU quota was used
        up).
        """
        self._count_waits()
        return {
            "at_seconds": time.monotonic(),
            "load_1min": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
            "frequency_mhz": _highest_mhz(self._frequencies),
            "run_delay_seconds": None if self._waits_ns is None else self._wait_total_ns * 1e-9,
            "run_delay_longest_seconds": None if self._waits_ns is None else self._wait_longest_ns * 1e-9,
            "working_threads": None if self._waits_ns is None else self._working_threads,
            **self._cpu_times(),
            **_usage(),
            "cpu_throttles": _sum_of(self._throttle_counts),
            **_quota(self._quotas),
            **(no_gpu_signals() if self._gpu is None else self._gpu.signals()),
        }

    def energy_joules(self) -> float | None:
        """The GPU's energy counter, see ``nvml.GpuMonitor``; None without a GPU that counts."""
        return None if self._gpu is None else self._gpu.energy_joules()

    def close(self) -> None:
        """Let go of the GPU's library."""
        if self._gpu is not None:
            self._gpu.close()
            self._gpu = None

    def _count_waits(self) -> None:
        """Threads come and go: only what grew since the last sample is added.

        Of the threads that work the longest wait counts. A thread that hardly runs (OpenVINO has one that looks after
        the others) waits for those of its own process, whenever it wakes beside them on one CPU, and holds up nothing.
        """
        waits = _waits_by_thread()
        if waits is None or self._waits_ns is None:
            self._waits_ns = None
            return
        grown = [
            (ran - self._waits_ns.get(thread, (0, 0))[0], waited - self._waits_ns.get(thread, (0, 0))[1])
            for thread, (ran, waited) in waits.items()
        ]
        working = _WORKING_SHARE * max((ran for ran, _ in grown), default=0)
        self._wait_total_ns += sum(waited for _, waited in grown)
        waits_of_working = [waited for ran, waited in grown if ran >= working]
        self._wait_longest_ns += max(waits_of_working, default=0)
        self._working_threads = len(waits_of_working)
        self._waits_ns = waits

    def _cpu_times(self) -> dict[str, float | None]:
        own = time.process_time()
        text = _text(Path("/proc/stat")) if self._cpus else None
        if text is None:
            names = ("steal_seconds", "steal_longest_seconds", "other_cpu_seconds", "sibling_cpu_seconds")
            return dict.fromkeys(names)
        times = cpu_times(text)
        stolen = {cpu: times[cpu][1] for cpu in self._cpus if cpu in times}
        self._stolen_most += max((lost - self._stolen.get(cpu, lost) for cpu, lost in stolen.items()), default=0.0)
        self._stolen = stolen
        siblings = [times[cpu][0] for cpu in self._siblings if cpu in times]
        return {
            "steal_seconds": sum(stolen.values()),
            "steal_longest_seconds": self._stolen_most,
            "other_cpu_seconds": sum(times[cpu][0] for cpu in stolen) - own,
            "sibling_cpu_seconds": sum(siblings) if siblings else None,
        }


def cpu_times(text: str) -> dict[int, tuple[float, float]]:
    """Busy seconds (interrupts included) and stolen seconds of each CPU, from the text of /proc/stat."""
    found = {}
    for line in text.splitlines():
        name, *fields = line.split()
        if not name.startswith("cpu"):
            # The lines of the CPUs come first; those that follow can be very long.
            break
        if name != "cpu":
            user, nice, system, _idle, _iowait, interrupts, soft_interrupts, stolen = map(int, fields[:8])
            busy = user + nice + system + interrupts + soft_interrupts
            found[int(name[3:])] = (busy * TICK_SECONDS, stolen * TICK_SECONDS)
    return found


def quota_files(text: str, *, root: Path) -> list[Path]:
    """The ``cpu.stat`` files of this process's control group and of all above it, as a quota may be set on any.

    ``text`` is that of /proc/self/cgroup; ``root`` is where control groups are mounted, version 1 or 2. Inside a
    container the path can be that of the host: then what the container sees as its root is its group.
    """
    found: dict[Path, None] = {}
    for line in text.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, name = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        for base in (root / controllers, root / "cpu") if controllers else (root, root / "unified"):
            group = base / name.strip("/")
            for folder in (group, *group.parents):
                if folder.is_relative_to(base) and "nr_throttled" in (_text(folder / "cpu.stat") or ""):
                    found[folder / "cpu.stat"] = None
    return list(found)


def quota_counts(texts: Iterable[str]) -> tuple[int, float]:
    """How many times, and for how many seconds, groups were stopped for their quota, from texts of ``cpu.stat``."""
    times, seconds = 0, 0.0
    for text in texts:
        fields = dict(line.split(maxsplit=1) for line in text.splitlines() if len(line.split()) == 2)
        times += int(fields.get("nr_throttled", 0))
        # Version 2 counts microseconds, version 1 nanoseconds.
        seconds += int(fields.get("throttled_usec", 0)) * 1e-6 + int(fields.get("throttled_time", 0)) * 1e-9
    return times, seconds


def _waits_by_thread() -> dict[int, tuple[int, int]] | None:
    """How long each thread of this process ran, and how long it was ready and had no CPU, in ns.

    None where the kernel keeps no count. The first two fields of schedstat. A wait is counted when it ends.
    """
    waits = {}
    try:
        threads = list(Path("/proc/self/task").iterdir())
    except OSError:
        return None
    for thread in threads:
        fields = (_text(thread / "schedstat") or "").split()
        if len(fields) >= 2:
            waits[int(thread.name)] = int(fields[0]), int(fields[1])
    return waits or None


def _usage() -> dict[str, float | None]:
    if sys.platform == "win32":
        return {"switches_involuntary": None, "page_faults_major": None}
    import resource

    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {"switches_involuntary": usage.ru_nivcsw, "page_faults_major": usage.ru_majflt}


def _quota(paths: Sequence[Path]) -> Mapping[str, float | None]:
    if not paths:
        return {"quota_throttles": None, "quota_throttled_seconds": None}
    times, seconds = quota_counts(text for path in paths if (text := _text(path)) is not None)
    return {"quota_throttles": times, "quota_throttled_seconds": seconds}


def _throttle_counts(cpu: int) -> list[Path]:
    folder = _CPU_FOLDER / f"cpu{cpu}" / "thermal_throttle"
    return [path for name in ("core", "package") if (path := folder / f"{name}_throttle_count").is_file()]


def _frequency_files(cpus: Iterable[int]) -> list[Path]:
    """Where frequencies are read: of all used CPUs, or of none where they are too many."""
    paths = [_CPU_FOLDER / f"cpu{cpu}" / "cpufreq" / "scaling_cur_freq" for cpu in sorted(cpus)]
    return [path for path in paths if path.is_file()] if len(paths) <= _MOST_FREQUENCIES else []


def _highest_mhz(paths: Sequence[Path]) -> float | None:
    texts = [(_text(path) or "").strip() for path in paths]
    return max((int(text) / 1000 for text in texts if text.isdigit()), default=None)


def _sum_of(paths: Sequence[Path]) -> int | None:
    texts = [(_text(path) or "").strip() for path in paths]
    return sum(int(text) for text in texts if text.isdigit()) if texts else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
