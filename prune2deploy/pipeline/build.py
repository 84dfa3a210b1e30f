"""``p2d build``: engine files from the ONNX files of a run, without running them."""

from prune2deploy.engines.census import Census
from prune2deploy.engines.engine import BuildOptions, BuildSummary, Engine, TensorRTOptions
from prune2deploy.engines.registry import AUTO, all_engines, engine_named
from prune2deploy.errors import EngineError
from prune2deploy.pipeline.measurable import exported_run
from prune2deploy.pipeline.outcomes import BuildOutcome, EngineFile
from prune2deploy.pipeline.requests import BuildRequest
from prune2deploy.progress import SILENT, Progress
from prune2deploy.run import RunFolder, VariantRecord


def run_build(request: BuildRequest, progress: Progress = SILENT) -> BuildOutcome:
    """Build and store an engine for every ONNX file of a run; what is not exported yet is exported first.

    An engine that is there already, built of the same file in the same way, is left as it is.

    Raises:
        EngineError: the engine cannot build here, keeps no files, or lacks a precision or an option.
        InputError: there is no such run, or an option asks for what does not exist.
        StorageError: an engine cannot be written.
    """
    engine = _builder(request.engine, request.precisions)
    _require_precisions(engine, request.precisions)
    run = exported_run(request.run, request.precisions, progress, engine=engine.name)
    jobs = [(variant, precision) for variant in run.manifest.variants.values() for precision in request.precisions]
    files = []
    with progress.task(f"building {engine.name} engines", total=len(jobs)) as task:
        for variant, precision in jobs:
            task.describe(f"{variant.name} {precision}")
            summary = _built(request, engine, run, variant, precision, progress)
            files.append(
                EngineFile(
                    variant=variant.name,
                    precision=precision,
                    engine=engine.name,
                    file=summary.file,
                    bytes_total=summary.bytes_total,
                    build_seconds=summary.build_seconds,
                    computes=_census_in_words(summary),
                    reused=summary.reused,
                )
            )
            task.advance()
    return BuildOutcome(run=run.path, files=tuple(files), notes=tuple(_notes(files)))


def _census_in_words(summary: BuildSummary) -> str:
    """What the engine computes in; it is the file that says so where the engine cannot be loaded here."""
    document = summary.details.get("census")
    if not document:
        return ""
    census = Census.from_document(document)
    return f"{census.in_words()}, by the file" if census.origin == "file" else census.in_words()


def _built(
    request: BuildRequest, engine: Engine, run: RunFolder, variant: VariantRecord, precision: str, progress: Progress
) -> BuildSummary:
    options = BuildOptions(
        precision=precision,
        batches=request.batches,
        threads=request.threads or 1,
        tensorrt=TensorRTOptions(
            ranges=request.ranges,
            workspace_bytes=request.workspace_bytes,
            optimization_level=request.optimization_level,
            timing_cache=request.timing_cache,
            hardware_compatible=request.hardware_compatible,
            version_compatible=request.version_compatible,
            strip_weights=request.strip_weights,
            compute_capabilities=request.compute_capabilities,
        ),
    )
    path = run.engines_path / f"{variant.name}-{precision}-{engine.name}.engine"
    return engine.build_file(run.path / variant.onnx[precision].file, path, options, progress=progress)


def _notes(files: list[EngineFile]) -> list[str]:
    reused = sum(file.reused for file in files)
    if not reused:
        return []
    which = "every engine was" if reused == len(files) else f"{reused} of {len(files)} engines were"
    return [f"{which} there already, built of the same file in the same way; delete a file to have it built anew"]


def _require_precisions(engine: Engine, precisions: tuple[str, ...]) -> None:
    """Refuse before anything is exported for it."""
    lacking = [precision for precision in precisions if precision not in engine.precisions]
    if lacking:
        raise EngineError(
            f"has no precision {', '.join(lacking)}",
            where=engine.name,
            hint=f"choose from {', '.join(sorted(engine.precisions))}",
        )


def _builder(name: str, precisions: tuple[str, ...]) -> Engine:
    """The engine of that name; ``auto`` is the first that stores engines of these precisions and builds them here."""
    if name != AUTO:
        return engine_named(name)
    for engine in all_engines():
        if engine.stores_engines and engine.precisions.issuperset(precisions) and engine.availability().builds:
            return engine
    raise EngineError(
        "no engine here builds files that can be stored",
        where="--engine auto",
        hint="install one with pip install 'prune2deploy[trt-rtx]', or bench on ort-cpu, which needs no build",
    )
