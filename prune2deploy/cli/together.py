"""Several processes, one voice and one exit code.

The first process that fails writes its code where all see it and prints the one error line; the others, which fail for
the same reason or because they lost it, leave silently with the same code. A process that hangs, waiting for one that
is gone, is ended after a while. They write to the store that ``torchrun`` keeps, or else the main process.
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from prune2deploy import processes
from prune2deploy.errors import InputError

COMMANDS = ("train", "prune", "family")
EXIT_PROCESS_LOST = 5

_GRACE_SECONDS = 10.0
_WATCH_SECONDS = 0.5
_OTHERS_SECONDS = 10.0


def check_command(name: str | None) -> None:
    """Refuse a command that several processes would only do several times.

    Raises:
        InputError: it is one.
    """
    if name is not None and name not in COMMANDS and processes.count() > 1:
        raise InputError(
            f"is for one process, and {processes.count()} were started",
            where=f"p2d {name}",
            hint="run it without torchrun or accelerate launch",
        )


def mute() -> None:
    """Have results printed once: standard output is the main process's."""
    if not processes.is_main():
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - open for as long as the process lives


class Company:
    """This process among others, from ``join`` to its exit."""

    def __init__(self) -> None:
        self._store: Any = None
        self._watch: threading.Thread | None = None
        self._leaving = threading.Event()
        self._code: int | None = None
        self._aware = threading.Lock()

    def join(self) -> None:
        """Meet the others, and see from now on when one of them fails. Nothing with one process.

        Raises:
            EngineError: they cannot be met.
        """
        if processes.count() == 1 or self._watch is not None:
            return
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            self._store = _store()
        processes.join()
        self._store = self._store or _store()
        self._watch = threading.Thread(target=self._end_when_another_failed, daemon=True)
        self._watch.start()

    def leave(self) -> None:
        """Wait for the others at the end of a command that went well."""
        if self._watch is not None:
            processes.leave()
            self._leaving.set()

    def agree_on(self, code: int) -> tuple[bool, int]:
        """Tell the others that this process fails with ``code``: whether it is the one to say so, and the code of all.

        From here on signals are ignored: the others and ``torchrun`` send some.
        """
        if processes.count() == 1:
            return True, code
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        self._leaving.set()
        if self._store is None:
            return processes.is_main(), code
        try:
            if self._store.add("failed", 1) == 1:
                self._store.set("code", str(code))
                self._be_aware()
                self._wait_for_others()
                return True, code
            self._code = int(self._store.get("code"))
            self._be_aware()
            return False, self._code
        except RuntimeError:
            # The store has gone with the process that kept it.
            return self._code is None, code if self._code is None else self._code

    def _be_aware(self) -> None:
        """Count this process, once, among those that know the code."""
        if self._aware.acquire(blocking=False):
            self._store.add("aware", 1)

    def _wait_for_others(self) -> None:
        """Stay until all know the code: the store, or ``torchrun``'s patience, may end with this process."""
        limit = time.monotonic() + _OTHERS_SECONDS
        while self._store.add("aware", 0) < processes.count() and time.monotonic() < limit:
            time.sleep(0.02)

    def _end_when_another_failed(self) -> None:
        while not self._leaving.wait(_WATCH_SECONDS):
            lost = False
            try:
                if self._store.check(["code"]):
                    self._code = int(self._store.get("code"))
                    self._be_aware()
            except RuntimeError:
                lost = True
            if lost or self._code is not None:
                # Most often the main thread sees it too, and leaves in order.
                if not self._leaving.wait(_GRACE_SECONDS):
                    if self._code is None:
                        sys.stderr.write(f"p2d: error: {lost_line()}\n")
                        sys.stderr.flush()
                    os._exit(EXIT_PROCESS_LOST if self._code is None else self._code)
                return


company = Company()


def lost_line() -> str:
    """What the user is told where a process ended without saying why."""
    return (
        f"another of the {processes.count()} processes ended without a word (killed, or out of memory); "
        "the same command with --resume goes on"
    )


def was_lost(error: Exception) -> bool:
    """Whether an error says that another process is gone."""
    if processes.count() == 1 or not isinstance(error, RuntimeError):
        return False
    from torch.distributed import DistError

    words = str(error).lower()
    gone = ("connection closed by peer", "connection reset by peer", "connection refused", "broken pipe")
    return isinstance(error, DistError) or any(word in words for word in gone)


def _store() -> Any:
    """A client of the store through which the processes met, with keys of its own for each restart."""
    from datetime import timedelta

    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = TCPStore(
        os.environ.get("MASTER_ADDR", "127.0.0.1"),
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        wait_for_workers=False,
        timeout=timedelta(seconds=60),
    )
    return PrefixStore(f"p2d-exit-{restart}", store)
