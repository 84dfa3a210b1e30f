"""What an exported file is made with: written into its metadata, and read back where another export keeps it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

from prune2deploy.engines.onnx_file import read_onnx_file
from prune2deploy.errors import InputError
from prune2deploy.export.int8.quantize import QuantizationOptions, Style, style_for
from prune2deploy.export.passes.graph import GraphPasses
from prune2deploy.export.precision import HALF_TYPES
from prune2deploy.pipeline.requests import ExportRequest
from prune2deploy.run import RunFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSettings:
    """Everything but the weights that decides the bytes of the files of one precision.

    ``io_precision`` matters to half files alone, and what follows it to int8 files: the fields of an
    ``ExportRequest``, the ``style``, and ``calibration_data``, a digest of the data's name, which may hold a path.
    """

    precision: str
    passes: GraphPasses
    external_data: bool = False
    io_precision: str = "fp32"
    calibration: str = "minmax"
    calibration_images: int = 256
    quantize_ends: bool = True
    style: Style = "symmetric"
    calibration_data: str = ""

    @property
    def quantization(self) -> QuantizationOptions:
        """What the quantiser of int8 files is told."""
        return QuantizationOptions(calibration=self.calibration, ends=self.quantize_ends, style=self.style)

    def to_metadata(self) -> dict[str, str]:
        """Each setting that matters to the precision, under its name and as JSON."""
        told = {"external_data": self.external_data, **{name: getattr(self, name) for name in _told_by(self.precision)}}
        return {**self.passes.to_metadata(), **{name: json.dumps(value) for name, value in told.items()}}


def _told_by(precision: str) -> tuple[str, ...]:
    if precision == "int8":
        return "calibration", "calibration_images", "quantize_ends", "style", "calibration_data"
    return ("io_precision",) if precision in HALF_TYPES else ()


def settings_for(run: RunFolder, request: ExportRequest, precision: str, passes: GraphPasses) -> FileSettings:
    """How ``request`` wants the files of one precision.

    Files that it does not name follow its passes, because all share one evaluation set, and keep all else as it is.
    """
    wanted = FileSettings(
        precision=precision,
        passes=passes,
        external_data=request.external_data,
        io_precision=request.io_precision,
        calibration=request.calibration,
        calibration_images=request.calibration_images,
        quantize_ends=request.quantize_ends,
        style=style_for(request.engine),
        calibration_data=hashlib.sha256((request.data or run.manifest.data or "").encode()).hexdigest()[:16],
    )
    if precision in request.precisions:
        return wanted
    told = _stored_metadata(run, precision)
    names = [name for name in ("external_data", *_told_by(precision)) if name in told]
    try:
        return replace(wanted, **{name: json.loads(told[name]) for name in names})
    except (ValueError, TypeError):
        return wanted


def _stored_metadata(run: RunFolder, precision: str) -> Mapping[str, str]:
    """That of the first file of a precision that can be read; empty where there is none."""
    for variant in run.manifest.variants.values():
        record = variant.onnx.get(precision)
        if record is not None:
            try:
                return read_onnx_file(run.path / record.file).metadata
            except InputError:
                continue
    return {}
