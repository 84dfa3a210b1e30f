"""One exit: whatever a command raises becomes one line on standard error and a documented exit code.

=====================  ====================================================================
``P2DError``           its own code: 2 to 6 (``prune2deploy.errors``)
usage error            2, as Typer words it
out of memory          5
full or read-only disk 6
Ctrl-C / SIGTERM       130 / 143, with how to go on
closed pipe            141, silently (``p2d inspect ... | head``)
a process was lost     5 (of several, where it could not say why)
anything else          a bug: Python's traceback and 1
=====================  ====================================================================

Of several processes one speaks, and all leave with the same code (``cli.together``).
"""

import errno
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import Any

import typer
from typer.core import TyperGroup

from prune2deploy import processes
from prune2deploy.cli.together import EXIT_PROCESS_LOST, company, lost_line, mute, was_lost
from prune2deploy.errors import P2DError

EXIT_BUG = 1
EXIT_USAGE = 2
EXIT_NOT_ENOUGH_MEMORY = 5
EXIT_CANNOT_WRITE = 6
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_CLOSED_PIPE = 141
EXIT_TERMINATED = 128 + signal.SIGTERM

_CANNOT_WRITE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})


class Terminated(KeyboardInterrupt):
    """SIGTERM, which container runtimes send: stages stop as they do at Ctrl-C."""


class _Interruption(Exception):  # noqa: N818 - carries a stop through Typer, which would swallow KeyboardInterrupt
    def __init__(self, *, code: int, resumable: bool) -> None:
        super().__init__()
        self.code = code
        self.resumable = resumable


class GuardedGroup(TyperGroup):
    """The commands of ``p2d``, with the one place that turns errors into exit codes around them."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; a stop is kept from Typer, which knows neither SIGTERM nor ``--resume``."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            command = self.get_command(ctx, ctx.invoked_subcommand or "")
            resumable = command is not None and any(parameter.name == "resume" for parameter in command.params)
            code = EXIT_TERMINATED if isinstance(stop, Terminated) else EXIT_INTERRUPTED
            raise _Interruption(code=code, resumable=resumable) from stop
        except BrokenPipeError:
            _abandon_standard_output()
            raise typer.Exit(EXIT_CLOSED_PIPE) from None

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> Any:
        """Run the program and leave with its exit code. Does not return."""
        extra["standalone_mode"] = False
        mute()
        code = 0
        try:
            result = super().main(args, *rest, **extra)
            code = result if isinstance(result, int) else 0
            sys.stdout.flush()
            company.leave()
        except P2DError as error:
            code = _fail(str(error), code=error.exit_code)
        except typer.TyperException as error:
            code = _fail(_usage(error), code=EXIT_USAGE)
        except (_Interruption, KeyboardInterrupt, typer.Abort) as stop:
            code = _stopped(stop)
        except BrokenPipeError:
            _abandon_standard_output()
            _, code = company.agree_on(EXIT_CLOSED_PIPE)
        except Exception as error:
            expected = _expected(error)
            if expected is not None:
                code = _fail(expected[0], code=expected[1])
            else:
                error.add_note("This is a bug in p2d. Please report it with this traceback.")
                if processes.count() == 1:
                    raise
                code = _show_bug(error)
        if code and processes.count() > 1:
            # What is left of the group would wait for the others.
            sys.stderr.flush()
            os._exit(code)
        sys.exit(code)


def raise_on_sigterm() -> None:
    """Make SIGTERM stop the program as Ctrl-C does; as process 1 of a container it would otherwise be ignored."""

    def stop(signal_number: int, frame: FrameType | None) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, stop)


def _expected(error: Exception) -> tuple[str, int] | None:
    """Line and code of an error that no stage can foresee everywhere, None for a bug."""
    if isinstance(error, OSError) and error.errno in _CANNOT_WRITE:
        where = f"{error.filename}: " if error.filename else ""
        hint = "free some space or choose another folder with --out; earlier results are intact"
        return f"{where}cannot be written ({error.strerror}); {hint}", EXIT_CANNOT_WRITE
    device_out_of_memory = getattr(sys.modules.get("torch"), "OutOfMemoryError", MemoryError)
    if isinstance(error, (MemoryError, device_out_of_memory)):
        return "there is not enough memory; lower --batch-size, --batch or --input", EXIT_NOT_ENOUGH_MEMORY
    if was_lost(error):
        return lost_line(), EXIT_PROCESS_LOST
    return None


def _usage(error: typer.TyperException) -> str:
    message = error.format_message().replace("Value error, ", "").rstrip(".")
    context = getattr(error, "ctx", None)
    return f"{message}; see `{context.command_path} --help`" if context is not None else message


def _stopped(stop: BaseException) -> int:
    code = stop.code if isinstance(stop, _Interruption) else EXIT_INTERRUPTED
    word = "terminated" if code == EXIT_TERMINATED else "interrupted"
    resumable = isinstance(stop, _Interruption) and stop.resumable
    return _fail(f"{word}; the same command with --resume goes on" if resumable else word, code=code)


def _fail(message: str, *, code: int) -> int:
    speaks, code = company.agree_on(code)
    if speaks:
        sys.stderr.write(f"p2d: error: {' '.join(message.split())}\n")
    return code


def _show_bug(error: Exception) -> int:
    speaks, code = company.agree_on(EXIT_BUG)
    if speaks:
        traceback.print_exception(error)
    return code


def _abandon_standard_output() -> None:
    """Point standard output at nothing, so that the interpreter's last flush finds no closed pipe."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, sys.stdout.fileno())
    os.close(nothing)
