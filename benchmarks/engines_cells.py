"""The cells of ``engines.py``: one ONNX file, or one file on one engine. Each runs in a process of its own."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from engines_networks import CALIBRATION, EVALUATION

from prune2deploy.engines.engine import BuildOptions, BuiltEngine, Engine
from prune2deploy.engines.registry import engine_named
from prune2deploy.errors import P2DError
from prune2deploy.evaluation import EvaluationSet

BATCH = 8
INT8 = "int8"
Record = dict[str, Any]


def limit_threads(threads: int) -> None:
    """What a process of cells does first."""
    os.environ["OMP_NUM_THREADS"] = str(threads)


def prepare_cell(name: str, folder: Path, variants: tuple[str, ...], side: int | None) -> Record:
    """The network's bundles and images."""
    from engines_making import prepare

    record: Record = prepare(name, folder, variants, side)
    return record


def onnx_file(folder: Path, variant: str, precision: str, style: str | None) -> Path:
    """Where the file of one cell lies. ``style`` is how int8 is quantised, None for other precisions."""
    return folder / "onnx" / f"{variant}-{precision}{f'-{style}' if style else ''}.onnx"


def style_for_engine(precision: str, engine: str) -> str | None:
    """How int8 files for an engine are quantised, None for other precisions."""
    if precision != INT8:
        return None
    from prune2deploy.export.int8.quantize import style_for

    return str(style_for(engine))


def export_cell(folder: Path, variant: str, precision: str, style: str | None) -> Record:
    """Write one ONNX file, int8 from the fp32 one. Its size, census and how long it took."""
    from prune2deploy.checkpoint.bundle import load_bundle
    from prune2deploy.engines.census import file_census
    from prune2deploy.export.onnx_from_model import export_onnx

    path = onnx_file(folder, variant, precision, style)
    begun = time.monotonic()
    if precision == INT8:
        quantized_from_fp32(folder, variant, path, style)
    else:
        bundle = load_bundle(folder / variant)
        export_onnx(bundle.model, path, input_shape=bundle.manifest.input_shape, precision=precision)
    return {
        "bytes_total": path.stat().st_size,
        "seconds": time.monotonic() - begun,
        "census": file_census(path).to_document(),
    }


def quantized_from_fp32(folder: Path, variant: str, path: Path, style: str | None) -> None:
    """Write the int8 file of a variant, from its fp32 file and the calibration images."""
    from prune2deploy.export.int8.quantize import QuantizationOptions, quantize_onnx

    source = onnx_file(folder, variant, "fp32", None)
    if not source.is_file():
        export_cell(folder, variant, "fp32", None)
    options = QuantizationOptions(style=style) if style else QuantizationOptions()
    quantize_onnx(source, path, np.load(folder / CALIBRATION), options)


def engine_cell(folder: Path, variant: str, precision: str, engine_name: str, style: str | None = None) -> Record:
    """One file on one engine: run and compared where it runs here, built where it only builds.

    ``style`` is how an int8 file is quantised, None for how this engine wants it.
    ``state`` is "ran", "built", or "not offered" where the engine lacks the precision or is not usable here.
    """
    engine = engine_named(engine_name)
    if precision not in engine.precisions:
        return {"state": "not offered", "reason": f"{engine_name} has no {precision}"}
    availability = engine.availability()
    if not availability.runs and not availability.builds:
        return {"state": "not offered", "reason": str(availability.reason)}
    path = onnx_file(folder, variant, precision, style or style_for_engine(precision, engine_name))
    if not path.is_file():
        return {"failed": "its ONNX file was not written"}
    options = BuildOptions(precision=precision, batches=(1, BATCH), threads=_threads(), bundle=folder / variant)
    if not availability.runs:
        return _built(engine, path, options)
    begun = time.monotonic()
    ready = engine.build(path, options)
    try:
        seconds = time.monotonic() - begun
        return {
            "state": "ran",
            "build_seconds": seconds,
            **_compared(ready, folder, variant, precision),
            "census": ready.inspect().get("census"),
        }
    finally:
        ready.close()


def _built(engine: Engine, path: Path, options: BuildOptions) -> Record:
    target = path.parent.parent / "engines" / f"{path.stem}-{engine.name}.engine"
    target.parent.mkdir(exist_ok=True)
    summary = engine.build_file(path, target, options)
    return {
        "state": "built",
        "build_seconds": summary.build_seconds,
        "bytes_total": summary.bytes_total,
        "census": summary.details.get("census"),
    }


def _compared(built: BuiltEngine, folder: Path, variant: str, precision: str) -> Record:
    """Relative error, agreement, signal-to-noise ratio and accuracy against torch's fp32 outputs.

    Gates are told and not enforced: they are meant for trained networks, and how far torch's own half-precision copy
    of a network made without training is off stands beside them (``rounding`` in the record of the network).
    """
    from prune2deploy.engines.parity import GATES, filled_batch, relative_error, run_once

    evaluation = EvaluationSet.load(folder / EVALUATION)
    reference = evaluation.references[variant]
    outputs = np.concatenate(
        [
            run_once(built, filled_batch(evaluation.inputs, first, len(part), BATCH))[: len(part)]
            for first in range(0, len(reference), BATCH)
            if len(part := reference[first : first + BATCH])
        ]
    ).astype(np.float32)
    error = relative_error(outputs, reference, variant=variant)
    gate = GATES.get(precision)
    record: Record = {
        "relative_error": error,
        "agreement": float((outputs.argmax(1) == reference.argmax(1)).mean()),
        "sqnr_db": float(-20 * np.log10(error)) if error > 0 else None,
        "images": len(reference),
    }
    if evaluation.labels is not None:
        labels = evaluation.labels[: len(outputs)]
        record["accuracy"] = float((outputs.argmax(1) == labels).mean())
        record["accuracy_torch"] = float((reference.argmax(1) == labels).mean())
    if gate is not None:
        # NaN is outside: it compares False with everything.
        record["within_gate"] = error <= gate
    return record


def _threads() -> int:
    return int(os.environ.get("OMP_NUM_THREADS", "1"))


def engine_states(names: tuple[str, ...]) -> Mapping[str, Any]:
    """What ``p2d doctor`` knows of these engines: version, device, whether they run or build, and why not."""
    states = {}
    for name in names:
        try:
            found = engine_named(name).availability()
        except P2DError as error:
            states[name] = {"runs": False, "builds": False, "reason": str(error)}
            continue
        states[name] = {
            "runs": found.runs,
            "builds": found.builds,
            "version": found.version,
            "device": found.device,
            "reason": found.reason,
        }
    return states
