"""A whole benchmark: builds in fresh processes, one after the other, then the verdicts."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from prune2deploy.bench.aside.memory import measure_memory
from prune2deploy.bench.claims.targets import memory_subjects, require_measured
from prune2deploy.bench.jobs import BuildJob, Tell
from prune2deploy.bench.machine.affinity import pick_cpus
from prune2deploy.bench.machine.environment import describe_environment
from prune2deploy.bench.process import run_build
from prune2deploy.bench.result import BenchResult
from prune2deploy.bench.samples import BuildSamples
from prune2deploy.bench.statistics.stopping import affordable_builds, builds_wanted
from prune2deploy.bench.subjects import BenchRequest
from prune2deploy.bench.summary import summarise
from prune2deploy.engines.engine import Engine
from prune2deploy.engines.registry import engine_named
from prune2deploy.errors import EngineError, InputError
from prune2deploy.progress import SILENT, Progress, Task

_OVERRUN_SECONDS = 60.0
_SECONDS_WITHOUT_LIMIT = 600.0


def run_bench(request: BenchRequest, *, progress: Progress = SILENT) -> BenchResult:
    """Measure all subjects on the request's engine and judge the claims.

    Nothing is written: ``result.write_result`` stores what is returned. Ctrl-C ends the running process and passes on.

    Raises:
        EngineError: the engine is not usable here, or a measuring process crashed.
        ParityError: an engine does not compute what its model computes; nothing was timed.
        InputError: a file is missing or is no ONNX file, an input does not fit the batch, or a claim is about what is
            not measured.
    """
    engine = engine_named(request.engine)
    request = replace(request, engine=engine.name)
    device = _usable_device(request, engine)
    require_measured(request, device=device)
    # A GPU engine's driver runs threads of its own; confining them to the launching thread's CPU would slow it down.
    cpus = pick_cpus(request.options.threads) if device.startswith("CPU") else None
    environment = describe_environment(threads=request.options.threads, cpus=cpus)
    # First, because it takes seconds and can be refused.
    memory = measure_memory(request, memory_subjects(request), cpus, progress=progress)
    builds = _measure_builds(request, cpus, progress)
    builds[0] = replace(builds[0], memory_bytes=memory)
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
    progress: Progress,
    *,
    run: Callable[..., BuildSamples] = run_build,
    clock: Callable[[], float] = time.monotonic,
) -> list[BuildSamples]:
    """A pilot of ``options.builds`` builds, then as many more as it asks for and the time allows.

    Without a time limit the pilot is always whole; what it asks for has ten minutes from the start.
    """
    names = ", ".join(dict.fromkeys(subject.variant for subject in request.subjects))
    session = _Session(request=request, cpus=cpus, run=run, clock=clock, started=clock())
    options = request.options
    with progress.task(f"Measuring {names} on {request.engine}", total=options.builds) as task:
        session.measure_pilot(task)
    pilot = len(session.builds)
    if pilot < options.builds:
        return session.builds
    further = session.affordable(builds_wanted(request, session.builds)) - pilot
    if further > 0:
        with progress.task(f"Narrowing the intervals to {options.half_width:.1%}", total=further) as task:
            session.measure_further(further, task)
    return session.builds


@dataclass(slots=True, kw_only=True)
class _Session:
    """The builds so far, and what they took."""

    request: BenchRequest
    cpus: tuple[int, ...] | None
    run: Callable[..., BuildSamples]
    clock: Callable[[], float]
    started: float
    builds: list[BuildSamples] = field(default_factory=list)
    startup_seconds: float = 0.0

    def measure_pilot(self, task: Task) -> None:
        """The builds asked for. Under a time limit rounds are given up first, then builds."""
        options = self.request.options
        wanted = options.builds
        while len(self.builds) < wanted:
            budget = None
            if options.max_seconds is not None:
                budget = self.seconds_left / (wanted - len(self.builds)) - self.startup_seconds
            self._measure(task, number=len(self.builds) + 1, total=wanted, budget_seconds=budget)
            if options.max_seconds is not None:
                wanted = affordable_builds(
                    done=len(self.builds),
                    wanted=wanted,
                    remaining_seconds=self.seconds_left,
                    seconds_each=max(build.minimum_seconds for build in self.builds) + self.startup_seconds,
                )

    def measure_further(self, further: int, task: Task) -> None:
        """Builds after the pilot, all of the pilot's kind: with fewer rounds their spread would be another."""
        pilot = len(self.builds)
        for number in range(1, further + 1):
            if number > 1 and self.affordable(pilot + number) < pilot + number:
                break
            self._measure(task, number=number, total=further, budget_seconds=None)

    def affordable(self, wanted: int) -> int:
        """How many of ``wanted`` builds, whole ones, end in time."""
        return affordable_builds(
            done=len(self.builds),
            wanted=wanted,
            remaining_seconds=self.seconds_left,
            seconds_each=max(build.seconds for build in self.builds) + self.startup_seconds,
        )

    @property
    def seconds_left(self) -> float:
        """Seconds until the limit, or until that which holds for builds after the pilot."""
        limit = self.request.options.max_seconds
        return (_SECONDS_WITHOUT_LIMIT if limit is None else limit) - (self.clock() - self.started)

    def _measure(self, task: Task, *, number: int, total: int, budget_seconds: float | None) -> None:
        begun = self.clock()
        tell = _teller(task, number=number, total=total)
        bounded = self.request.options.max_seconds is not None
        samples = self.run(
            BuildJob(request=self.request, build=len(self.builds), cpus=self.cpus, budget_seconds=budget_seconds),
            tell=tell,
            timeout_seconds=self.seconds_left + _OVERRUN_SECONDS if bounded else None,
        )
        tell(1.0, "done")
        self.builds.append(samples)
        self.startup_seconds = max(self.startup_seconds, self.clock() - begun - samples.seconds)


def _teller(task: Task, *, number: int, total: int) -> Tell:
    """Turn fractions of one build, which only grow, into steps of the task."""
    reached = 0.0

    def tell(fraction: float, text: str) -> None:
        nonlocal reached
        task.advance(max(0.0, fraction - reached))
        reached = max(reached, fraction)
        task.describe(f"build {number} of {total}, {text}")

    return tell
