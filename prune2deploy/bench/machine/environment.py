"""What the machine is, so that a figure can be judged and two machines are never compared by accident."""

import datetime
import functools
import os
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from prune2deploy import __version__
from prune2deploy.bench.machine.affinity import allowed_cpus
from prune2deploy.bench.machine.nvml import describe_gpus

_PACKAGES = (
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx",
    "torch",
)


def describe_environment(*, threads: int, cpus: Sequence[int] | None) -> dict[str, Any]:
    """Everything about this machine that could explain a figure, as JSON values; null where it is not known.

    ``threads`` and ``cpus`` are those the measurement uses. Memory is in bytes, frequencies in MHz. ``measured_at`` is
    when it begins, by ISO 8601.
    """
    memory = psutil.virtual_memory()
    gpu = gpu_description()
    return {
        "measured_at": datetime.datetime.now(tz=datetime.UTC).isoformat(timespec="seconds"),
        "machine_class": machine_class(),
        "cpu": cpu_name(),
        "cores_physical": psutil.cpu_count(logical=False),
        "cores_logical": psutil.cpu_count(),
        "cpus_allowed": allowed_cpus(),
        "cpus_pinned": None if cpus is None else list(cpus),
        "threads": threads,
        "frequency_governor": _first_line(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        "frequency_mhz": _frequency_mhz(),
        "memory_bytes": memory.total,
        "memory_available_bytes": memory.available,
        "gpu": gpu,
        "os": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "load_average": _load_average(),
        "versions": versions(),
    }


def machine_class() -> str:
    """A string that is equal for machines whose figures may be compared: CPU model, cores, memory, GPU, system."""
    allowed = allowed_cpus()
    cores = len(allowed) if allowed is not None else psutil.cpu_count()
    gpu = gpu_description()
    memory_gib = round(psutil.virtual_memory().total / 2**30)
    parts = [cpu_name(), f"{cores} CPUs", f"{memory_gib} GiB", gpu or "no GPU"]
    return ", ".join([*parts, f"{platform.system()} {platform.machine()}"])


def versions() -> dict[str, str]:
    """Versions of what takes part, read from package metadata so that nothing heavy is imported."""
    found = {"prune2deploy": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def cpu_name() -> str:
    """The CPU's model name, as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model"):
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown CPU"


@functools.cache
def gpu_description() -> str | None:
    """Name, memory and driver of the NVIDIA GPUs, as nvidia-smi lists them; None where there is none."""
    return describe_gpus()


def _first_line(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip() or None
    except OSError:
        return None


def _frequency_mhz() -> float | None:
    """The current frequency of the first CPU; reading it from all would take longer than a block on wide machines."""
    text = _first_line(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq"))
    return float(text) / 1000 if text is not None and text.isdigit() else None


def _load_average() -> tuple[float, float, float] | None:
    return os.getloadavg() if sys.platform != "win32" else None
