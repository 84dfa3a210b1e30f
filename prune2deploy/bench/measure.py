"""A whole benchmark: builds in fresh processes, one after the other, then the verdicts."""

import math
import time
from collections.abc import Callable
from dataclasses import replace

from prune2deploy.bench.affinity import pick_cpus
from prune2deploy.bench.environment import describe_environment
from prune2deploy.bench.jobs import BuildJob, Tell
from prune2deploy.bench.process import run_build
from prune2deploy.bench.result import BenchResult
from prune2deploy.bench.samples import BuildSamples
from prune2deploy.bench.subjects import BenchRequest
from prune2deploy.bench.summary import summarise
from prune2deploy.engines.engine import Engine
from prune2deploy.engines.registry import engine_named
from prune2deploy.errors import EngineError, InputError
from prune2deploy.progress import SILENT, Progress, Task

_OVERRUN_SECONDS = 60.0


def run_bench(request: BenchRequest, *, progress: Progress = SILENT) -> BenchResult:
    """Measure all subjects on the request's engine and judge the claims.

    Nothing is written: ``result.write_result`` stores what is returned. Ctrl-C ends the running process and passes on.

    Raises:
        EngineError: the engine is not usable here, or a measuring process crashed.
        ParityError: an engine does not compute what its model computes; nothing was timed.
        InputError: a file is missing or is no ONNX file, or an input does not fit the batch.
    """
    engine = engine_named(request.engine)
    request = replace(request, engine=engine.name)
    device = _usable_device(request, engine)
    # A GPU engine's driver runs threads of its own; confining them to the launching thread's CPU would slow it down.
    cpus = pick_cpus(request.options.threads) if device.startswith("CPU") else None
    environment = describe_environment(threads=request.options.threads, cpus=cpus)
    names = ", ".join(dict.fromkeys(subject.variant for subject in request.subjects))
    with progress.task(f"Measuring {names} on {request.engine}", total=request.options.builds) as task:
        builds = _measure_builds(request, cpus, task)
    result = summarise(request, builds, environment=environment)
    for note in result.notes:
        progress.note(note)
    return result


def _usable_device(request: BenchRequest, engine: Engine) -> str:
    """What the engine runs on, if it runs here, has the precisions, and the files are there."""
    availability = engine.availability()
    if not availability.runs:
        raise EngineError(
            availability.reason or "is not usable here", where=f"--engine {request.engine}", hint=availability.hint
        )
    for precision in request.precisions:
        if precision not in engine.precisions:
            offered = ", ".join(sorted(engine.precisions))
            raise InputError(f"{request.engine} has no {precision}", where="--precision", hint=f"choose from {offered}")
    for subject in request.subjects:
        if not subject.onnx_path.is_file():
            raise InputError("is missing", where=str(subject.onnx_path), hint="run `p2d export` first")
    return availability.device or ""


def _measure_builds(
    request: BenchRequest,
    cpus: tuple[int, ...] | None,
    task: Task,
    *,
    run: Callable[..., BuildSamples] = run_build,
    clock: Callable[[], float] = time.monotonic,
) -> list[BuildSamples]:
    options, started = request.options, clock()
    builds: list[BuildSamples] = []
    wanted = options.builds
    startup_seconds = 0.0
    while len(builds) < wanted:
        remaining = None if options.max_seconds is None else options.max_seconds - (clock() - started)
        begun = clock()
        job = BuildJob(
            request=request,
            build=len(builds),
            cpus=cpus,
            budget_seconds=None if remaining is None else remaining / (wanted - len(builds)) - startup_seconds,
        )
        tell = _teller(task, number=len(builds) + 1, total=wanted)
        samples = run(
            job,
            tell=tell,
            timeout_seconds=None if remaining is None else remaining + _OVERRUN_SECONDS,
        )
        tell(1.0, "done")
        builds.append(samples)
        startup_seconds = max(startup_seconds, clock() - begun - samples.seconds)
        if options.max_seconds is not None:
            left = options.max_seconds - (clock() - started)
            wanted = affordable_builds(
                done=len(builds),
                wanted=wanted,
                remaining_seconds=left,
                seconds_each=max(build.minimum_seconds for build in builds) + startup_seconds,
            )
    return builds


def affordable_builds(*, done: int, wanted: int, remaining_seconds: float, seconds_each: float) -> int:
    """How many builds there will be in all, if each further one takes at least ``seconds_each``."""
    if seconds_each <= 0:
        return wanted
    return min(wanted, done + max(0, math.floor(remaining_seconds / seconds_each)))


def _teller(task: Task, *, number: int, total: int) -> Tell:
    """Turn fractions of one build, which only grow, into steps of the task."""
    reached = 0.0

    def tell(fraction: float, text: str) -> None:
        nonlocal reached
        task.advance(max(0.0, fraction - reached))
        reached = max(reached, fraction)
        task.describe(f"build {number} of {total}, {text}")

    return tell
