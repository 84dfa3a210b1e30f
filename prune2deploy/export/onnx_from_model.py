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
from prune2deploy.export.graph_passes import BATCH_NAME, GraphPasses, apply_passes, unfolded_batch_norms, with_metadata
from prune2deploy.export.reasons import reason_of
from prune2deploy.progress import SILENT, Progress
from prune2deploy.storage import atomic_path, sha256_of_file

# At a batch of 1, torch.export takes the batch for a constant.
_TRACED_BATCH = 2
_BYTES_LIMIT = 2**31 - 2**20

Gate = Callable[[Path], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedFile:
    """An ONNX file as it was written.

    ``unfolded_batch_norms`` names batch norms that read a convolution and could not be folded into it.
    ``parity_max_error`` is what the gate returned, None where the export had none.
    """

    path: Path
    sha256: str
    bytes_total: int
    opset: int
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    unfolded_batch_norms: tuple[str, ...]
    parity_max_error: float | None


def export_onnx(
    model: nn.Module,
    path: Path,
    *,
    input_shape: tuple[int, ...],
    dynamic_batch: bool = True,
    passes: GraphPasses | None = None,
    metadata: Mapping[str, str] | None = None,
    gate: Gate | None = None,
    progress: Progress = SILENT,
) -> ExportedFile:
    """Write ``model`` as one ONNX file in torch's default opset.

    ``input_shape`` is (C, H, W). With ``dynamic_batch`` the first dimension of input and outputs is free,
    otherwise it is 1. The model is exported in evaluation mode from a copy on the CPU and is left as it was. The same
    weights give the same bytes, on any machine with the same versions. ``gate`` is called with the finished file
    before it gets its name: if it raises, there is no file; what it returns is recorded.

    Raises:
        ModelError: the model cannot be exported; the message names the operator or the line of its code. Also
            where it holds more than 2 GB, the limit of one ONNX file, or its outputs have no batch dimension.
        StorageError: the file cannot be written.
    """
    refuse_beyond_one_file(model)
    with progress.task(f"Exporting {path.name}") as task:
        batch = _TRACED_BATCH if dynamic_batch else 1
        exported = _traced(cpu_copy(model), (batch, *input_shape), dynamic_batch=dynamic_batch)
        task.describe("translating into ONNX")
        proto = apply_passes(_translated(exported), passes or GraphPasses())
        proto = with_metadata(proto, metadata or {})
        _check(proto, dynamic_batch=dynamic_batch)
        with atomic_path(path) as partial:
            partial.write_bytes(proto.SerializeToString(deterministic=True))
            parity_max_error = None
            if gate is not None:
                task.describe("comparing with the model")
                parity_max_error = gate(partial)
    return ExportedFile(
        path=path,
        sha256=sha256_of_file(path),
        bytes_total=path.stat().st_size,
        opset=next(entry.version for entry in proto.opset_import if not entry.domain),
        input_names=tuple(value.name for value in proto.graph.input),
        output_names=tuple(value.name for value in proto.graph.output),
        unfolded_batch_norms=unfolded_batch_norms(proto),
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


def refuse_beyond_one_file(model: nn.Module) -> None:
    """Refuse a model whose weights do not fit into one ONNX file.

    Raises:
        ModelError: it holds more than 2 GB.
    """
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    bytes_total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if bytes_total > _BYTES_LIMIT:
        raise ModelError(
            f"the weights take {bytes_total / 1e9:.1f} GB, and one ONNX file holds at most 2.1 GB",
            where=type(model).__name__,
            hint="prune it further, or export a model of half precision",
        )


def _traced(model: nn.Module, shape: tuple[int, ...], *, dynamic_batch: bool) -> torch.export.ExportedProgram:
    parameter = next((tensor for tensor in model.parameters() if tensor.is_floating_point()), None)
    example = torch.zeros(shape, dtype=parameter.dtype if parameter is not None else torch.float32)
    sizes = ({0: torch.export.Dim(BATCH_NAME)},) if dynamic_batch else None
    name = type(model).__name__
    try:
        with _hushed():
            return torch.export.export(model, (example,), dynamic_shapes=sizes, strict=False)
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


def _translated(exported: torch.export.ExportedProgram) -> onnx.ModelProto:
    try:
        with _hushed():
            program = torch.onnx.export(exported, dynamo=True, verbose=False)
    except (torch.onnx.OnnxExporterError, RuntimeError, NotImplementedError, ValueError, TypeError) as error:
        raise ModelError(
            f"cannot be exported to ONNX: {reason_of(error)}", hint="replace that operator in the model's forward"
        ) from error
    if program is None:
        raise ModelError("cannot be exported to ONNX: torch gave no program", hint="update torch")
    return program.model_proto


def _check(proto: onnx.ModelProto, *, dynamic_batch: bool) -> None:
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"torch exported an invalid network ({reason})", hint="update torch and onnx") from error
    if not dynamic_batch:
        return
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
