"""What every engine asks before it builds: that it runs here, has the precision, and is given a file of it."""

from pathlib import Path

from prune2deploy.engines.engine import BuildOptions, Engine
from prune2deploy.engines.onnx_file import OnnxFile, read_onnx_file, require_precision
from prune2deploy.errors import EngineError


def checked_file(engine: Engine, onnx_path: Path, options: BuildOptions) -> OnnxFile:
    """The ONNX file, if ``engine`` runs on this machine and takes files of that precision.

    Raises:
        EngineError: it does not run here, or has no such precision.
        InputError: the file is missing, no ONNX network, or of another precision.
    """
    present = engine.availability()
    if not present.runs:
        raise EngineError(present.reason or "is not usable here", where=engine.name, hint=present.hint)
    if options.precision not in engine.precisions:
        raise EngineError(
            f"has no precision {options.precision}",
            where=engine.name,
            hint=f"choose from {', '.join(sorted(engine.precisions))}",
        )
    file = read_onnx_file(onnx_path)
    require_precision(file, options.precision)
    return file


def no_stored_engine(name: str, reason: str) -> EngineError:
    """The error of an engine that keeps no files, and why it keeps none."""
    return EngineError(
        f"has no stored engine: {reason}",
        where=name,
        hint="run `p2d bench` directly, or build with --engine trt or trt-rtx",
    )


def closed(where: Path) -> EngineError:
    """The error of an engine that is used after it was closed."""
    return EngineError("the engine is closed", where=str(where), hint="build it again")
