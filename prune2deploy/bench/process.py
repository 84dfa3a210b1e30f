"""Running one build in a fresh process, and bringing its samples or its error back."""

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from prune2deploy import errors
from prune2deploy.bench.jobs import BuildJob, Tell
from prune2deploy.bench.samples import BuildSamples
from prune2deploy.errors import EngineError, P2DError
from prune2deploy.storage import read_json, write_json

WORKER = (sys.executable, "-P", "-m", "prune2deploy.bench.timed.worker")

_GRACE_SECONDS = 5.0
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def run_build(
    job: BuildJob, *, tell: Tell, timeout_seconds: float | None = None, command: Sequence[str] = WORKER
) -> BuildSamples:
    """Run one build in a process of its own and wait for it. The process never outlives this call.

    Raises:
        P2DError: as ``run_worker``.
    """
    document, where = run_worker(job, command=command, tell=tell, timeout_seconds=timeout_seconds)
    return BuildSamples.from_document(document, where=where)


def run_worker(
    job: BuildJob, *, command: Sequence[str], tell: Tell, timeout_seconds: float | None = None
) -> tuple[Mapping[str, Any], str]:
    """Hand a job to ``command REQUEST.json RESULT.json`` and wait for it; return its result and where that lay.

    Raises:
        P2DError: whatever expected error the job ended with, as its own class.
        EngineError: the process crashed (its last line is told) or ran past ``timeout_seconds``.
    """
    with tempfile.TemporaryDirectory(prefix="p2d-bench-") as folder:
        request_path, result_path = Path(folder) / "request.json", Path(folder) / "result.json"
        log_path = Path(folder) / "stderr.txt"
        write_json(request_path, job.to_document())
        with log_path.open("wb") as log:
            status, timed_out = _run(
                [*command, str(request_path), str(result_path)],
                log=log,
                threads=job.request.options.threads,
                timeout_seconds=timeout_seconds,
                tell=tell,
            )
        if timed_out:
            raise EngineError(
                f"one build did not finish within {timeout_seconds:.0f} s",
                where=f"bench on {job.request.engine}",
                hint="raise --max-seconds, or measure fewer batch sizes",
            )
        if not result_path.exists():
            raise EngineError(
                f"the measuring process died ({spell_status(status)}): {last_line(log_path)}",
                where=f"bench on {job.request.engine}",
                hint="run `p2d doctor`, and try another --engine",
            )
        document: Mapping[str, Any] = read_json(result_path)
        if "error" in document:
            raise error_from_document(document["error"])
        return document, str(result_path)


def _run(
    command: Sequence[str], *, log: IO[bytes], threads: int, timeout_seconds: float | None, tell: Tell
) -> tuple[int, bool]:
    """Exit status, and whether the time ran out. Ctrl-C reaches this process alone, which then ends the other."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=log,
        env=worker_environment(threads),
        start_new_session=True,
    )
    timed_out = threading.Event()

    def give_up() -> None:
        timed_out.set()
        process.kill()

    timer = threading.Timer(timeout_seconds, give_up) if timeout_seconds is not None else None
    try:
        if timer is not None:
            timer.start()
        if process.stdout is not None:
            _forward(process.stdout, tell)
        return process.wait(), timed_out.is_set()
    finally:
        if timer is not None:
            timer.cancel()
        end_process(process)


def worker_environment(threads: int) -> dict[str, str]:
    """The environment of a process that measures with so many threads: the libraries' own pools have no more."""
    return {**os.environ, **dict.fromkeys(_THREAD_VARIABLES, str(threads))}


def _forward(lines: Iterable[bytes], tell: Tell) -> None:
    """Pass progress on; anything else on that stream is chatter of a library."""
    for line in lines:
        try:
            message = json.loads(line)
            fraction, text = float(message["fraction"]), str(message["text"])
        except (ValueError, TypeError, KeyError):
            continue
        tell(fraction, text)


def end_process(process: subprocess.Popen[bytes]) -> None:
    """End a process if it still runs: asking first, and waiting a few seconds."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stdout is not None:
        process.stdout.close()


def error_from_document(document: Mapping[str, Any]) -> P2DError:
    """The error that a worker wrote with ``error_to_document``."""
    kind = getattr(errors, str(document["type"]), None)
    if not (isinstance(kind, type) and issubclass(kind, P2DError)):
        kind = EngineError
    return kind(document["what"], where=document["where"], hint=document["hint"])


def spell_status(status: int) -> str:
    """How a process ended, in words."""
    return f"signal {-status}" if status < 0 else f"exit status {status}"


def last_line(path: Path) -> str:
    """The last words of a process whose standard error went to ``path``."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
