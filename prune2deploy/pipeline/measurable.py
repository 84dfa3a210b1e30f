"""What a measurement needs: an engine that runs here, and a run with every ONNX file; what is missing is exported."""

from pathlib import Path

from prune2deploy.engines.engine import Engine
from prune2deploy.engines.registry import engine_named
from prune2deploy.errors import EngineError
from prune2deploy.pipeline.requests import ExportRequest
from prune2deploy.progress import Progress
from prune2deploy.run import RunFolder, VariantRecord


def usable_engine(name: str) -> Engine:
    """The engine of that name, if it runs here: asked before any work is done for it.

    Raises:
        EngineError: it does not; the message says what to do.
        InputError: there is none of that name.
    """
    engine = engine_named(name)
    availability = engine.availability()
    if not availability.runs:
        raise EngineError(
            availability.reason or "is not usable here", where=f"--engine {engine.name}", hint=availability.hint
        )
    return engine


def exported_run(path: Path | None, precisions: tuple[str, ...], progress: Progress) -> RunFolder:
    """Open a run (None: the latest), exporting the variants that have no file at one of ``precisions``.

    Raises:
        InputError: there is no such run.
        ModelError, ParityError, StorageError: an export failed.
    """
    run = RunFolder.open(path)
    missing = tuple(
        precision
        for precision in precisions
        if any(not _has_file(run, variant, precision) for variant in run.manifest.variants.values())
    )
    if not missing and run.evaluation_path.is_file():
        return run
    # Torch is needed only here, so that a run that is already exported is measured without it.
    from prune2deploy.pipeline.export import run_export

    run_export(ExportRequest(run=run.path, precisions=missing or precisions), progress)
    return RunFolder.open(run.path)


def _has_file(run: RunFolder, variant: VariantRecord, precision: str) -> bool:
    record = variant.onnx.get(precision)
    return record is not None and (run.path / record.file).is_file()
