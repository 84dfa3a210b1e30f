"""An int8 file from a finished fp32 one: quantised, stamped with its own metadata, and written like any other."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from prune2deploy.export.external_data import data_path, write_onnx
from prune2deploy.export.int8.quantize import QuantizationOptions, quantize_onnx
from prune2deploy.export.onnx_from_model import ExportedFile, Gate, described
from prune2deploy.export.passes.graph import with_metadata
from prune2deploy.progress import SILENT, Progress
from prune2deploy.storage import atomic_pair


def export_int8(
    source: Path,
    path: Path,
    images: NDArray[Any],
    options: QuantizationOptions,
    *,
    external_data: bool = False,
    metadata: Mapping[str, str] | None = None,
    gate: Gate | None = None,
    progress: Progress = SILENT,
) -> ExportedFile:
    """Write the fp32 ONNX file ``source`` as an int8 one; ``images`` calibrate it, in the form that the file takes.

    ``metadata`` replaces that of the source. ``gate`` is called with the finished file before it gets its place: if it
    raises, there is no file; what it returns is recorded.

    Raises:
        DataError, InputError, ModelError: as ``quantize_onnx``.
        StorageError: the file cannot be written.
    """
    with progress.task(f"Quantizing {path.name}") as task, atomic_pair(path, data_path(path)) as folder:
        partial = folder / path.name
        quantize_onnx(source, partial, images, options, progress=progress)
        proto = with_metadata(onnx.load(partial), metadata or {})
        write_onnx(proto, partial, external=external_data)
        task.describe("comparing with fp32")
        error = gate(partial) if gate is not None else None
    return described(path, proto, precision="int8", parity_max_error=error)
