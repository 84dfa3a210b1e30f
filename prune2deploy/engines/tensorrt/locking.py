"""One writer at a time, across processes: a file beside the one that is to be written."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from prune2deploy.errors import StorageError
from prune2deploy.progress import SILENT, Progress

_SOON_SECONDS = 1.0


@contextmanager
def locked(path: Path, *, seconds: float, progress: Progress = SILENT) -> Iterator[None]:
    """Hold the lock of ``path`` (``.NAME.lock`` beside it), waiting at most ``seconds`` for whoever holds it.

    The lock file and a folder that was made for it alone are gone afterwards. Locks of killed processes end with them.

    Raises:
        StorageError: it is still held after that time, or the folder cannot be written.
    """
    made = _made_folder(path.parent)
    lock_path = path.with_name(f".{path.name}.lock")
    lock = FileLock(lock_path)
    try:
        _acquire(lock, path, seconds, progress)
        try:
            yield
        finally:
            # Unlinked while it is held: who gets it then looks whether it is still the file of that name.
            lock_path.unlink(missing_ok=True)
            lock.release()
    finally:
        if made:
            with suppress(OSError):  # it holds something now
                path.parent.rmdir()


def _acquire(lock: FileLock, path: Path, seconds: float, progress: Progress) -> None:
    try:
        try:
            lock.acquire(timeout=min(_SOON_SECONDS, seconds))
        except Timeout:
            progress.note(f"{path}: another process is writing it; waiting up to {seconds:.0f} s")
            lock.acquire(timeout=max(0.0, seconds - _SOON_SECONDS))
    except Timeout as error:
        raise StorageError(
            f"another process is writing it, and was not done in {seconds:.0f} s",
            where=str(path),
            hint="wait for that process to end, then try again",
        ) from error
    except OSError as error:
        raise StorageError(
            f"cannot be locked ({error.strerror or error})", where=str(path), hint="choose a folder that can be written"
        ) from error


def _made_folder(folder: Path) -> bool:
    if folder.is_dir():
        return False
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"cannot be made ({error.strerror})", where=str(folder), hint="choose a folder that can be written"
        ) from error
    return True
