"""``p2d bench``: time the variants of a run, or any ONNX files, against each other."""

import os
from pathlib import Path

import psutil

from prune2deploy.bench.claim_kinds import ENERGY, MEMORY, Claim
from prune2deploy.bench.claims import exit_code
from prune2deploy.bench.claims_file import read_claims
from prune2deploy.bench.measure import run_bench
from prune2deploy.bench.result import BenchResult, write_result
from prune2deploy.bench.subjects import BenchOptions, Subject
from prune2deploy.bench.subjects import BenchRequest as Measurement
from prune2deploy.engines.onnx_file import read_onnx_file, require_precision, stored_precision
from prune2deploy.engines.registry import AUTO
from prune2deploy.errors import InputError
from prune2deploy.pipeline.measurable import exported_run, usable_engine
from prune2deploy.pipeline.outcomes import BenchOutcome
from prune2deploy.pipeline.requests import BenchRequest
from prune2deploy.progress import SILENT, Progress
from prune2deploy.report.claim_words import verdict_line
from prune2deploy.report.measured_tables import result_tables
from prune2deploy.run import RunFolder


def run_bench_command(request: BenchRequest, progress: Progress = SILENT) -> BenchOutcome:
    """Measure, judge the claims, and keep the result document with its raw samples.

    The result of a run lies in its ``bench`` folder; that of bare ONNX files in ``request.out``, if given.

    Raises:
        EngineError: the engine is not usable here, or computes no layer in the precision that is to be measured.
        InputError: a file is missing, no ONNX file or of another precision, the engine lacks the precision, or a claim
            is not understood or about what is not measured.
        ParityError: an engine does not compute what its model computes; nothing was timed.
    """
    claims = () if request.claims is None else read_claims(request.claims)
    if request.engine != AUTO:
        usable_engine(request.engine)
    if request.onnx_files:
        subjects, evaluation, folder = _bare_subjects(request.onnx_files, request.precisions), None, request.out
        engine = usable_engine(request.engine, [subject.precision for subject in subjects])
    else:
        precisions = request.precisions or ("fp32",)
        engine = usable_engine(request.engine, precisions)
        run = exported_run(request.run, precisions, progress, engine=engine.name)
        subjects = _run_subjects(run, precisions)
        evaluation, folder = run.evaluation_path, request.out or run.bench_path
    measurement = Measurement(
        subjects=subjects,
        engine=engine.name,
        batches=request.batches,
        evaluation=evaluation,
        claim=request.claim,
        claims=claims,
        options=_options(request, claims),
    )
    result = run_bench(measurement, progress=progress)
    file = write_result(result, folder)[0] if folder is not None else None
    return BenchOutcome(
        document=result.to_document(),
        exit_code=exit_code(result.claims),
        tables=result_tables(result),
        verdicts=tuple(verdict_line(claim) for claim in result.claims),
        file=file,
        notes=_notes(result),
    )


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
        memory=request.memory or MEMORY in claimed,
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


def _bare_subjects(files: tuple[Path, ...], precisions: tuple[str, ...] | None) -> tuple[Subject, ...]:
    """Files by name, each at its own precision unless one is asked for, which must then be theirs."""
    if precisions is not None and len(precisions) > 1:
        raise InputError(
            "files are measured at one precision each",
            where=f"--precision {','.join(precisions)}",
            hint="leave it out: every file states its own",
        )
    read = [read_onnx_file(file) for file in files]
    for file in read:
        require_precision(file, precisions[0] if precisions else stored_precision(file) or "fp32")
    stems = [file.stem for file in files]
    names = stems if len(set(stems)) == len(stems) else [str(file) for file in files]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError("is named twice", where=twice, hint="name each file once; the first is the base")
    return tuple(
        Subject(
            variant=name,
            precision=precisions[0] if precisions else stored_precision(file) or "fp32",
            onnx_path=file.path,
            sha256=file.sha256,
            file_bytes=file.bytes_total,
        )
        for name, file in zip(names, read, strict=True)
    )


def _notes(result: BenchResult) -> tuple[str, ...]:
    return tuple(result.notes)
