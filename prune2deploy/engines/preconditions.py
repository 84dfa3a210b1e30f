"""What engines ask before they build (do I run here, is this a file for me), and before they run (do arrays fit)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from prune2deploy.engines.engine import Array, BuildOptions, Engine, TensorInfo
from prune2deploy.engines.onnx_file import OnnxFile, read_onnx_file, require_precision
from prune2deploy.errors import EngineError, InputError


def checked_file(engine: Engine, onnx_path: Path, options: BuildOptions) -> OnnxFile:
    """The ONNX file, if ``engine`` runs on this machine and takes files of that precision.

    Raises:
        EngineError: it does not run here, or has no such precision.
        InputError: the file is missing, no ONNX network, or of another precision.
    """
    require_usable(engine, options.precision)
    file = read_onnx_file(onnx_path)
    require_precision(file, options.precision)
    return file


def require_usable(engine: Engine, precision: str) -> None:
    """Refuse an engine that does not run on this machine, or takes no files of ``precision``.

    Raises:
        EngineError: either.
    """
    present = engine.availability()
    if not present.runs:
        raise EngineError(present.reason or "is not usable here", where=engine.name, hint=present.hint)
    if precision not in engine.precisions:
        raise EngineError(
            f"has no precision {precision}",
            where=engine.name,
            hint=f"choose from {', '.join(sorted(engine.precisions))}",
        )


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


def require_profilable(runs: int, *, bound: bool, where: Path) -> None:
    """Refuse to profile what cannot be run.

    Raises:
        InputError: nothing is bound, or ``runs`` is not positive.
    """
    if not bound:
        raise InputError("has no inputs bound", where=str(where), hint="call bind before profiling")
    if runs < 1:
        raise InputError(f"the number of profiled runs is positive, not {runs}", where=str(where))


def checked_arrays(inputs: Sequence[TensorInfo], arrays: Mapping[str, Array], where: Path) -> tuple[Array, ...]:
    """The arrays for a network's inputs, in their order.

    Raises:
        InputError: one is missing, has no input, or is of another type or shape than its input takes.
    """
    checked = tuple(_checked(tensor, arrays.get(tensor.name), where) for tensor in inputs)
    if len(arrays) > len(checked):
        strays = sorted(set(arrays) - {tensor.name for tensor in inputs})
        raise InputError(f"does not take these arrays (no input {', '.join(strays)})", where=str(where))
    return checked


def _checked(tensor: TensorInfo, array: Array | None, where: Path) -> Array:
    if array is None:
        raise InputError(f"does not take these arrays (input {tensor.name} is missing)", where=str(where))
    fits = array.ndim == len(tensor.shape) and all(
        size in (None, given) for size, given in zip(tensor.shape, array.shape, strict=True)
    )
    if not fits or array.dtype != np.dtype(tensor.dtype):
        wanted = "x".join("?" if size is None else str(size) for size in tensor.shape)
        given = "x".join(map(str, array.shape))
        raise InputError(
            f"does not take these arrays ({tensor.name} is {given} {array.dtype}, not {wanted} {tensor.dtype})",
            where=str(where),
            hint="pass arrays of that type and shape",
        )
    return array
