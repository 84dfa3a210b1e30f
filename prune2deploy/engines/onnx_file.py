"""What an ONNX file says of itself, read without torch and without running anything."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from prune2deploy.engines.engine import TensorInfo
from prune2deploy.errors import InputError
from prune2deploy.storage import sha256_of_file

_STORED_FLOATS = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
_HINT = "pass a file that `p2d export` or another ONNX exporter wrote"


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxFile:
    """The interface and contents of an ONNX file.

    ``inputs`` and ``outputs`` are in the file's order, without initializers. ``opset`` is the version of the
    standard operators. ``operators`` counts nodes by type (``domain::type`` outside the standard ones).
    ``weights_by_precision`` counts the elements of the floating-point initializers by "fp32", "fp16" and "bf16".
    ``quantized`` is True where the graph holds QuantizeLinear nodes.
    """

    path: Path
    sha256: str
    bytes_total: int
    opset: int
    producer: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    operators: Mapping[str, int]
    weights_by_precision: Mapping[str, int]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def quantized(self) -> bool:
        """Whether the graph quantizes activations."""
        return "QuantizeLinear" in self.operators

    @property
    def dynamic_batch(self) -> bool:
        """Whether the first dimension of the first input is free."""
        return bool(self.inputs) and bool(self.inputs[0].shape) and self.inputs[0].shape[0] is None


def read_onnx_file(path: Path) -> OnnxFile:
    """Read the interface, operators and metadata of an ONNX file. External weights are not read.

    Raises:
        InputError: the file is missing, a folder, empty, truncated, or no ONNX model.
    """
    model = load_onnx_proto(path)
    graph = model.graph
    stored = {initializer.name for initializer in graph.initializer}
    weights: Counter[str] = Counter()
    for initializer in graph.initializer:
        precision = _STORED_FLOATS.get(initializer.data_type)
        if precision is not None:
            elements = 1
            for size in initializer.dims:
                elements *= size
            weights[precision] += elements
    return OnnxFile(
        path=path,
        sha256=sha256_of_file(path),
        bytes_total=path.stat().st_size,
        opset=next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0),
        producer=f"{model.producer_name} {model.producer_version}".strip(),
        inputs=tuple(_tensor(value, path) for value in graph.input if value.name not in stored),
        outputs=tuple(_tensor(value, path) for value in graph.output),
        operators=dict(Counter(_operator_name(node) for node in graph.node)),
        weights_by_precision=dict(weights),
        metadata={entry.key: entry.value for entry in model.metadata_props},
    )


def load_onnx_proto(path: Path) -> onnx.ModelProto:
    """Parse an ONNX file without its external weights.

    Raises:
        InputError: as ``read_onnx_file``.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError("there is no such file", where=str(path), hint=_HINT) from error
    except IsADirectoryError as error:
        raise InputError("is a folder, not an ONNX file", where=str(path), hint=_HINT) from error
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=str(path)) from error
    if not content:
        raise InputError("is empty", where=str(path), hint=_HINT)
    try:
        model = onnx.load_model_from_string(content)
    except DecodeError as error:
        raise InputError("is no ONNX file, or is truncated", where=str(path), hint=_HINT) from error
    if not model.opset_import or not model.graph.output:
        raise InputError("holds no ONNX network", where=str(path), hint=_HINT)
    return model


def require_precision(file: OnnxFile, precision: str) -> None:
    """Refuse a file whose stored weights are not of the precision that it should be run at.

    Engines here are strongly typed: they compute in the types that the file states, so a float32 file built
    "as fp16" would be timed under a wrong name. ``tf32`` is float32 weights; a network without weights passes.

    Raises:
        InputError: the weights are of another precision.
    """
    stored = {name: count for name, count in file.weights_by_precision.items() if count}
    if precision == "int8":
        fits = file.quantized
    elif file.quantized:
        fits = False
    else:
        wanted = "fp32" if precision == "tf32" else precision
        # Scalars of another type are common (a clip limit, an epsilon); the bulk of the weights decides.
        fits = not stored or max(stored, key=lambda name: stored[name]) == wanted
    if not fits:
        found = "int8" if file.quantized else max(stored, key=lambda name: stored[name], default="no weights at all")
        raise InputError(
            f"its weights are {found}, so it cannot be run as {precision}",
            where=str(file.path),
            hint=f"export it with --precision {precision}, or name its own precision",
        )


def nodes_of_operator(model: onnx.ModelProto, operator: str) -> tuple[str, ...]:
    """Names of the nodes of one operator type, in the file's order (their first output where unnamed)."""
    return tuple(node.name or next(iter(node.output), "") for node in model.graph.node if node.op_type == operator)


def _operator_name(node: onnx.NodeProto) -> str:
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"


def _tensor(value: onnx.ValueInfoProto, path: Path) -> TensorInfo:
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not kind.elem_type:
        raise InputError(f"{value.name!r} is not a tensor", where=str(path), hint="only tensors can be fed and read")
    shape = tuple(size.dim_value if size.HasField("dim_value") else None for size in kind.shape.dim)
    return TensorInfo(name=value.name, dtype=str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)), shape=shape)
