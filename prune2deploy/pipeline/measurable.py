"""What a measurement needs: an engine that runs here, and a run with every ONNX file; what is missing is exported."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from prune2deploy.engines.engine import Engine
from prune2deploy.engines.onnx_file import read_onnx_file
from prune2deploy.engines.registry import AUTO, best_engine, engine_named
from prune2deploy.errors import EngineError, InputError
from prune2deploy.pipeline.requests import ExportRequest
from prune2deploy.progress import SILENT, Progress
from prune2deploy.run import RunFolder, VariantRecord

# Fields of an ExportRequest that the metadata of a file tells under the same names, as JSON.
_TOLD_BY_FILES = (
    "softmax", "top_k", "input_format", "source_size", "batch", "external_data",
    "io_precision", "calibration", "calibration_images", "quantize_ends",
)  # fmt: skip


def usable_engine(name: str, precisions: Iterable[str] = ()) -> Engine:
    """The engine of that name, if it runs here and takes files of ``precisions``: asked before any work is done for it.

    ``auto`` is the best one that does.

    Raises:
        EngineError: it does not run here; the message says what to do.
        InputError: there is none of that name, or it lacks a precision.
    """
    if name == AUTO:
        return best_engine(*precisions)
    engine = engine_named(name)
    availability = engine.availability()
    if not availability.runs:
        raise EngineError(
            availability.reason or "is not usable here", where=f"--engine {engine.name}", hint=availability.hint
        )
    for precision in precisions:
        if precision not in engine.precisions:
            offered = ", ".join(sorted(engine.precisions))
            raise InputError(f"{engine.name} has no {precision}", where="--precision", hint=f"choose from {offered}")
    return engine


def exported_run(
    path: Path | None, precisions: tuple[str, ...], progress: Progress = SILENT, *, engine: str | None = None
) -> RunFolder:
    """Open a run (None: the latest), exporting the variants that have no file at one of ``precisions``.

    They are exported as those that are there were: with the same passes, inputs and outputs. ``engine`` is the one that
    the files are for: int8 files in a style that it does not want are exported anew.

    Raises:
        InputError: there is no such run.
        DataError: int8 is missing and the run has no data to calibrate on.
        ModelError, ParityError, StorageError: an export failed.
    """
    run = RunFolder.open(path)
    missing = tuple(
        precision
        for precision in precisions
        if any(not _has_file(run, variant, precision, engine) for variant in run.manifest.variants.values())
    )
    if not missing and run.evaluation_path.is_file():
        return run
    # Torch is needed only here, so that a run that is already exported is measured without it.
    from prune2deploy.pipeline.export import run_export

    run_export(replace(_as_before(run), precisions=missing or precisions, engine=engine), progress)
    return RunFolder.open(run.path)


def _has_file(run: RunFolder, variant: VariantRecord, precision: str, engine: str | None) -> bool:
    record = variant.onnx.get(precision)
    if record is None or not (run.path / record.file).is_file():
        return False
    return precision != "int8" or engine is None or _is_in_style(run.path / record.file, engine)


def _is_in_style(path: Path, engine: str) -> bool:
    """Whether an int8 file quantises as ``engine`` wants it."""
    from prune2deploy.export.int8.quantize import style_for

    return read_onnx_file(path).metadata.get("style") == json.dumps(style_for(engine))


def _as_before(run: RunFolder) -> ExportRequest:
    """A request for more files like those that the run has; the defaults where it has none."""
    told: dict[str, Any] = {}
    for variant in run.manifest.variants.values():
        for record in variant.onnx.values():
            if (run.path / record.file).is_file():
                # What only half or int8 files tell comes from these.
                told = {**read_onnx_file(run.path / record.file).metadata, **told}
    fields = {name: json.loads(told[name]) for name in _TOLD_BY_FILES if name in told}
    if fields.get("source_size") is not None:
        fields["source_size"] = tuple(fields["source_size"])
    normalized = json.loads(told.get("normalize", "null")) is not None
    # Files that take bytes normalise by themselves, without being asked to.
    normalize = normalized and fields.get("input_format", "nchw") == "nchw"
    return ExportRequest(run=run.path, normalize=normalize, as_before=True, **fields)
