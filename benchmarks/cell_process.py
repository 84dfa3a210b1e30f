"""One cell of a benchmark at a time in a process of its own: what hangs is ended, what crashes is told."""

import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from prune2deploy.errors import P2DError

Record = dict[str, Any]


class CellProcess:
    """A process that answers one call after the other, and is begun anew after one that killed it.

    ``begin`` is called first in each process, with ``arguments``: it sets threads, for example.
    """

    def __init__(self, begin: Callable[..., None], *arguments: Any) -> None:
        self._begin = (begin, arguments)
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None

    def ask(self, function: Callable[..., Record], *arguments: Any, seconds: float) -> Record:
        """What ``function`` returns, or {"failed": one line}: its error, that it died, or that it took too long."""
        pipe = self._started()
        pipe.send((function, arguments))
        if not pipe.poll(seconds):
            self.end(patience_seconds=0)
            return {"failed": f"took over {seconds:.0f} s"}
        try:
            record: Record = pipe.recv()
        except EOFError:
            process = self._process
            if process is not None:
                process.join()
            self.end()
            return {"failed": f"its process died with {process.exitcode if process is not None else None}"}
        return record

    def end(self, *, patience_seconds: float = 5.0) -> None:
        """End the process: by itself, or by force where it does not end in time. Ending twice is harmless."""
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None:
            self._process.join(patience_seconds)
            self._process.kill()
            self._process.join()
        self._process = self._pipe = None

    def _started(self) -> Connection:
        if self._pipe is None:
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=_answer, args=(theirs, *self._begin), daemon=True)
            self._process.start()
            theirs.close()
        return self._pipe


def _answer(pipe: Connection, begin: Callable[..., None], first: tuple[Any, ...]) -> None:
    begin(*first)
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        try:
            record = function(*arguments)
        except P2DError as error:
            record = {"failed": _one_line(str(error))}
        except Exception as error:  # noqa: BLE001  # whatever stops one cell is that cell's record
            traceback.print_exc()
            record = {"failed": _one_line(f"{type(error).__name__}: {error}"), "unexpected": True}
        pipe.send(record)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]
