"""How the machine behaved while it measured: each signal over the rounds of all builds, disturbed rounds shaded."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from matplotlib.ticker import MaxNLocator

from prune2deploy.bench.samples import BuildSamples
from prune2deploy.report.canvas import ACCENT, MUTED, REFUSED, Plot, drawing, plot_from_figure

_PANEL_INCHES = 1.05
# Beyond these, marks run together and only make the page large.
_MOST_MARKED_ROUNDS = 200
_MOST_MARKED_BUILDS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class _Signal:
    """How to show one: a counter by what was added in each round, the value times ``scale`` in the label's unit."""

    label: str
    scale: float = 1.0
    counter: bool = False


_SIGNALS = {
    "run_delay_longest_seconds": _Signal(label="longest wait for a CPU, ms", scale=1000, counter=True),
    "steal_longest_seconds": _Signal(label="taken by the hypervisor, ms", scale=1000, counter=True),
    "other_cpu_seconds": _Signal(label="other work on these CPUs, ms", scale=1000, counter=True),
    "sibling_cpu_seconds": _Signal(label="work on sibling threads, ms", scale=1000, counter=True),
    "quota_throttled_seconds": _Signal(label="stopped for a CPU quota, ms", scale=1000, counter=True),
    "frequency_mhz": _Signal(label="CPU clock, MHz"),
    "load_1min": _Signal(label="load, 1 min"),
    "switches_involuntary": _Signal(label="preemptions", counter=True),
    "page_faults_major": _Signal(label="page faults that read the disk", counter=True),
    "cpu_throttles": _Signal(label="CPU slowed down for heat, times", counter=True),
    "gpu_clock_mhz": _Signal(label="GPU clock, MHz"),
    "gpu_memory_clock_mhz": _Signal(label="GPU memory clock, MHz"),
    "gpu_temperature_c": _Signal(label="GPU temperature, °C"),
    "gpu_power_watts": _Signal(label="GPU power, W"),
    "gpu_other_processes": _Signal(label="other processes on the GPU"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """One signal over all rounds: the value at each, None where it was not known."""

    signal: _Signal
    values: tuple[float | None, ...]

    @property
    def known(self) -> bool:
        """Whether the machine could tell it at all."""
        return any(value is not None for value in self.values)


def signal_plots(builds: Sequence[BuildSamples]) -> tuple[Plot, ...]:
    """One drawing with a panel for each signal that was ever known and ever other than zero; none without samples."""
    known = [line for name, signal in _SIGNALS.items() if (line := _line(name, signal, builds)).known]
    lines = [line for line in known if any(line.values)]
    if not lines:
        return ()
    dropped = _stretches([place for place, reason in enumerate(_reasons(builds)) if reason])
    starts = _build_starts(builds)
    with drawing(height_inches=0.5 + _PANEL_INCHES * len(lines)) as figure:
        panels = figure.subplots(len(lines), 1, sharex=True, squeeze=False)
        for axes, line in zip(panels[:, 0], lines, strict=True):
            for first, last in dropped:
                axes.axvspan(first - 0.5, last + 0.5, color=REFUSED, alpha=0.3, linewidth=0)
            for start in starts if len(starts) < _MOST_MARKED_BUILDS else ():
                axes.axvline(start - 0.5, color=MUTED, linewidth=0.8, linestyle=(0, (2, 3)))
            values = [float("nan") if value is None else value * line.signal.scale for value in line.values]
            marker = "." if len(values) <= _MOST_MARKED_ROUNDS else None
            axes.plot(range(len(values)), values, color=ACCENT, linewidth=1.4, marker=marker, markersize=4)
            axes.set_title(line.signal.label, loc="left", fontsize=10, color=MUTED)
            axes.yaxis.set_major_locator(MaxNLocator(3))
            axes.margins(x=0.01, y=0.15)
            if line.signal.counter:
                axes.set_ylim(bottom=0)
        panels[-1, 0].set_xlabel("round, over all builds")
        panels[-1, 0].xaxis.set_major_locator(MaxNLocator(integer=True))
        calm = ", ".join(line.signal.label.partition(",")[0] for line in known if line not in lines)
        shaded = "A shaded round was disturbed and does not count. " if dropped else ""
        return (
            plot_from_figure(
                figure,
                key="signals",
                title="Signals between the rounds",
                description=(
                    f"{shaded}Dashed lines begin a build; what counts up is shown by round."
                    f"{f' Zero in every round: {calm}.' if calm else ''}"
                ),
            ),
        )


def _line(name: str, signal: _Signal, builds: Sequence[BuildSamples]) -> _Line:
    values: list[float | None] = []
    for build in builds:
        for cell in build.cells:
            known = [moment.get(name) for moment in cell.signals]
            values += [_shown(before, after, signal) for before, after in pairwise(known)]
    return _Line(signal=signal, values=tuple(values))


def _shown(before: float | None, after: float | None, signal: _Signal) -> float | None:
    """What a signal says of the round between two moments: what was added, or how it stood at the end."""
    if not signal.counter:
        return after
    return None if before is None or after is None else after - before


def _reasons(builds: Sequence[BuildSamples]) -> Iterator[str]:
    """Why each round does not count, empty where it does."""
    for build in builds:
        for cell in build.cells:
            for number in range(len(cell.signals) - 1):
                yield cell.disturbed.get(number, "")


def _stretches(places: Sequence[int]) -> list[tuple[int, int]]:
    """Ascending places as stretches without a gap, first and last."""
    stretches: list[tuple[int, int]] = []
    for place in places:
        if stretches and stretches[-1][1] == place - 1:
            stretches[-1] = (stretches[-1][0], place)
        else:
            stretches.append((place, place))
    return stretches


def _build_starts(builds: Sequence[BuildSamples]) -> list[int]:
    """The round that each build but the first begins with."""
    starts, rounds = [], 0
    for build in builds:
        starts.append(rounds)
        rounds += sum(len(cell.signals) - 1 for cell in build.cells)
    return starts[1:]
