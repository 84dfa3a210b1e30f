"""Where a latency was measured, as far as it decides what comes out: two that differ are never mixed."""

from dataclasses import dataclass
from pathlib import Path

from prune2deploy.bench.machine.environment import cpu_name, gpu_description
from prune2deploy.engines.registry import engine_named
from prune2deploy.errors import EngineError
from prune2deploy.latency.setting import Setting

PROTOCOL = 2
"""How points are timed. Raised with every change after which an engine would be found faster or slower."""

_INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "asimd", "sve")


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """An engine in its version, on a device, at a precision and a number of CPU threads.

    ``device`` is the CPU's model with the instruction sets that kernels are chosen by, or the GPU with its driver.
    """

    engine: str
    version: str
    device: str
    precision: str
    threads: int
    protocol: int = PROTOCOL


def environment_of(setting: Setting) -> Environment:
    """The environment of a setting on this machine. The threads of an engine that runs on a GPU are counted as 1.

    Raises:
        InputError: there is no such engine.
        EngineError: it does not run here.
    """
    engine = engine_named(setting.engine)
    availability = engine.availability()
    if not availability.runs:
        raise EngineError(
            availability.reason or "does not run on this machine",
            where=f"--engine {engine.name}",
            hint=availability.hint or "see `p2d doctor`",
        )
    on_cpu = (availability.device or "CPU").startswith("CPU")
    return Environment(
        engine=engine.name,
        version=availability.version or "unknown",
        device=_cpu() if on_cpu else gpu_description() or availability.device or "unknown",
        precision=setting.precision,
        threads=setting.threads if on_cpu else 1,
    )


def _cpu() -> str:
    present = [name for name in _INSTRUCTION_SETS if name in _flags()]
    return f"{cpu_name()} ({', '.join(present)})" if present else cpu_name()


def _flags() -> frozenset[str]:
    """What the first CPU says that it can do, in the words of Linux; nothing on other systems."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("flags", "Features"):
                return frozenset(value.split())
    except OSError:
        pass
    return frozenset()
