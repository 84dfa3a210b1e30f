"""``p2d build``: engine files from the ONNX files of a run, without running them."""

from prune2deploy.engines.engine import BuildOptions, Engine
from prune2deploy.engines.registry import AUTO, all_engines, engine_named
from prune2deploy.errors import EngineError
from prune2deploy.pipeline.measurable import exported_run
from prune2deploy.pipeline.outcomes import BuildOutcome, EngineFile
from prune2deploy.pipeline.requests import BuildRequest
from prune2deploy.progress import SILENT, Progress


def run_build(request: BuildRequest, progress: Progress = SILENT) -> BuildOutcome:
    """Build and store an engine for every ONNX file of a run; what is not exported yet is exported first.

    Raises:
        EngineError: the engine cannot build here, or keeps no files.
        InputError: there is no such run.
    """
    engine = _builder(request.engine)
    run = exported_run(request.run, request.precisions, progress)
    files = []
    jobs = [(variant, precision) for variant in run.manifest.variants.values() for precision in request.precisions]
    with progress.task(f"building {engine.name} engines", total=len(jobs)) as task:
        for variant, precision in jobs:
            task.describe(f"{variant.name} {precision}")
            path = run.engines_path / f"{variant.name}-{precision}-{engine.name}.engine"
            options = BuildOptions(
                precision=precision, batches=request.batches, threads=request.threads or 1, cache=run.engines_path
            )
            summary = engine.build_file(run.path / variant.onnx[precision].file, path, options)
            files.append(
                EngineFile(
                    variant=variant.name,
                    precision=precision,
                    engine=engine.name,
                    file=summary.file,
                    bytes_total=summary.bytes_total,
                    build_seconds=summary.build_seconds,
                )
            )
            task.advance()
    return BuildOutcome(run=run.path, files=tuple(files))


def _builder(name: str) -> Engine:
    """The engine of that name; ``auto`` is the first that stores engines and can build them here."""
    if name != AUTO:
        return engine_named(name)
    for engine in all_engines():
        if engine.stores_engines and engine.availability().builds:
            return engine
    raise EngineError(
        "no engine here builds files that can be stored",
        where="--engine auto",
        hint="install one with pip install 'prune2deploy[trt-rtx]', or bench on ort-cpu, which needs no build",
    )
