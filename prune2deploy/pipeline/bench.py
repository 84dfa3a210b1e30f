"""``p2d bench``: time the variants of a run, or any ONNX files, against each other."""

import os
from pathlib import Path

import psutil

from prune2deploy.bench.claims import JudgedClaim, exit_code
from prune2deploy.bench.measure import run_bench
from prune2deploy.bench.result import BenchResult, write_result
from prune2deploy.bench.subjects import BenchOptions, Subject
from prune2deploy.bench.subjects import BenchRequest as Measurement
from prune2deploy.engines.onnx_file import read_onnx_file
from prune2deploy.errors import InputError
from prune2deploy.pipeline.measurable import exported_run, usable_engine
from prune2deploy.pipeline.outcomes import BenchOutcome
from prune2deploy.pipeline.requests import BenchRequest
from prune2deploy.progress import SILENT, Progress
from prune2deploy.report.tables import result_tables
from prune2deploy.run import RunFolder


def run_bench_command(request: BenchRequest, progress: Progress = SILENT) -> BenchOutcome:
    """Measure, judge the claims, and keep the result document with its raw samples.

    The result of a run lies in its ``bench`` folder; that of bare ONNX files in ``request.out``, if given.

    Raises:
        EngineError: the engine is not usable here.
        InputError: a file is missing or no ONNX file.
        ParityError: an engine does not compute what its model computes; nothing was timed.
    """
    engine = usable_engine(request.engine)
    if request.onnx_files:
        subjects, evaluation, folder = _bare_subjects(request.onnx_files), None, request.out
    else:
        run = exported_run(request.run, request.precisions, progress)
        subjects = _run_subjects(run, request.precisions)
        evaluation, folder = run.evaluation_path, request.out or run.bench_path
    measurement = Measurement(
        subjects=subjects,
        engine=engine.name,
        batches=request.batches,
        evaluation=evaluation,
        claim=request.claim,
        options=_options(request),
    )
    result = run_bench(measurement, progress=progress)
    file = write_result(result, folder)[0] if folder is not None else None
    return BenchOutcome(
        document=result.to_document(),
        exit_code=exit_code(result.claims),
        tables=result_tables(result),
        verdicts=tuple(_sentence(claim) for claim in result.claims),
        file=file,
        notes=_notes(result),
    )


def usable_cores() -> int:
    """Physical cores that this process may use."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(min(allowed, psutil.cpu_count(logical=False) or allowed), 1)


def _options(request: BenchRequest) -> BenchOptions:
    defaults = BenchOptions()
    return BenchOptions(
        threads=request.threads or usable_cores(),
        builds=request.builds or defaults.builds,
        max_seconds=request.max_seconds,
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
        )
        for precision in precisions
        for variant in run.manifest.variants.values()
    )


def _bare_subjects(files: tuple[Path, ...]) -> tuple[Subject, ...]:
    read = [read_onnx_file(file) for file in files]
    stems = [file.stem for file in files]
    names = stems if len(set(stems)) == len(stems) else [str(file) for file in files]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError("is named twice", where=twice, hint="name each file once; the first is the base")
    return tuple(
        Subject(variant=name, precision="fp32", onnx_path=file.path, sha256=file.sha256)
        for name, file in zip(names, read, strict=True)
    )


def _sentence(claim: JudgedClaim) -> str:
    asked = "claimed" if claim.asked else "implied by the FLOPs"
    interval = f", interval {claim.low:.2f} to {claim.high:.2f}" if claim.low is not None and claim.high else ""
    return (
        f"{claim.verdict}: {claim.variant} {claim.claim:.2f}x faster than {claim.against} at batch {claim.batch} "
        f"on {claim.engine} ({asked}); measured {claim.estimate:.2f}x{interval}"
    )


def _notes(result: BenchResult) -> tuple[str, ...]:
    return tuple(result.notes)
