"""Kernel timings between builds. TensorRT for RTX keeps none, but its caches can be read, merged and written."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from prune2deploy.engines.tensorrt import timing_cache
from prune2deploy.engines.tensorrt.library import listening
from prune2deploy.engines.tensorrt.timing_cache import kept_timings, timing_cache_path
from prune2deploy.progress import SILENT, Task

library = pytest.importorskip("tensorrt_rtx")

pytestmark = pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops:DeprecationWarning")


class Notes:
    def __init__(self) -> None:
        self.told: list[str] = []

    @contextmanager
    def task(self, description: str, *, total: float | None = None) -> Iterator[Task]:
        with SILENT.task(description, total=total) as task:
            yield task

    def note(self, text: str) -> None:
        self.told.append(text)


@pytest.fixture
def configuration() -> Iterator[Any]:
    with listening(library) as logger:
        builder = library.Builder(logger)
        yield builder.create_builder_config()


def test_timings_are_kept_in_the_cache_folder_by_version_and_device(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    paths = {
        timing_cache_path(engine, version, device)
        for engine in ("trt", "trt-rtx")
        for version in ("10.8.0", "11.0.0")
        for device in ("NVIDIA L4 sm_89", "NVIDIA A100/40 sm_80")
    }
    assert len(paths) == 8
    assert {path.parent for path in paths} == {tmp_path / "prune2deploy" / "timing"}


def test_what_one_build_writes_the_next_reads(configuration: Any, tmp_path: Path) -> None:
    path, notes = tmp_path / "timing" / "a.timings", Notes()
    with kept_timings(configuration, path, notes):
        assert not path.exists()
    first = path.read_bytes()
    with kept_timings(configuration, path, notes):
        pass
    assert path.read_bytes() == first
    assert notes.told == []
    assert [left.name for left in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_a_damaged_file_is_never_given_to_the_library_and_is_replaced(
    configuration: Any, tmp_path: Path, damage: bytes | None
) -> None:
    path, notes = tmp_path / "a.timings", Notes()
    with kept_timings(configuration, path, notes):
        pass
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]) if damage is None else damage)
    with kept_timings(configuration, path, notes):
        assert len(notes.told) == 1
        assert "are damaged, so they are measured anew" in notes.told[0]
    assert path.read_bytes() == whole


def test_a_build_that_fails_keeps_nothing(configuration: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.timings"
    with pytest.raises(KeyboardInterrupt), kept_timings(configuration, path, SILENT):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_costs_only_the_timings(configuration: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    notes = Notes()
    with kept_timings(configuration, tmp_path / "file" / "a.timings", notes):
        pass
    assert any("kernel timings were not kept" in note for note in notes.told)


def test_a_file_that_another_process_keeps_locked_costs_only_the_timings(
    configuration: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filelock = pytest.importorskip("filelock")
    monkeypatch.setattr(timing_cache, "LOCK_SECONDS", 0.05)
    path, notes = tmp_path / "a.timings", Notes()
    with filelock.FileLock(tmp_path / ".a.timings.lock"), kept_timings(configuration, path, notes):
        pass
    assert len(notes.told) == 1
    assert "another process is writing it" in notes.told[0]
    assert not path.exists()


def test_timings_of_another_process_are_added_to(configuration: Any, tmp_path: Path) -> None:
    path, notes = tmp_path / "a.timings", Notes()
    with kept_timings(configuration, path, notes), kept_timings(configuration, path, notes):
        pass
    assert notes.told == []
    assert path.exists()
