"""ONNX from a torch module: batch norms folded, dynamic batch, deterministic bytes."""

import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import nn

from prune2deploy.errors import ModelError
from prune2deploy.export.external_data import data_path, write_onnx
from prune2deploy.export.passes.ends import ONNX_HALVES, with_float32_ends, with_half_ends
from prune2deploy.export.passes.graph import BATCH_NAME, GraphPasses, apply_passes, unfolded_batch_norms, with_metadata
from prune2deploy.export.precision import HALF_TYPES, OPSETS, float32_layers, half_program
from prune2deploy.export.reasons import reason_of
from prune2deploy.progress import SILENT, Progress
from prune2deploy.storage import atomic_pair, sha256_of_file

# At a batch of 1, torch.export takes the batch for a constant.
_TRACED_BATCH = 2

Gate = Callable[[Path], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedFile:
    """An ONNX file as it was written.

    ``unfolded_batch_norms`` names batch norms that read a convolution and could not be folded into it.
    ``float32_layers`` names those that compute in float32 in a file of half precision, as the model's code says.
    ``parity_max_error`` is what the gate returned, None where the export had none.
    """

    path: Path
    sha256: str
    bytes_total: int
    opset: int
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    unfolded_batch_norms: tuple[str, ...]
    float32_layers: tuple[str, ...]
    parity_max_error: float | None


def export_onnx(
    model: nn.Module,
    path: Path,
    *,
    input_shape: tuple[int, ...],
    precision: str = "fp32",
    io_precision: str = "fp32",
    passes: GraphPasses | None = None,
    external_data: bool = False,
    metadata: Mapping[str, str] | None = None,
    gate: Gate | None = None,
    progress: Progress = SILENT,
) -> ExportedFile:
    """Write ``model`` as one ONNX file, in torch's default opset or, where ``precision`` needs one, a later one.

    ``input_shape`` is (C, H, W). ``precision`` is "fp32", "tf32" (float32 as well: an engine rounds), "fp16" or "bf16";
    the last two hold no float32 weights. Their inputs and outputs are float32 unless ``io_precision`` is "same"; what
    ``passes`` put in front and behind computes in float32. The first dimension of input and outputs is free, unless
    ``passes.batch`` fixes it. With ``external_data``, and where they take more than the 2 GB of one file, weights lie
    in ``PATH.data`` beside it. The model is exported in evaluation mode from a copy on the CPU and is left as it was.
    The same weights give the same bytes, on any machine with the same versions. ``gate`` is called with the finished
    file before it gets its place: if it raises, there is no file; what it returns is recorded.

    Raises:
        ModelError: the model cannot be exported; the message names the operator or the line of its code. Also
            where its outputs have no batch dimension.
        StorageError: the file cannot be written.
    """
    passes = passes or GraphPasses()
    with progress.task(f"Exporting {path.name}") as task:
        batch, dynamic_batch = passes.batch or _TRACED_BATCH, passes.batch is None
        exported = _program(model, (batch, *input_shape), precision, dynamic_batch=dynamic_batch)
        task.describe("translating into ONNX")
        proto = with_float32_ends(_translated(exported, OPSETS.get(precision)))
        with _hushed():  # GraphSurgeon prints of every bfloat16 tensor that NumPy has no such type.
            proto = apply_passes(proto, passes)
        if io_precision == "same" and precision in ONNX_HALVES:
            proto = with_half_ends(proto, ONNX_HALVES[precision])
        proto = with_metadata(proto, metadata or {})
        if dynamic_batch:
            _require_batch_dimension(proto)
        with atomic_pair(path, data_path(path)) as folder:
            partial = folder / path.name
            write_onnx(proto, partial, external=external_data)
            _check(partial)
            parity_max_error = None
            if gate is not None:
                task.describe("comparing with the model")
                parity_max_error = gate(partial)
    return described(path, proto, precision=precision, parity_max_error=parity_max_error)


def described(path: Path, proto: onnx.ModelProto, *, precision: str, parity_max_error: float | None) -> ExportedFile:
    """What the file at ``path`` is, which was written of ``proto``."""
    return ExportedFile(
        path=path,
        sha256=sha256_of_file(path),
        bytes_total=sum(file.stat().st_size for file in (path, data_path(path)) if file.exists()),
        opset=next(entry.version for entry in proto.opset_import if not entry.domain),
        input_names=tuple(value.name for value in proto.graph.input),
        output_names=tuple(value.name for value in proto.graph.output),
        unfolded_batch_norms=unfolded_batch_norms(proto),
        float32_layers=float32_layers(proto) if precision in HALF_TYPES else (),
        parity_max_error=parity_max_error,
    )


def cpu_copy(model: nn.Module) -> nn.Module:
    """A copy of the model on the CPU, in evaluation mode and without gradients. The model is left as it was.

    Raises:
        ModelError: the model cannot be copied.
    """
    try:
        duplicate = copy.deepcopy(model).cpu().eval()
    except (RuntimeError, TypeError) as error:
        raise ModelError(f"the model cannot be copied ({reason_of(error)})", where=type(model).__name__) from error
    return duplicate.requires_grad_(False)


def _program(
    model: nn.Module, shape: tuple[int, ...], precision: str, *, dynamic_batch: bool
) -> torch.export.ExportedProgram:
    """The exported program of a copy on the CPU, at a precision."""

    def trace(module: nn.Module, dtype: torch.dtype) -> torch.export.ExportedProgram:
        return _traced(module, torch.zeros(shape, dtype=dtype), dynamic_batch=dynamic_batch)

    # A checkpoint of half precision is exported as its float32 copy at fp32, and rounded from that otherwise.
    network = cpu_copy(model).float()
    return half_program(network, precision, trace) if precision in HALF_TYPES else trace(network, torch.float32)


def _traced(model: nn.Module, example: torch.Tensor, *, dynamic_batch: bool) -> torch.export.ExportedProgram:
    sizes = ({0: torch.export.Dim(BATCH_NAME)},) if dynamic_batch else None
    name = type(model).__name__
    try:
        with _hushed():
            return torch.export.export(model, (example,), dynamic_shapes=sizes, strict=False)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    # The model's own code runs here, and may raise anything.
    except Exception as error:
        if dynamic_batch and "constraints violated" in str(error).lower():
            raise ModelError(
                "cannot be exported with a dynamic batch: its forward fixes the batch size "
                "(a reshape or view with a constant first dimension)",
                where=name,
                hint="write -1 or x.shape[0] there",
            ) from error
        raise ModelError(
            f"cannot be exported: {reason_of(error)}",
            where=name,
            hint="change that line so that torch.export traces it",
        ) from error


def _translated(exported: torch.export.ExportedProgram, opset: int | None) -> onnx.ModelProto:
    try:
        with _hushed():
            program = torch.onnx.export(exported, dynamo=True, verbose=False, opset_version=opset)
    except torch.OutOfMemoryError:
        raise
    except (torch.onnx.OnnxExporterError, RuntimeError, NotImplementedError, ValueError, TypeError) as error:
        raise ModelError(
            f"cannot be exported to ONNX: {reason_of(error)}", hint="replace that operator in the model's forward"
        ) from error
    if program is None:
        raise ModelError("cannot be exported to ONNX: torch gave no program", hint="update torch")
    return program.model_proto


def _check(path: Path) -> None:
    # By its path, since models over 2 GB cannot be passed as one message.
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"torch exported an invalid network ({reason})", hint="update torch and onnx") from error


def _require_batch_dimension(proto: onnx.ModelProto) -> None:
    for value in (*proto.graph.input, *proto.graph.output):
        sizes = value.type.tensor_type.shape.dim
        if not sizes or not sizes[0].dim_param:
            raise ModelError(
                f"{value.name!r} has no batch dimension in the exported network",
                hint="let forward return tensors whose first dimension is the batch",
            )


@contextmanager
def _hushed() -> Iterator[None]:
    """Keep torch's printing, warnings and logging away from the terminal: what matters comes back as an error."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
