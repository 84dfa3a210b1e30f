"""``p2d bench``: time the variants of a run, or any ONNX files, against each other."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from prune2deploy.bench.claims.file import read_claims
from prune2deploy.bench.claims.kinds import ENERGY, Claim
from prune2deploy.bench.claims.verdicts import exit_code
from prune2deploy.bench.measure import run_bench
from prune2deploy.bench.result import write_result
from prune2deploy.bench.subjects import DEFAULT_BATCHES, BenchOptions, Subject, require_batches
from prune2deploy.bench.subjects import BenchRequest as Measurement
from prune2deploy.budget.alignment import granule_for
from prune2deploy.engines.engine import PRECISIONS
from prune2deploy.engines.registry import AUTO
from prune2deploy.pipeline.bare_files import bare_files
from prune2deploy.pipeline.compare import gravest, read_baseline
from prune2deploy.pipeline.measurable import exported_run, usable_engine
from prune2deploy.pipeline.outcomes import BenchOutcome
from prune2deploy.pipeline.requests import BenchRequest
from prune2deploy.progress import SILENT, Progress
from prune2deploy.report.across_tables import baseline_tables, changes_in_words
from prune2deploy.report.claim_words import verdict_line
from prune2deploy.report.measured_tables import result_tables
from prune2deploy.report.profile_tables import profile_tables
from prune2deploy.run import RunFolder


def run_bench_command(request: BenchRequest, progress: Progress = SILENT) -> BenchOutcome:
    """Measure, judge the claims, and keep the result document with its raw samples.

    The result of a run lies in its ``bench`` folder; that of bare ONNX files in ``request.out``, if given.

    Raises:
        EngineError: the engine is not usable here, or computes no layer in the precision that is to be measured.
        InputError: a file is missing, no ONNX file or of another precision, the engine lacks the precision, or a claim
            is not understood or about what is not measured; or the result to compare with cannot be compared with.
        ParityError: an engine does not compute what its model computes; nothing was timed.
    """
    claims = () if request.claims is None else read_claims(request.claims)
    baseline = None if request.baseline is None else read_baseline(request.baseline)
    options = _options(request, claims)
    # Before anything is exported.
    require_batches(options.scenario, request.batches or DEFAULT_BATCHES[options.scenario])
    if request.engine != AUTO:
        usable_engine(request.engine)
    found = _named_files(request, options) if request.onnx_files else _variants(request, options, progress)
    measurement = Measurement(
        subjects=found.subjects,
        engine=found.engine,
        batches=found.batches,
        shapes=request.shapes,
        evaluation=found.evaluation,
        claim=request.claim,
        claims=claims,
        options=replace(options, granules=_granules(found.engine)),
    )
    if baseline is not None:
        baseline.require_fit(measurement)
    result = run_bench(measurement, progress=progress)
    result = replace(result, notes=(*found.notes, *result.notes))
    code, verdicts = exit_code(result.claims), [verdict_line(claim) for claim in result.claims]
    if baseline is not None:
        result, comparison = baseline.compared_with(result, tolerance=request.baseline_tolerance)
        code = gravest(code, comparison.exit_code)
        verdicts += changes_in_words(comparison)
    file = write_result(result, found.folder)[0] if found.folder is not None else None
    return BenchOutcome(
        document=result.to_document(),
        exit_code=code,
        tables=(*result_tables(result), *baseline_tables(result), *profile_tables(result)),
        verdicts=tuple(verdicts),
        file=file,
        notes=tuple(result.notes),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What a request is about: ``folder`` is where the result goes, None for nowhere."""

    subjects: tuple[Subject, ...]
    engine: str
    batches: tuple[int, ...]
    evaluation: Path | None
    folder: Path | None
    notes: tuple[str, ...] = ()


def _named_files(request: BenchRequest, options: BenchOptions) -> _Found:
    files = bare_files(
        request.onnx_files,
        precisions=request.precisions,
        batches=request.batches,
        shapes=request.shapes,
        default_batches=DEFAULT_BATCHES[options.scenario],
    )
    engine = usable_engine(request.engine, [subject.precision for subject in files.subjects])
    return _Found(
        subjects=files.subjects,
        engine=engine.name,
        batches=files.batches,
        evaluation=None,
        folder=request.out,
        notes=files.notes,
    )


def _variants(request: BenchRequest, options: BenchOptions, progress: Progress) -> _Found:
    precisions = request.precisions or ("fp32",)
    engine = usable_engine(request.engine, precisions)
    run = exported_run(request.run, precisions, progress, engine=engine.name)
    return _Found(
        subjects=_run_subjects(run, precisions),
        engine=engine.name,
        batches=request.batches or DEFAULT_BATCHES[options.scenario],
        evaluation=run.evaluation_path,
        folder=request.out or run.bench_path,
    )


def _granules(engine: str) -> dict[str, int]:
    """The widths that an engine likes multiples of, by precision."""
    return {precision: granule_for(engine, precision) for precision in PRECISIONS}


def usable_cores() -> int:
    """Physical cores that this process may use."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(min(allowed, psutil.cpu_count(logical=False) or allowed), 1)


def _options(request: BenchRequest, claims: tuple[Claim, ...]) -> BenchOptions:
    """How to measure; what a claim is about is measured without being asked for otherwise."""
    defaults, claimed = BenchOptions(), {claim.kind for claim in claims}
    return BenchOptions(
        threads=request.threads or usable_cores(),
        builds=request.builds or defaults.builds,
        half_width=request.half_width if request.builds is None else None,
        max_seconds=request.max_seconds,
        scenario=request.scenario or defaults.scenario,
        profile=request.profile,
        energy=request.energy or ENERGY in claimed,
        memory=request.memory,
        seed=request.seed,
    )


def _run_subjects(run: RunFolder, precisions: tuple[str, ...]) -> tuple[Subject, ...]:
    dense = run.manifest.variants.get("dense")
    return tuple(
        Subject(
            variant=variant.name,
            precision=precision,
            onnx_path=run.path / variant.onnx[precision].file,
            sha256=variant.onnx[precision].sha256,
            flops_fraction=variant.flops / dense.flops if dense is not None and dense.flops else None,
            parameters_fraction=variant.parameters / dense.parameters if dense is not None else None,
            accuracy=variant.accuracy,
            trained=variant.accuracy is not None or run.manifest.data is None,
            bundle=run.bundle_path(variant.name),
            agreement=variant.onnx[precision].checks.get("agreement"),
            file_bytes=variant.onnx[precision].bytes_total,
        )
        for precision in precisions
        for variant in run.manifest.variants.values()
    )
