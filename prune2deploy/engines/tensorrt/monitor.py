"""A TensorRT build as it goes on: its phases as one bar, and a way to stop it."""

import threading
from dataclasses import dataclass
from typing import Any

from prune2deploy.progress import Task


@dataclass(slots=True)
class _Phase:
    parent: str | None
    steps: int
    done: int = 0
    child: str | None = None


class BuildWatch:
    """What the builder's threads tell, as a share of the whole in [0, 1] that never falls.

    Phases are nested: a phase of N steps counts each as 1/N, and a phase inside fills the step that it belongs to.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._lock = threading.Lock()
        self._phases: dict[str, _Phase] = {}
        self._stopped = False
        self.shown = 0.0
        self.failure: Exception | None = None

    def stop(self) -> None:
        """Ask the builder to end at its next step."""
        self._stopped = True

    def phase_start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase of that many steps has begun, inside ``parent`` if there is one."""
        with self._lock:
            self._phases[name] = _Phase(parent=parent, steps=max(steps, 1))
            # A new phase has nothing inside, so only one that is said to be inside itself could close a circle.
            if parent in self._phases and parent != name:
                self._phases[parent].child = name
            self._tell(name)

    def step_complete(self, name: str, step: int) -> bool:
        """Step ``step``, counted from 0, is done. False ends the build."""
        with self._lock:
            if name in self._phases:
                phase = self._phases[name]
                phase.done, phase.child = max(phase.done, step + 1), None
                self._tell(None)
        return not self._stopped

    def phase_finish(self, name: str) -> None:
        """The phase is over, perhaps before all of its steps were told."""
        with self._lock:
            phase = self._phases.get(name)
            if phase is None:
                return
            if not self._stopped:
                phase.done, phase.child = phase.steps, None
                self._tell(None)
            del self._phases[name]

    def _tell(self, phase: str | None) -> None:
        share = max((self._share(name) for name, phase in self._phases.items() if phase.parent is None), default=0.0)
        try:
            if phase is not None:
                self._task.describe(phase)
            if share > self.shown:
                self._task.advance(share - self.shown)
                self.shown = share
        except Exception as failure:  # noqa: BLE001 - it must not reach the builder; raised when the build has ended
            self.failure = failure
            self.stop()

    def _share(self, name: str) -> float:
        phase = self._phases[name]
        inside = self._share(phase.child) if phase.child in self._phases else 0.0
        return min(1.0, (phase.done + inside) / phase.steps)


def progress_monitor(library: Any, watch: BuildWatch) -> Any:
    """The library's view of a watch."""

    class ProgressMonitor(library.IProgressMonitor):  # type: ignore[misc]  # the base is only known at run time
        def __init__(self) -> None:
            library.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            watch.phase_start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return watch.step_complete(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            watch.phase_finish(phase_name)

    return ProgressMonitor()
