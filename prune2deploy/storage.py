"""Files that are either whole or absent: atomic writes, digests, JSON documents."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prune2deploy.errors import InputError, StorageError

DATA_DIGEST = "data_sha256"
"""Key of an ONNX file's metadata that holds the digest of the data file beside it: its own digest then covers both."""

_CHUNK_BYTES = 1 << 20


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``; on success flush it to disk and rename it to ``path``.

    On any failure the temporary file is removed and ``path`` keeps its earlier content. The temporary name
    ends as ``path`` does, because some writers look at the suffix.

    Raises:
        StorageError: the folder cannot be made, the disk is full or the rename is refused.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".", suffix=f".partial{path.suffix}", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise _storage_error(path, error) from error
    partial = Path(name)
    try:
        try:
            yield partial
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
            partial.chmod(0o666 & ~_umask())
            partial.replace(path)
        except OSError as error:
            raise _storage_error(path, error) from error
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_pair(path: Path, companion: Path) -> Iterator[Path]:
    """Yield an empty folder for two files of these names, which go to their places together; both lie in one folder.

    ``path`` refers to ``companion``, which need not be written: then an older one goes away. On any failure both keep
    their earlier content. Killed in between, ``path`` is absent, and never refers to what it was not written with.

    Raises:
        StorageError: the folder cannot be made, the disk is full or a rename is refused.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".", suffix=".partial", dir=path.parent))
    except OSError as error:
        raise _storage_error(path, error) from error
    try:
        try:
            yield folder
            written = [folder / name for name in (path.name, companion.name) if (folder / name).exists()]
            for file in written:
                with file.open("rb+") as opened:
                    os.fsync(opened.fileno())
                file.chmod(0o666 & ~_umask())
            if (folder / companion.name).exists():
                path.unlink(missing_ok=True)
                (folder / companion.name).replace(companion)
                (folder / path.name).replace(path)
            else:
                (folder / path.name).replace(path)
                companion.unlink(missing_ok=True)
        except OSError as error:
            raise _storage_error(path, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path``, whole or not at all."""
    with atomic_path(path) as partial:
        partial.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write UTF-8 text to ``path``, whole or not at all."""
    write_bytes(path, content.encode())


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON document to ``path``, whole or not at all. NaN is refused, as JSON has none."""
    write_text(path, json.dumps(document, indent=2, allow_nan=False) + "\n")


def read_json(path: Path, *, hint: str | None = None) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InputError: the file is missing, is not JSON, or holds something other than an object.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=str(path), hint=hint) from error
    except ValueError as error:
        raise InputError("is not a JSON document, or is damaged", where=str(path), hint=hint) from error
    if not isinstance(document, dict):
        raise InputError("holds no JSON object", where=str(path), hint=hint)
    return document


def sha256_of_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    return sha256_of_files((path,))


def sha256_of_files(paths: Iterable[Path]) -> str:
    """Hexadecimal SHA-256 of the bytes of several files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


def _storage_error(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"cannot be written ({error.strerror or error})",
        where=str(path),
        hint="free some space or choose another folder with --out; earlier results are intact",
    )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
