"""Which rounds must be dropped, by the machine's signals alone and never by what the round measured.

A round that is dropped for being slow would flatter; one that is dropped because something else ran is only less data.
The thresholds and what they rest on: ``docs/decisions/0021-disturbed-rounds.md``.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from prune2deploy.bench.machine.signals import TICK_SECONDS

Signals = Mapping[str, float | None]

# Pinned to a quiet CPU threads wait 0.0% to 0.3% of a round, two threads on two CPUs up to 1.7% for each other; beside
# one busy loop 50%.
RUN_DELAY_SHARE = 0.02
# Less than this is how long waking a thread takes, and no neighbour: it matters in rounds below 50 ms only.
RUN_DELAY_SECONDS = 0.001
# Of what others ran on the CPUs, as for steal.
OTHERS_TICKS = 1
# A hypervisor takes whole ticks: one or two in a short round are also what rounding leaves of next to nothing.
STEAL_SHARE = 0.05
STEAL_TICKS = 3
# The other hardware thread of a core shares its arithmetic and its caches.
SIBLING_SHARE = 0.1
SIBLING_TICKS = 3
# Ordinary boost moves by less from round to round; heat and power limits take more.
FREQUENCY_SHARE = 0.1
# Of NVML's reasons (nvml.h, nvmlClocksThrottleReason*) those of heat and of a failing supply. Not: idle, clocks set by
# the user, the ordinary power cap (a card under load is at it all the time), display and synchronised boost.
GPU_SLOWDOWNS = {
    0x08: "the hardware",
    0x20: "its driver, for heat",
    0x40: "the hardware, for heat",
    0x80: "the power brake",
}


def disturbance(before: Signals, after: Signals, *, cpus: int, highest_mhz: float | None = None) -> str | None:
    """Why the round between two samples of ``signals.SignalReader`` does not count, None if it does.

    ``cpus`` is how many CPUs the engines are pinned to and ``highest_mhz`` the highest frequency that was seen so far.
    The reason reads on from "it": "waited 4.2% of the round for a CPU". What was not sampled disturbs nothing.
    """
    seconds = _grown(before, after, "at_seconds")
    if seconds is None or seconds <= 0:
        return None
    reasons = (
        # Who is stopped for a quota may be counted as waiting for a CPU, too, and shall know why.
        _out_of_quota(before, after, seconds),
        _waited(before, after, seconds, cpus),
        _stolen(before, after, seconds),
        _beside(before, after, seconds, cpus),
        _too_hot(before, after),
        _from_disk(before, after),
        _slower_clock(before, after, highest_mhz),
        _on_the_gpu(before, after),
    )
    return next((reason for reason in reasons if reason is not None), None)


def disturbed_rounds(signals: Sequence[Signals], *, cpus: int) -> dict[int, str]:
    """The rounds of a cell that do not count, with their reasons. ``signals`` holds one sample more than rounds."""
    highest = highest_mhz(signals)
    found = {}
    for number, (before, after) in enumerate(pairwise(signals)):
        reason = disturbance(before, after, cpus=cpus, highest_mhz=highest)
        if reason is not None:
            found[number] = reason
    return found


def highest_mhz(signals: Iterable[Signals]) -> float | None:
    """The highest CPU frequency of all samples, None where no sample knows it."""
    return max((mhz for sample in signals if (mhz := sample.get("frequency_mhz")) is not None), default=None)


def too_disturbed(kept: int, dropped: int) -> bool:
    """Whether so many rounds were dropped that nothing should be concluded from the others: more than half."""
    return dropped > kept


def _waited(before: Signals, after: Signals, seconds: float, cpus: int) -> str | None:
    """One thread that waits holds up all that work with it, so it is the longest wait that counts.

    Where more threads work than there are CPUs, they wait for each other (OpenVINO's are still awake when the next
    engine's turn begins): then something else must have run there, too.
    """
    waited = _grown(before, after, "run_delay_longest_seconds")
    if waited is None or waited <= max(RUN_DELAY_SHARE * seconds, RUN_DELAY_SECONDS):
        return None
    others = _grown(before, after, "other_cpu_seconds")
    crowded = (after.get("working_threads") or 0) > cpus
    if crowded and others is not None and not _exceeds(others, RUN_DELAY_SHARE * seconds, ticks=OTHERS_TICKS):
        return None
    return f"waited {waited / seconds:.1%} of the round for a CPU"


def _stolen(before: Signals, after: Signals, seconds: float) -> str | None:
    """As with waits, the CPU that lost the most holds up the others."""
    stolen = _grown(before, after, "steal_longest_seconds")
    if stolen is None or not _exceeds(stolen, STEAL_SHARE * seconds, ticks=STEAL_TICKS):
        return None
    return f"lost {stolen / seconds:.1%} of a CPU to the hypervisor"


def _beside(before: Signals, after: Signals, seconds: float, cpus: int) -> str | None:
    busy = _grown(before, after, "sibling_cpu_seconds")
    if busy is None or not _exceeds(busy, SIBLING_SHARE * seconds * cpus, ticks=SIBLING_TICKS):
        return None
    return f"shared its cores: their other hardware threads were busy for {busy / (seconds * cpus):.0%} of the round"


def _out_of_quota(before: Signals, after: Signals, seconds: float) -> str | None:
    """As with waits: who uses all of a quota is stopped for some microseconds now and then, which disturbs nothing."""
    stopped = _grown(before, after, "quota_throttled_seconds")
    if stopped is None or stopped <= max(RUN_DELAY_SHARE * seconds, RUN_DELAY_SECONDS):
        return None
    return f"was stopped for {stopped * 1000:.0f} ms, its CPU quota being used up"


def _too_hot(before: Signals, after: Signals) -> str | None:
    return "was slowed down, since a CPU was too hot" if (_grown(before, after, "cpu_throttles") or 0) > 0 else None


def _from_disk(before: Signals, after: Signals) -> str | None:
    faults = _grown(before, after, "page_faults_major") or 0
    if faults <= 0:
        return None
    return f"waited for the disk ({faults:.0f} page{'s' if faults > 1 else ''} of memory had to be read)"


def _slower_clock(before: Signals, after: Signals, highest: float | None) -> str | None:
    known = [mhz for sample in (before, after) if (mhz := sample.get("frequency_mhz")) is not None]
    highest = max([*known, *([] if highest is None else [highest])], default=None)
    if highest is None or not known or min(known) >= (1 - FREQUENCY_SHARE) * highest:
        return None
    return f"ran at {min(known):.0f} MHz after {highest:.0f} MHz"


def _on_the_gpu(before: Signals, after: Signals) -> str | None:
    reasons = int(before.get("gpu_throttle_reasons") or 0) | int(after.get("gpu_throttle_reasons") or 0)
    slowed = [by for bit, by in GPU_SLOWDOWNS.items() if reasons & bit]
    if slowed:
        return f"was slowed down on the GPU by {' and '.join(slowed)}"
    if (_grown(before, after, "gpu_other_processes") or 0) > 0:
        return "met another process on the GPU"
    return None


def _grown(before: Signals, after: Signals, name: str) -> float | None:
    first, last = before.get(name), after.get(name)
    return None if first is None or last is None else last - first


def _exceeds(seconds: float, threshold: float, *, ticks: int) -> bool:
    """Above the threshold, and by so many ticks that it is no matter of counting."""
    return seconds > threshold and seconds > (ticks - 0.5) * TICK_SECONDS
