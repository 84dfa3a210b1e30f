"""How much memory one engine takes: the peak that building it and running it adds to a fresh process."""

import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil

from prune2deploy.bench.jobs import BuildJob
from prune2deploy.bench.machine.nvml import open_gpu
from prune2deploy.bench.process import run_worker
from prune2deploy.bench.subjects import BenchRequest, Subject
from prune2deploy.bench.timed.inputs import input_buffers
from prune2deploy.engines.engine import BuildOptions, Engine, TensorRTOptions
from prune2deploy.engines.onnx_file import read_onnx_file
from prune2deploy.errors import EngineError
from prune2deploy.progress import SILENT, Progress

REPETITIONS = 3
WORKER = (sys.executable, "-P", "-m", "prune2deploy.bench.aside.memory_worker")

_RUNS = 3
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"

Meter = Callable[[], int]
"""How many bytes the peak lies above where it began."""


def measure_memory(
    request: BenchRequest,
    subjects: Sequence[Subject],
    cpus: tuple[int, ...] | None,
    *,
    repetitions: int = REPETITIONS,
    progress: Progress = SILENT,
) -> dict[str, tuple[int, ...]]:
    """The peak memory of each "variant/precision" in as many fresh processes, in bytes. Shape: -> (repetitions,).

    ``subjects`` are those of the request to measure; without any nothing is done.

    Raises:
        P2DError: as ``process.run_worker``.
    """
    found: dict[str, tuple[int, ...]] = {}
    if not subjects:
        return found
    with progress.task("Measuring memory", total=repetitions * len(subjects)) as task:
        for subject in subjects:
            # Without the evaluation set, which would lie in the same memory.
            alone = replace(request, subjects=(subject,), evaluation=None, claim=None, claims=())
            peaks = []
            for repetition in range(repetitions):
                job = BuildJob(request=alone, build=repetition, cpus=cpus, budget_seconds=None)
                document, _ = run_worker(job, command=WORKER, tell=_silent)
                peaks.append(int(document["memory_bytes"]))
                task.advance()
            found[f"{subject.variant}/{subject.precision}"] = tuple(peaks)
    return found


def peak_memory_bytes(job: BuildJob, engine: Engine) -> int:
    """Build the engine of the job's first subject in this process, run it at every batch size, and tell the peak.

    That of the GPU for engines that run there, else that of this process; at least 1. The engine's library is loaded
    before, and the inputs are made before: neither counts. The engine's threads, workspace, weights (twice where it
    rearranges them) and outputs do.

    Raises:
        EngineError: it cannot be built, or the GPU does not tell its memory.
        InputError: a file or an input does not fit.
    """
    request, subject = job.request, job.request.subjects[0]
    device = engine.availability().device or ""
    infos = read_onnx_file(subject.onnx_path).inputs
    where = str(subject.onnx_path)
    buffers = [
        input_buffers(
            infos, batch=batch, seed=request.options.seed, real_inputs=None, where=where, shapes=request.shapes
        )[0]
        for batch in request.batches
    ]
    options = BuildOptions(
        precision=subject.precision,
        batches=request.batches,
        threads=request.options.threads,
        cache=None,
        bundle=subject.bundle,
        shapes=request.shapes,
        tensorrt=TensorRTOptions(timing_cache=False),
    )
    with host_meter() if device.startswith("CPU") else gpu_meter() as meter:
        built = engine.build(subject.onnx_path, options)
        try:
            peak = meter()
            for arrays in buffers:
                built.bind(arrays)
                for _ in range(_RUNS):
                    built.run()
                built.read()
                peak = max(peak, meter())
        finally:
            built.close()
    return max(peak, 1)


@contextmanager
def host_meter() -> Iterator[Meter]:
    """Measure how far this process's resident memory rises above what it is now, from Linux's own high-water mark.

    Where that mark cannot be set back (other systems, some containers), the peak since the process began is taken: it
    misses what stays below what loading the library once took.
    """
    try:
        _CLEAR_REFS.write_text(_RESET_PEAK, encoding="ascii")
        before = _high_water_bytes()
    except (OSError, ValueError):
        before = psutil.Process().memory_info().rss
        yield lambda: _largest_bytes() - before
        return
    yield lambda: _high_water_bytes() - before


@contextmanager
def gpu_meter() -> Iterator[Meter]:
    """Measure how far the memory in use on the GPU lies above what it is now.

    Raises:
        EngineError: there is no GPU that could be told from others, or it does not tell.
    """
    gpu = open_gpu()
    before = None if gpu is None else gpu.memory_used_bytes()
    if gpu is None or before is None:
        raise EngineError(
            "the GPU does not tell how much of its memory is used",
            where="--memory",
            hint="leave it out, and claim no memory_mb",
        )

    def risen() -> int:
        used = gpu.memory_used_bytes()
        return 0 if used is None else used - before

    try:
        yield risen
    finally:
        gpu.close()


def _high_water_bytes() -> int:
    """The largest resident memory since the mark was set back."""
    for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name == "VmHWM":
            return int(value.split()[0]) * 1024
    raise ValueError("VmHWM is not told")


def _largest_bytes() -> int:
    """The largest resident memory since the process began; macOS counts it in bytes, Linux in KiB."""
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def _silent(fraction: float, text: str) -> None:
    """A worker that tells nothing."""
