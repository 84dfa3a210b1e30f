"""Two ways to show progress on standard error: bars on a terminal, now and then a plain line elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from prune2deploy.progress import Task

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

LINE_INTERVAL_SECONDS = 10.0
WORTH_TELLING_SECONDS = 2.0

Clock = Callable[[], float]


class TellingProgress:
    """What both ways share: they remember the facts they told."""

    def __init__(self) -> None:
        self.told: list[str] = []


class LineProgress(TellingProgress):
    """Plain lines: one when work begins, at most one every ten seconds, one when it took long."""

    def __init__(self, stream: TextIO, *, clock: Clock = time.monotonic) -> None:
        super().__init__()
        self._stream = stream
        self._clock = clock
        self._depth = 0

    @contextmanager
    def task(self, description: str, *, total: float | None = None) -> Iterator[Task]:
        """Tell of outer tasks at once, of inner ones only when they take long."""
        begun = self._clock()
        if self._depth == 0:
            self.write(description)
        self._depth += 1
        try:
            yield _LineTask(self, description, total, clock=self._clock)
            seconds = self._clock() - begun
            if seconds >= WORTH_TELLING_SECONDS:
                self.write(f"{description}: done in {seconds:.0f} s")
        finally:
            self._depth -= 1

    def note(self, text: str) -> None:
        """One line."""
        self.told.append(text)
        self.write(f"note: {text}")

    def write(self, line: str) -> None:
        """Write one line at once, so that a log shows it while the work goes on."""
        self._stream.write(line + "\n")
        self._stream.flush()


class _LineTask:
    def __init__(self, progress: LineProgress, description: str, total: float | None, *, clock: Clock) -> None:
        self._progress = progress
        self._description = description
        self._total = total
        self._done = 0.0
        self._text = ""
        self._clock = clock
        self._told = clock()

    def advance(self, steps: float = 1) -> None:
        """Count steps; tell when it is time."""
        self._done += steps
        self._tell()

    def describe(self, text: str) -> None:
        """Keep the text for the next line."""
        self._text = text
        self._tell()

    def _tell(self) -> None:
        if self._clock() - self._told < LINE_INTERVAL_SECONDS:
            return
        self._told = self._clock()
        share = f"{self._done / self._total:.0%}" if self._total else f"{self._done:g}"
        self._progress.write(f"{self._description}: {share} {self._text}".rstrip())


class BarProgress(TellingProgress):
    """Bars that vanish when their work ends, leaving one line for work that took long."""

    def __init__(self, bars: "RichProgress", *, clock: Clock = time.monotonic) -> None:
        super().__init__()
        self._bars = bars
        self._clock = clock

    @contextmanager
    def task(self, description: str, *, total: float | None = None) -> Iterator[Task]:
        """Show a bar, pulsing where the total is unknown."""
        begun = self._clock()
        bar = self._bars.add_task(description, total=total, text="")
        try:
            yield _BarTask(self._bars, bar)
            seconds = self._clock() - begun
            if seconds >= WORTH_TELLING_SECONDS:
                self._print(f"{description}: done in {seconds:.0f} s")
        finally:
            self._bars.remove_task(bar)

    def note(self, text: str) -> None:
        """One line above the bars."""
        self.told.append(text)
        self._print(f"note: {text}")

    def _print(self, line: str) -> None:
        self._bars.console.print(line, markup=False, highlight=False, soft_wrap=True)


class _BarTask:
    def __init__(self, bars: "RichProgress", bar: "TaskID") -> None:
        self._bars = bars
        self._bar = bar

    def advance(self, steps: float = 1) -> None:
        """Move the bar."""
        self._bars.advance(self._bar, steps)

    def describe(self, text: str) -> None:
        """Set the text beside the bar."""
        self._bars.update(self._bar, text=text)
