"""What an ONNX file says of itself, read without torch and without running anything."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from prune2deploy.engines.engine import TensorInfo
from prune2deploy.errors import InputError
from prune2deploy.storage import DATA_DIGEST, sha256_of_file, sha256_of_files

_STORED_FLOATS = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
_HINT = "pass a file that `p2d export` or another ONNX exporter wrote"


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxFile:
    """The interface and contents of an ONNX file.

    ``data_files`` hold weights that lie beside it; ``bytes_total`` counts these, too, and ``sha256`` covers them: it is
    that of the file alone where its metadata holds the digest of its data file (and this was verified), else of all
    bytes, one file after the other. ``inputs`` and ``outputs`` are in the file's order, without initializers.
    ``opset`` is the version of the standard operators. ``operators`` counts nodes by type (``domain::type`` outside
    the standard ones).
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
    data_files: tuple[Path, ...] = ()

    @property
    def quantized(self) -> bool:
        """Whether the graph quantizes activations."""
        return "QuantizeLinear" in self.operators

    @property
    def dynamic_batch(self) -> bool:
        """Whether the first dimension of the first input is free."""
        return bool(self.inputs) and bool(self.inputs[0].shape) and self.inputs[0].shape[0] is None


def read_onnx_file(path: Path) -> OnnxFile:
    """Read the interface, operators and metadata of an ONNX file. Of weights beside it only the digest is taken.

    Raises:
        InputError: the file is missing, a folder, empty, truncated, or no ONNX model; or weights that lie beside it
            are missing, truncated or not those that it was written with.
    """
    model = load_onnx_proto(path)
    data_files = data_files_of(model, path)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
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
        sha256=_digest(path, data_files, metadata),
        bytes_total=sum(file.stat().st_size for file in (path, *data_files)),
        opset=next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0),
        producer=f"{model.producer_name} {model.producer_version}".strip(),
        inputs=tuple(_tensor(value, path) for value in graph.input if value.name not in stored),
        outputs=tuple(_tensor(value, path) for value in graph.output),
        operators=dict(Counter(_operator_name(node) for node in graph.node)),
        weights_by_precision=dict(weights),
        metadata=metadata,
        data_files=data_files,
    )


def data_files_of(model: onnx.ModelProto, path: Path) -> tuple[Path, ...]:
    """The files beside ``path`` in which weights of ``model`` lie, sorted; all of them hold what they should.

    Raises:
        InputError: one is missing or too short, or lies outside the folder of ``path``.
    """
    ends: dict[str, int] = {}
    for tensor in _stored_tensors(model.graph):
        if uses_external_data(tensor):
            try:
                place = ExternalDataInfo(tensor)
            except ValueError as error:
                raise InputError(f"does not say where {tensor.name!r} lies", where=str(path), hint=_HINT) from error
            end = (place.offset or 0) + (place.length or 0)
            ends[place.location] = max(ends.get(place.location, 0), end)
    for location, end in ends.items():
        # A file from elsewhere must not make us, or an engine, read what lies elsewhere.
        if not location or Path(location).is_absolute() or ".." in Path(location).parts:
            raise InputError(f"its weights lie in {location!r}, outside its folder", where=str(path), hint=_HINT)
        beside = path.with_name(location)
        if not beside.is_file():
            raise InputError(
                f"its weights lie in {location}, which is not there",
                where=str(path),
                hint="keep both files in one folder, or export it again",
            )
        if beside.stat().st_size < end:
            raise InputError(
                f"{location} is truncated: its weights take {end} bytes, and it holds {beside.stat().st_size}",
                where=str(path),
                hint="copy that file again, or export it again",
            )
    return tuple(path.with_name(location) for location in sorted(ends))


def _stored_tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    """Initializers and tensors among attributes, those of graphs inside nodes as well."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            for inner in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
                yield from _stored_tensors(inner)


def _digest(path: Path, data_files: tuple[Path, ...], metadata: Mapping[str, str]) -> str:
    wanted = metadata.get(DATA_DIGEST)
    if not data_files or wanted is None or len(data_files) > 1:
        return sha256_of_files((path, *data_files))
    if sha256_of_file(data_files[0]) != wanted:
        raise InputError(
            f"{data_files[0].name} does not hold the weights that it was written with",
            where=str(path),
            hint="keep the two files of one export together, or export it again",
        )
    return sha256_of_file(path)


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


def stored_precision(file: OnnxFile) -> str | None:
    """The precision that a file states: that of most of its weights, or int8 where it quantises; None without weights.

    Scalars of another type are common (a clip limit, an epsilon), so the bulk of the weights decides.
    """
    if file.quantized:
        return "int8"
    stored = {name: count for name, count in file.weights_by_precision.items() if count}
    return max(stored, key=lambda name: stored[name], default=None)


def require_precision(file: OnnxFile, precision: str) -> None:
    """Refuse a file whose stored weights are not of the precision that it should be run at.

    Engines here are strongly typed: they compute in the types that the file states, so a float32 file built
    "as fp16" would be timed under a wrong name. ``tf32`` is float32 weights; a network without weights passes, unless
    it should be int8.

    Raises:
        InputError: the weights are of another precision.
    """
    found = stored_precision(file)
    if found == ("fp32" if precision == "tf32" else precision) or (found is None and precision != "int8"):
        return
    raise InputError(
        f"its weights are {found or 'no weights at all'}, so it cannot be run as {precision}",
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
