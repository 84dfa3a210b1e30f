"""What TensorRT measured of kernels in earlier builds, kept for later ones in the user's cache folder.

Timings hold for one version of the library on one GPU model, so each pair has a file of its own. The file begins with
the digest of what follows, and the library is never given bytes that do not fit it. TensorRT for RTX has no timings.
"""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from prune2deploy.engines.tensorrt.locking import locked
from prune2deploy.errors import StorageError
from prune2deploy.progress import Progress
from prune2deploy.storage import write_bytes

_MAGIC = b"p2d timing cache 1\n"
_DIGEST_BYTES = hashlib.sha256().digest_size
LOCK_SECONDS = 30.0


def timing_cache_path(engine: str, library_version: str, device: str) -> Path:
    """Where the timings of an engine lie for one version of its library and one GPU model."""
    name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{engine} {library_version} {device}").strip("-")
    return user_cache_path("prune2deploy") / "timing" / f"{name}.timings"


@contextmanager
def kept_timings(configuration: Any, path: Path, progress: Progress) -> Iterator[None]:
    """Give a build the timings of earlier ones, and add what it measures to them, when it has ended without an error.

    Timings only save time: a file that is damaged or of another machine is replaced, and one that cannot be written
    left as it is, each with a note.
    """
    before = _content(path, progress)
    cache = _attached(configuration, before)
    if cache is None and before:
        progress.note(f"{path}: TensorRT refused the kept kernel timings, so they are measured anew")
        cache = _attached(configuration, b"")
    yield
    if cache is None:
        return
    try:
        with locked(path, seconds=LOCK_SECONDS):
            now = _content(path, progress)
            if now and now != before:
                # Another process has added its own in the meantime.
                cache.combine(configuration.create_timing_cache(now), False)
            measured = bytes(cache.serialize())
            if measured != now:
                write_bytes(path, _MAGIC + hashlib.sha256(measured).digest() + measured)
    except StorageError as error:
        progress.note(f"kernel timings were not kept ({error})")


def _attached(configuration: Any, content: bytes) -> Any:
    """A timing cache that the configuration took, None if it did not."""
    cache = configuration.create_timing_cache(content)
    return cache if cache is not None and configuration.set_timing_cache(cache, False) else None


def _content(path: Path, progress: Progress) -> bytes:
    """The kept timings; empty where there are none, or none that are whole."""
    try:
        stored = path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        progress.note(f"{path}: kept kernel timings cannot be read ({error.strerror}), so they are measured anew")
        return b""
    digest, content = stored[len(_MAGIC) :][:_DIGEST_BYTES], stored[len(_MAGIC) + _DIGEST_BYTES :]
    if not stored.startswith(_MAGIC) or hashlib.sha256(content).digest() != digest:
        progress.note(f"{path}: the kept kernel timings are damaged, so they are measured anew")
        return b""
    return content
