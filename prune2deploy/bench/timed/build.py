"""One build: fresh engines for all variants, timed in interleaved rounds. Runs inside the worker process."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

from prune2deploy.bench.aside.energy import ENERGY_BUILDS, energies_of
from prune2deploy.bench.aside.profiling import profiles_of
from prune2deploy.bench.jobs import BuildJob, Tell
from prune2deploy.bench.machine.signals import SignalReader
from prune2deploy.bench.samples import MINIMUM_ROUNDS, BuildSamples
from prune2deploy.bench.subjects import BenchRequest, Subject
from prune2deploy.bench.timed.gate import not_finite, pass_gate
from prune2deploy.bench.timed.inputs import input_buffers, shapes_at
from prune2deploy.bench.timed.rounds import Runner, TimedCell, time_rounds, within
from prune2deploy.bench.timed.schedule import Slot, build_order, slots_for
from prune2deploy.engines.accuracy import engine_answers
from prune2deploy.engines.census import Census, require_layers_of
from prune2deploy.engines.engine import BuildOptions, Engine, TensorRTOptions
from prune2deploy.evaluation import EvaluationSet


def measure_build(
    job: BuildJob, engine: Engine, *, tell: Tell, clock: Callable[[], float] = time.monotonic
) -> BuildSamples:
    """Build every variant (the baseline twice), check parity, warm up, and time all in interleaved rounds.

    Only the engines of one precision live at a time. With a budget, rounds are given up, down to three a cell. What is
    measured aside (profiles, energy, accuracy) comes after its rounds and does not count against the budget.

    Raises:
        ParityError: an engine does not compute what its model computes; it is not timed.
        EngineError: an engine cannot be built, or holds no layer of the precision that it is measured as.
        InputError: a file or an input does not fit.
    """
    request = job.request
    evaluation = EvaluationSet.load(request.evaluation) if request.evaluation is not None else None
    findings = _Findings(job=job, clock=clock, started=clock())
    for precision in request.precisions:
        with ExitStack() as stack:
            runners = _build_all(job, engine, precision, evaluation, stack)
            findings.engines += [runner.facts for runner in runners]
            reader = stack.enter_context(closing(SignalReader(job.cpus, gpu=_runs_on_gpu(engine))))
            for batch in request.batches:
                _bind_inputs(runners, request, batch, evaluation)
                _measure_cell(findings, runners, reader, batch, tell)
            if job.build == 0:
                with findings.aside():
                    _look_closer(findings, runners, evaluation)
    return findings.samples()


@dataclass(slots=True, kw_only=True)
class _Findings:
    """What a build has found so far. ``aside_seconds`` went into what does not count against its budget."""

    job: BuildJob
    clock: Callable[[], float]
    started: float
    timings: list[TimedCell] = field(default_factory=list)
    engines: list[Mapping[str, Any]] = field(default_factory=list)
    answers: dict[str, str] = field(default_factory=dict)
    profiles: list[Mapping[str, Any]] = field(default_factory=list)
    energies: list[Mapping[str, Any]] = field(default_factory=list)
    aside_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """How long the build has taken, without what was measured aside."""
        return self.clock() - self.started - self.aside_seconds

    @property
    def cell_total(self) -> int:
        """How many precisions and batch sizes there are to time."""
        return len(self.job.request.precisions) * len(self.job.request.batches)

    @property
    def seconds_for_next_cell(self) -> float | None:
        """An equal share of what is left of the budget; None without one."""
        if self.job.budget_seconds is None:
            return None
        return (self.job.budget_seconds - self.seconds) / (self.cell_total - len(self.timings))

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Do something beside the timed rounds."""
        begun = self.clock()
        try:
            yield
        finally:
            self.aside_seconds += self.clock() - begun

    def samples(self) -> BuildSamples:
        """All of it, as it is kept."""
        seconds = self.seconds
        in_rounds = sum(sum(timing.round_seconds) for timing in self.timings)
        in_fewest_rounds = sum(max(timing.round_seconds) * MINIMUM_ROUNDS for timing in self.timings)
        return BuildSamples(
            build=self.job.build,
            cpus=self.job.cpus,
            cells=tuple(timing.cell for timing in self.timings),
            engines=tuple(self.engines),
            accuracies={key: right.count("1") / len(right) for key, right in self.answers.items()},
            answers=self.answers,
            profiles=tuple(self.profiles),
            energies=tuple(self.energies),
            seconds=seconds,
            minimum_seconds=min(seconds, seconds - in_rounds + in_fewest_rounds),
        )


def _measure_cell(findings: _Findings, runners: list[Runner], reader: SignalReader, batch: int, tell: Tell) -> None:
    """Time what is bound, and what is asked for beside."""
    job, done, total = findings.job, len(findings.timings), findings.cell_total
    if job.build == 0 and job.request.evaluation is None:
        _look_at_outputs(runners)
    findings.timings.append(
        time_rounds(
            runners,
            batch,
            options=job.request.options,
            orders_of=(job.build, done),
            seconds=findings.seconds_for_next_cell,
            cpus=job.request.options.threads,
            sample=reader.sample,
            tell=within(tell, before=done / total, share=1 / total),
        )
    )
    if job.build < ENERGY_BUILDS and job.request.options.energy:
        with findings.aside():
            findings.energies += energies_of(runners, reader, batch=batch)


def _look_closer(findings: _Findings, runners: list[Runner], evaluation: EvaluationSet | None) -> None:
    """Accuracies and profiles: after the rounds of all batch sizes, so that no timed run follows a profiled one."""
    request = findings.job.request
    if evaluation is not None:
        findings.answers |= _answers(runners, evaluation, max(request.batches))
    if not request.options.profile:
        return
    for timing in findings.timings[-len(request.batches) :]:
        _bind_inputs(runners, request, timing.cell.batch, evaluation)
        findings.profiles += profiles_of(runners, timing.cell, request.options.granules)


def _runs_on_gpu(engine: Engine) -> bool:
    return not (engine.availability().device or "CPU").startswith("CPU")


def _build_all(
    job: BuildJob, engine: Engine, precision: str, evaluation: EvaluationSet | None, stack: ExitStack
) -> list[Runner]:
    request = job.request
    subjects = {subject.variant: subject for subject in request.subjects_at(precision)}
    slots = slots_for(tuple(subjects), baseline=request.baseline)
    built: dict[Slot, Runner] = {}
    for index in build_order(len(slots), seed=request.options.seed, build=job.build):
        slot = slots[index]
        built[slot] = _build_one(job, engine, slot, subjects[slot.variant], evaluation, stack)
    return [built[slot] for slot in slots]


def _build_one(
    job: BuildJob, engine: Engine, slot: Slot, subject: Subject, evaluation: EvaluationSet | None, stack: ExitStack
) -> Runner:
    request, precision = job.request, subject.precision
    options = BuildOptions(
        precision=precision,
        batches=request.batches,
        threads=request.options.threads,
        cache=None,
        bundle=subject.bundle,
        shapes=request.shapes,
        # Builds that share what earlier ones measured differ less than builds do.
        tensorrt=TensorRTOptions(timing_cache=False),
    )
    begun = time.monotonic()
    ready = engine.build(subject.onnx_path, options)
    stack.callback(ready.close)
    build_seconds = time.monotonic() - begun
    for batch in request.batches:
        shapes_at(ready.inputs, batch=batch, where=str(subject.onnx_path), shapes=request.shapes)
    passed = pass_gate(ready, evaluation, subject, request.batches)
    details = ready.inspect() if job.build == 0 and slot.copy == 0 else {}
    if "census" in details:
        require_layers_of(Census.from_document(details["census"]), precision, where=f"{slot.variant} on {engine.name}")
    return Runner(
        slot=slot,
        engine=ready,
        precision=precision,
        where=str(subject.onnx_path),
        facts={
            "variant": slot.variant,
            "copy": slot.copy,
            "precision": precision,
            "build_seconds": build_seconds,
            "parity_max_error": passed.error,
            "agreement": passed.agreement,
            "details": details,
        },
    )


def _bind_inputs(runners: list[Runner], request: BenchRequest, batch: int, evaluation: EvaluationSet | None) -> None:
    for runner in runners:
        runner.buffers = input_buffers(
            runner.engine.inputs,
            batch=batch,
            seed=request.options.seed,
            real_inputs=evaluation.inputs if evaluation is not None else None,
            where=runner.where,
            shapes=request.shapes,
        )


def _look_at_outputs(runners: list[Runner]) -> None:
    """Of networks that nothing says the outputs of, note which ones hold what is no number."""
    for runner in runners:
        if runner.slot.copy == 0:
            runner.engine.bind(runner.buffers[0])
            runner.engine.run()
            found = dict.fromkeys([*runner.facts.get("not_finite", ()), *not_finite(runner.engine.read())])
            runner.facts["not_finite"] = list(found)


def _answers(runners: list[Runner], evaluation: EvaluationSet, batch: int) -> dict[str, str]:
    """For each variant one character an image: 1 where the engine names its label, else 0."""
    found = {}
    for runner in runners:
        if runner.slot.copy == 0:
            answers = engine_answers(runner.engine, evaluation, batch)
            if answers is not None:
                found[f"{runner.slot.variant}/{runner.precision}"] = "".join("1" if right else "0" for right in answers)
    return found
