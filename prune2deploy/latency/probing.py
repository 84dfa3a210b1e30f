"""Who tells what a point takes: a Protocol, and the engine itself in a process of its own."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol, Self

from prune2deploy.bench.machine.affinity import pick_cpus
from prune2deploy.bench.process import end_process, error_from_document, last_line, spell_status, worker_environment
from prune2deploy.errors import EngineError
from prune2deploy.latency.points import Point, Timing
from prune2deploy.latency.setting import Setting
from prune2deploy.latency.worker import request_line

WORKER = (sys.executable, "-P", "-m", "prune2deploy.latency.worker")


def _tell_nobody(points: int) -> None:
    """Ignore it."""


class Prober(Protocol):
    """Tells how long points take."""

    def time(self, points: Sequence[Point], *, tell: Callable[[int], None] = _tell_nobody) -> tuple[Timing, ...]:
        """Time ``points``. ``tell`` is called with how many more are done.

        Raises:
            P2DError: they cannot be timed.
        """


class EngineProber:
    """Times points on an engine, in one process of its own that lives until the prober is closed. A context manager.

    The process is pinned as those of ``p2d bench`` are, and started when first needed.
    """

    def __init__(self, setting: Setting, *, command: Sequence[str] = WORKER) -> None:
        self._setting, self._command = setting, command
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def time(self, points: Sequence[Point], *, tell: Callable[[int], None] = _tell_nobody) -> tuple[Timing, ...]:
        """Time ``points`` side by side, and wait for it. Ctrl-C ends the process.

        Raises:
            InputError: the precision has no latencies, or an operator is not known.
            EngineError: the engine is not usable here, cannot run a unit (named), or its process died.
        """
        if not points:
            return ()
        try:
            answer = self._ask(points, tell)
        except BaseException:
            self.close()
            raise
        if "error" in answer:
            raise error_from_document(answer["error"])
        tell(len(points) - self._told)
        return tuple(Timing(**timing) for timing in answer["timings"])

    def close(self) -> None:
        """End the process; closing twice is harmless."""
        if self._process is not None:
            if self._process.stdin is not None:
                with suppress(OSError):
                    self._process.stdin.close()
            end_process(self._process)
            self._process = None
        if self._log is not None:
            self._log.close()
            self._log = None

    def _ask(self, points: Sequence[Point], tell: Callable[[int], None]) -> Mapping[str, Any]:
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        self._told = 0
        with suppress(OSError):
            # A process that died is found out below, with what it said.
            process.stdin.write(request_line(points))
            process.stdin.flush()
        for line in process.stdout:
            message = _message(line)
            if "fraction" in message:
                done = int(message["fraction"] * len(points))
                if done > self._told:
                    tell(done - self._told)
                    self._told = done
            elif "timings" in message or "error" in message:
                return message
        status = process.wait()
        assert self._log is not None
        raise EngineError(
            f"the measuring process died ({spell_status(status)}): {last_line(Path(self._log.name))}",
            where=f"latency on {self._setting.engine}",
            hint="run `p2d doctor`, and try another --engine",
        )

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            about = {"setting": asdict(self._setting), "cpus": pick_cpus(self._setting.threads)}
            self._log = tempfile.NamedTemporaryFile(prefix="p2d-latency-", suffix=".txt")  # noqa: SIM115
            self._process = subprocess.Popen(
                [*self._command, json.dumps(about)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env=worker_environment(self._setting.threads),
                start_new_session=True,
            )
        return self._process


def _message(line: bytes) -> Mapping[str, Any]:
    """What the worker says; anything else on that stream is chatter of a library."""
    try:
        message = json.loads(line)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}
