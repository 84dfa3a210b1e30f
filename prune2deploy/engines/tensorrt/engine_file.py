"""A stored engine and the sidecar that says what it is: checked before the library ever sees the bytes.

    dense-fp16.engine         the serialized engine
    dense-fp16.engine.json    ``EngineRecord``

Loading a serialized engine runs native code that trusts the bytes like code of its own, and one from another version or
GPU fails late or not at all; so nothing is deserialized that the sidecar does not vouch for.
"""

import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from prune2deploy.engines.tensorrt.shapes import Range, profile_number, spelled
from prune2deploy.errors import EngineError, InputError, StorageError
from prune2deploy.storage import read_json, sha256_of_file, write_bytes, write_json

SCHEMA_VERSION = 2
_READ_VERSIONS = (1, SCHEMA_VERSION)
_HINT = "build it again with `p2d build`"
_AMPERE = (8, 0)
_MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRecord:
    """What a stored engine was built from, with and for.

    ``device`` is the GPU it was built on ("NAME sm_89"), None where it was built for any (TensorRT for RTX);
    ``platform`` is the operating system and processor that it belongs to, None for any. ``profiles`` holds, for each
    optimisation profile, the smallest, best and largest shape of each input: those of ``batches``, then of ``ranges``.
    ``shapes`` are those of inputs that were given whole.
    ``details`` is what the build tells of the network (layers, output types, census). The rest are the options of
    ``engine.TensorRTOptions`` that it was built with; ``stripped`` engines lack what the ONNX file has to fill in.
    Schema 1 knew no options.
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
    platform: str | None = None
    ranges: tuple[Range, ...] = ()
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    workspace_bytes: int | None = None
    optimization_level: int | None = None
    hardware_compatible: bool = False
    version_compatible: bool = False
    stripped: bool = False
    compute_capabilities: tuple[tuple[int, int], ...] = ()
    schema_version: int = SCHEMA_VERSION


def sidecar_path(engine_path: Path) -> Path:
    """Where the record of an engine lies."""
    return engine_path.with_name(engine_path.name + ".json")


def write_engine(engine_path: Path, content: bytes, record: EngineRecord) -> None:
    """Store an engine and then its record. Killed in between, the old record no longer fits and is refused.

    Raises:
        StorageError: one of the two cannot be written. An engine whose record cannot be written is removed.
    """
    write_bytes(engine_path, content)
    try:
        write_json(sidecar_path(engine_path), asdict(record))
    except StorageError:
        engine_path.unlink(missing_ok=True)
        raise


def require_space(engine_path: Path, bytes_needed: int) -> None:
    """Refuse to begin a build whose engine would not fit on the disk.

    Raises:
        StorageError: there is less space than that where the engine will lie.
    """
    folder = next(parent for parent in engine_path.resolve().parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if free < bytes_needed:
        raise StorageError(
            f"needs about {bytes_needed / _MIB:.1f} MiB, and {free / _MIB:.1f} MiB are free",
            where=str(engine_path),
            hint="free some space or choose another folder; nothing was built",
        )


def read_engine(
    engine_path: Path,
    *,
    engine: str,
    library_version: str,
    device: str | None,
    platform: str | None = None,
    onnx_sha256: str | None = None,
    precision: str | None = None,
    batches: tuple[int, ...] = (),
) -> tuple[bytes, EngineRecord]:
    """The bytes of a stored engine and its record, if it may be loaded here.

    ``device`` is the GPU of this machine ("NAME sm_89"), None for none; ``platform`` as in the record, None to leave it
    unchecked. ``onnx_sha256``, ``precision`` and ``batches`` are what the engine should hold, where that matters.

    Raises:
        InputError: the engine or its record is missing or damaged, or it was built from another file.
        EngineError: it is of another engine, library version, platform or GPU, or lacks a batch size.
    """
    where = str(engine_path)
    if not engine_path.is_file():
        raise InputError("there is no such engine", where=where, hint=_HINT)
    record = read_record(engine_path)
    if sha256_of_file(engine_path) != record.engine_sha256:
        raise InputError("is damaged, or was replaced (its digest is not the recorded one)", where=where, hint=_HINT)
    if record.engine != engine:
        raise EngineError(f"was built by {record.engine}, not {engine}", where=where, hint=f"--engine {record.engine}")
    if not _version_fits(record, library_version):
        raise EngineError(
            f"was built by {engine} {record.library_version}, here is {library_version}", where=where, hint=_HINT
        )
    if record.platform is not None and platform is not None and record.platform != platform:
        raise EngineError(f"was built on {record.platform}, here is {platform}", where=where, hint=_HINT)
    if not _device_fits(record, device):
        raise EngineError(f"was built for {_built_for(record)}, here is {device or 'no GPU'}", where=where, hint=_HINT)
    if onnx_sha256 is not None and record.onnx_sha256 != onnx_sha256:
        raise InputError("was built from another ONNX file", where=where, hint=_HINT)
    if precision is not None and record.precision != precision:
        raise InputError(f"was built as {record.precision}, not {precision}", where=where, hint=_HINT)
    if missing := [batch for batch in batches if profile_number(batch, record.batches, record.ranges) is None]:
        raise EngineError(
            f"was built for batches of {spelled(record.batches, record.ranges)}, and {spelled(tuple(missing))} "
            "is asked for",
            where=where,
            hint=_HINT,
        )
    return engine_path.read_bytes(), record


def read_record(engine_path: Path) -> EngineRecord:
    """What the sidecar of an engine says, unchecked against the engine itself.

    Raises:
        InputError: it is missing, damaged, or of a schema that this version does not read.
    """
    path = sidecar_path(engine_path)
    document = read_json(path, hint=_HINT)
    if document.get("schema_version") not in _READ_VERSIONS:
        raise InputError(
            f"has schema version {document.get('schema_version')}, this p2d reads {_READ_VERSIONS[0]} to "
            f"{_READ_VERSIONS[-1]}",
            where=str(path),
            hint=_HINT,
        )
    try:
        fields = dict(document)
        for name in ("batches", "ranges", "compute_capabilities"):
            if name in fields:
                fields[name] = _tuples(fields[name])
        fields["profiles"] = tuple(
            {name: _tuples(shapes) for name, shapes in profile.items()} for profile in fields["profiles"]
        )
        fields["shapes"] = {name: tuple(shape) for name, shape in fields.get("shapes", {}).items()}
        return EngineRecord(**fields)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"is damaged ({error})", where=str(path), hint=_HINT) from error


def _version_fits(record: EngineRecord, here: str) -> bool:
    """The same version; for version-compatible engines any later one of the same major version."""
    if not record.version_compatible:
        return record.library_version == here
    built, now = _numbers(record.library_version), _numbers(here)
    return built[:1] == now[:1] and built <= now


def _device_fits(record: EngineRecord, device: str | None) -> bool:
    """The same GPU model; one of those that were listed; else, for hardware-compatible engines and those of TensorRT
    for RTX, any from Ampere on.
    """
    here = _compute_capability(device)
    if record.compute_capabilities and (here is None or here not in record.compute_capabilities):
        return False
    if record.device is None:
        return record.compute_capabilities != () or here is None or here >= _AMPERE
    if record.hardware_compatible:
        return here is not None and here >= _AMPERE
    return record.device == device


def _built_for(record: EngineRecord) -> str:
    if record.compute_capabilities:
        listed = ", ".join(f"{major}.{minor}" for major, minor in record.compute_capabilities)
        return f"compute capability {listed}"
    if record.hardware_compatible or record.device is None:
        return "GPUs from compute capability 8.0 on"
    return record.device


def _compute_capability(device: str | None) -> tuple[int, int] | None:
    found = re.search(r"sm_(\d+)(\d)$", device or "")
    return (int(found[1]), int(found[2])) if found else None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
