"""One build: fresh engines for all variants, timed in interleaved rounds. Runs inside the worker process."""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from prune2deploy.bench.environment import sample_signals
from prune2deploy.bench.gate import pass_gate
from prune2deploy.bench.inputs import input_buffers, shapes_at
from prune2deploy.bench.jobs import BuildJob, Tell
from prune2deploy.bench.samples import Block, BuildSamples, Cell
from prune2deploy.bench.schedule import Slot, build_order, round_orders, slots_for
from prune2deploy.bench.subjects import BenchRequest
from prune2deploy.bench.timing import collection_paused, iterations_for, time_block, warm_up
from prune2deploy.engines.accuracy import engine_accuracy
from prune2deploy.engines.census import Census, require_layers_of
from prune2deploy.engines.engine import Array, BuildOptions, BuiltEngine, Engine, TensorRTOptions
from prune2deploy.evaluation import EvaluationSet

MINIMUM_ROUNDS = 3
_FEWEST_ITERATIONS_TO_SETTLE = 8


@dataclass(slots=True, kw_only=True)
class _Runner:
    """One built engine with the inputs it takes in turn."""

    slot: Slot
    engine: BuiltEngine
    where: str
    facts: Mapping[str, Any]
    buffers: tuple[Mapping[str, Array], ...] = ()
    iterations: int = 1

    def time(self, turn: int) -> tuple[int, ...]:
        """One block, on the next inputs.

        The untimed run brings the weights back into the caches that the others used meanwhile. Where a block holds
        only a few runs, it and the binding (which may run, too) would cost more than they steady.
        """
        if self.iterations >= _FEWEST_ITERATIONS_TO_SETTLE:
            self.engine.bind(self.buffers[turn % len(self.buffers)])
            self.engine.run()
        return tuple(time_block(self.engine.run, self.iterations))


@dataclass(frozen=True, slots=True, kw_only=True)
class _TimedCell:
    cell: Cell
    round_seconds: tuple[float, ...]


def measure_build(
    job: BuildJob, engine: Engine, *, tell: Tell, clock: Callable[[], float] = time.monotonic
) -> BuildSamples:
    """Build every variant (the baseline twice), check parity, warm up, and time all in interleaved rounds.

    Only the engines of one precision live at a time. With a budget, rounds are given up, down to three a cell.

    Raises:
        ParityError: an engine does not compute what its model computes; it is not timed.
        EngineError: an engine cannot be built, or holds no layer of the precision that it is measured as.
        InputError: a file or an input does not fit.
    """
    request, started = job.request, clock()
    evaluation = EvaluationSet.load(request.evaluation) if request.evaluation is not None else None
    timings: list[_TimedCell] = []
    engines: list[Mapping[str, Any]] = []
    accuracies: dict[str, float] = {}
    aside_seconds = 0.0
    cell_total = len(request.precisions) * len(request.batches)
    for precision in request.precisions:
        with ExitStack() as stack:
            runners = _build_all(job, engine, precision, evaluation, stack)
            engines += [runner.facts for runner in runners]
            for batch in request.batches:
                seconds = None
                if job.budget_seconds is not None:
                    spent = clock() - started - aside_seconds
                    seconds = (job.budget_seconds - spent) / (cell_total - len(timings))
                share = (len(timings) / cell_total, 1 / cell_total)
                _bind_inputs(runners, request, batch, evaluation)
                timings.append(
                    _measure_cell(job, runners, batch, number=len(timings), seconds=seconds, share=share, tell=tell)
                )
            if job.build == 0 and evaluation is not None:
                begun = clock()
                accuracies |= _accuracies(runners, evaluation, max(request.batches))
                aside_seconds += clock() - begun
    seconds_total = clock() - started - aside_seconds
    in_rounds = sum(sum(timing.round_seconds) for timing in timings)
    in_fewest_rounds = sum(max(timing.round_seconds) * MINIMUM_ROUNDS for timing in timings)
    return BuildSamples(
        build=job.build,
        cpus=job.cpus,
        cells=tuple(timing.cell for timing in timings),
        engines=tuple(engines),
        accuracies=accuracies,
        seconds=seconds_total,
        minimum_seconds=min(seconds_total, seconds_total - in_rounds + in_fewest_rounds),
    )


def _build_all(
    job: BuildJob, engine: Engine, precision: str, evaluation: EvaluationSet | None, stack: ExitStack
) -> list[_Runner]:
    request = job.request
    subjects = {subject.variant: subject for subject in request.subjects_at(precision)}
    slots = slots_for(tuple(subjects), baseline=request.baseline)
    built: dict[Slot, _Runner] = {}
    for index in build_order(len(slots), seed=request.options.seed, build=job.build):
        slot = slots[index]
        subject = subjects[slot.variant]
        options = BuildOptions(
            precision=precision,
            batches=request.batches,
            threads=request.options.threads,
            cache=None,
            bundle=subject.bundle,
            # Builds that share what earlier ones measured differ less than builds do.
            tensorrt=TensorRTOptions(timing_cache=False),
        )
        begun = time.monotonic()
        ready = engine.build(subject.onnx_path, options)
        stack.callback(ready.close)
        build_seconds = time.monotonic() - begun
        for batch in request.batches:
            shapes_at(ready.inputs, batch=batch, where=str(subject.onnx_path))
        passed = pass_gate(ready, evaluation, subject, request.batches)
        details = ready.inspect() if job.build == 0 and slot.copy == 0 else {}
        if "census" in details:
            require_layers_of(
                Census.from_document(details["census"]), precision, where=f"{slot.variant} on {engine.name}"
            )
        built[slot] = _Runner(
            slot=slot,
            engine=ready,
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
    return [built[slot] for slot in slots]


def _bind_inputs(runners: list[_Runner], request: BenchRequest, batch: int, evaluation: EvaluationSet | None) -> None:
    for runner in runners:
        runner.buffers = input_buffers(
            runner.engine.inputs,
            batch=batch,
            seed=request.options.seed,
            real_inputs=evaluation.inputs if evaluation is not None else None,
            where=runner.where,
        )


def _measure_cell(
    job: BuildJob,
    runners: list[_Runner],
    batch: int,
    *,
    number: int,
    seconds: float | None,
    share: tuple[float, float],
    tell: Tell,
) -> _TimedCell:
    """Warm up and run the rounds of one batch size. ``share`` is (fraction before, fraction of) the build."""
    options, precision = job.request.options, str(runners[0].facts["precision"])
    begun = time.monotonic()
    tell(share[0], f"{precision}, batch {batch}: warming up")
    blocks: list[Block] = []
    warmup: list[Mapping[str, Any]] = []
    signals = []
    round_seconds: list[float] = []
    with collection_paused():
        for runner in runners:
            runner.engine.bind(runner.buffers[0])
            warmed = warm_up(runner.engine.run, block_seconds=options.block_seconds)
            runner.iterations = iterations_for(warmed.latency_ns, options.block_seconds)
            warmup.append({**asdict(runner.slot), "medians_ns": warmed.medians_ns, "steady": warmed.steady})
        orders = round_orders(len(runners), seed=options.seed, build=job.build, cell=number)
        for turn, order in enumerate(islice(orders, options.rounds)):
            elapsed = time.monotonic() - begun
            if seconds is not None and turn >= MINIMUM_ROUNDS and elapsed + max(round_seconds) > seconds:
                break
            tell(share[0] + share[1] * turn / options.rounds, f"{precision}, batch {batch}")
            signals.append(sample_signals())
            round_begun = time.monotonic()
            for position, index in enumerate(order):
                runner = runners[index]
                blocks.append(
                    Block(
                        variant=runner.slot.variant,
                        copy=runner.slot.copy,
                        round=turn,
                        position=position,
                        samples_ns=runner.time(turn),
                    )
                )
            round_seconds.append(time.monotonic() - round_begun)
    signals.append(sample_signals())
    cell = Cell(precision=precision, batch=batch, blocks=tuple(blocks), warmup=tuple(warmup), signals=tuple(signals))
    return _TimedCell(cell=cell, round_seconds=tuple(round_seconds))


def _accuracies(runners: list[_Runner], evaluation: EvaluationSet, batch: int) -> dict[str, float]:
    found = {}
    for runner in runners:
        if runner.slot.copy == 0:
            accuracy = engine_accuracy(runner.engine, evaluation, batch)
            if accuracy is not None:
                found[f"{runner.slot.variant}/{runner.facts['precision']}"] = accuracy
    return found
