"""A stored engine and the sidecar that says what it is: checked before the library ever sees the bytes.

    dense-fp16.engine         the serialized engine
    dense-fp16.engine.json    ``EngineRecord``

A serialized engine is trusted like code by the library that loads it, and one from another version or GPU fails late
or not at all; so nothing is deserialized that the sidecar does not vouch for.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from prune2deploy.errors import EngineError, InputError
from prune2deploy.storage import read_json, sha256_of_file, write_bytes, write_json

SCHEMA_VERSION = 1
_HINT = "build it again with `p2d build`"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRecord:
    """What a stored engine was built from, with and for.

    ``device`` is the GPU it was built on ("NAME sm_89"), None where it was built for any (TensorRT for RTX).
    ``profiles`` holds, for each optimisation profile, the smallest, best and largest shape of each input.
    ``details`` is what the build tells of the network (layers, output types).
    """

    engine: str
    precision: str
    onnx_sha256: str
    engine_sha256: str
    bytes_total: int
    library_version: str
    device: str | None
    batches: tuple[int, ...]
    profiles: tuple[Mapping[str, tuple[tuple[int, ...], ...]], ...]
    build_seconds: float
    details: Mapping[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION


def sidecar_path(engine_path: Path) -> Path:
    """Where the record of an engine lies."""
    return engine_path.with_name(engine_path.name + ".json")


def write_engine(engine_path: Path, content: bytes, record: EngineRecord) -> None:
    """Store an engine and then its record. Killed in between, the old record no longer fits and is refused."""
    write_bytes(engine_path, content)
    write_json(sidecar_path(engine_path), asdict(record))


def read_engine(
    engine_path: Path,
    *,
    engine: str,
    library_version: str,
    device: str | None,
    onnx_sha256: str | None = None,
    precision: str | None = None,
    batches: tuple[int, ...] = (),
) -> tuple[bytes, EngineRecord]:
    """The bytes of a stored engine and its record, if it may be loaded here.

    ``device`` is the GPU of this machine; a record without one fits any. ``onnx_sha256``, ``precision`` and
    ``batches`` are what the engine should hold, where that matters.

    Raises:
        InputError: the engine or its record is missing or damaged, or it was built from another file.
        EngineError: it is of another engine, library version or GPU, or lacks a batch size.
    """
    where = str(engine_path)
    if not engine_path.is_file():
        raise InputError("there is no such engine", where=where, hint=_HINT)
    record = _record(sidecar_path(engine_path))
    if sha256_of_file(engine_path) != record.engine_sha256:
        raise InputError("is damaged, or was replaced (its digest is not the recorded one)", where=where, hint=_HINT)
    if record.engine != engine:
        raise EngineError(f"was built by {record.engine}, not {engine}", where=where, hint=f"--engine {record.engine}")
    if record.library_version != library_version:
        raise EngineError(
            f"was built by {engine} {record.library_version}, here is {library_version}", where=where, hint=_HINT
        )
    if record.device is not None and record.device != device:
        raise EngineError(f"was built for {record.device}, here is {device or 'no GPU'}", where=where, hint=_HINT)
    if onnx_sha256 is not None and record.onnx_sha256 != onnx_sha256:
        raise InputError("was built from another ONNX file", where=where, hint=_HINT)
    if precision is not None and record.precision != precision:
        raise InputError(f"was built as {record.precision}, not {precision}", where=where, hint=_HINT)
    if missing := [batch for batch in batches if batch not in record.batches]:
        raise EngineError(
            f"was built for batches {list(record.batches)}, and {missing} is asked for", where=where, hint=_HINT
        )
    return engine_path.read_bytes(), record


def _record(path: Path) -> EngineRecord:
    document = read_json(path, hint=_HINT)
    if document.get("schema_version") != SCHEMA_VERSION:
        raise InputError(
            f"has schema version {document.get('schema_version')}, this p2d reads {SCHEMA_VERSION}",
            where=str(path),
            hint=_HINT,
        )
    try:
        fields = dict(document)
        fields["batches"] = tuple(fields["batches"])
        fields["profiles"] = tuple(
            {name: tuple(tuple(shape) for shape in shapes) for name, shapes in profile.items()}
            for profile in fields["profiles"]
        )
        return EngineRecord(**fields)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"is damaged ({error})", where=str(path), hint=_HINT) from error
