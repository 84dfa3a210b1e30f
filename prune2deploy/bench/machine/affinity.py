"""Which CPUs a measurement is pinned to: distinct cores, the quietest ones."""

import os
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

import psutil

_TOPOLOGY = Path("/sys/devices/system/cpu")


def allowed_cpus() -> tuple[int, ...] | None:
    """CPUs this process may use, ascending; None where the system does not say (macOS)."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    return tuple(sorted(os.sched_getaffinity(0)))


def pick_cpus(threads: int) -> tuple[int, ...] | None:
    """Choose ``threads`` CPUs to pin to; None where pinning is not possible or would leave nothing out."""
    allowed = allowed_cpus()
    if allowed is None or threads >= len(allowed):
        return None
    busy = psutil.cpu_percent(interval=0.2, percpu=True)
    return choose_cpus(
        allowed,
        threads=threads,
        core_of={cpu: _core_of(cpu) for cpu in allowed},
        busy={cpu: busy[cpu] if cpu < len(busy) else 0.0 for cpu in allowed},
    )


def choose_cpus(
    allowed: Sequence[int], *, threads: int, core_of: Mapping[int, str], busy: Mapping[int, float]
) -> tuple[int, ...]:
    """The quietest ``threads`` CPUs, no two on one core while free cores are left.

    ``core_of`` names the physical core of each CPU; ``busy`` is its use in percent.
    """
    waiting = sorted(allowed, key=lambda cpu: (busy[cpu], cpu))
    chosen: list[int] = []
    while waiting and len(chosen) < threads:
        used: Set[str] = {core_of[cpu] for cpu in chosen}
        best = next((cpu for cpu in waiting if core_of[cpu] not in used), waiting[0])
        chosen.append(best)
        waiting.remove(best)
    return tuple(sorted(chosen))


def pin(cpus: Sequence[int] | None) -> None:
    """Confine this process, and the threads it will start, to ``cpus``."""
    if cpus is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cpus)


def siblings_of(cpus: Set[int]) -> frozenset[int]:
    """The other hardware threads of the cores of ``cpus``: what runs there takes a share of the same core."""
    together: set[int] = set()
    for cpu in cpus:
        together |= parse_cpus(_core_of(cpu))
    return frozenset(together - cpus)


def parse_cpus(text: str) -> set[int]:
    """A list of CPUs as Linux writes it: ``"0-2,8"`` is {0, 1, 2, 8}."""
    found: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def _core_of(cpu: int) -> str:
    try:
        return (_TOPOLOGY / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text(encoding="ascii").strip()
    except OSError:
        return str(cpu)
