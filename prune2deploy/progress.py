"""How a stage tells that it is getting on, without knowing of a terminal.

Stages take a ``Progress`` and report to it; the command line passes one that draws bars (or, where
standard error is no terminal, plain lines), and the Python API passes ``SILENT``.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Task(Protocol):
    """One running piece of work."""

    def advance(self, steps: float = 1) -> None:
        """Count ``steps`` more steps as done."""

    def describe(self, text: str) -> None:
        """Replace the text beside the bar, for instance with the latest loss."""


class Progress(Protocol):
    """Where stages report what they are doing."""

    def task(self, description: str, *, total: float | None = None) -> AbstractContextManager[Task]:
        """Open a task of ``total`` steps (unknown if None); leaving the context ends it."""

    def note(self, text: str) -> None:
        """Tell the user one fact worth a line: a choice that was made for them, a warning."""


class _SilentTask:
    def advance(self, steps: float = 1) -> None:
        """Ignore it."""

    def describe(self, text: str) -> None:
        """Ignore it."""


class _SilentProgress:
    @contextmanager
    def task(self, description: str, *, total: float | None = None) -> Iterator[Task]:
        """Yield a task that ignores everything."""
        yield _SilentTask()

    def note(self, text: str) -> None:
        """Ignore it."""


SILENT: Progress = _SilentProgress()
