"""One writer at a time, seen from several real processes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from prune2deploy.engines.tensorrt.locking import locked
from prune2deploy.errors import StorageError

HOLD = """
import sys, time
from pathlib import Path
from prune2deploy.engines.tensorrt.locking import locked
with locked(Path(sys.argv[1]), seconds=10):
    print("held", flush=True)
    sys.stdin.readline()
"""
COUNT = """
import sys
from pathlib import Path
from prune2deploy.engines.tensorrt.locking import locked
path = Path(sys.argv[1])
for _ in range(25):
    with locked(path, seconds=60):
        path.write_text(str(int(path.read_text()) + 1))
"""


def holder(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_path_held_by_another_process_is_refused_in_time(tmp_path: Path) -> None:
    path = tmp_path / "engines" / "net.engine"
    with holder(path) as other:
        with (
            pytest.raises(StorageError, match=r"net\.engine: another process is writing it, and was not done in 0 s"),
            locked(path, seconds=0.1),
        ):
            pass
        other.communicate("\n")
    with locked(path, seconds=5):
        assert [left.name for left in path.parent.iterdir()] == [".net.engine.lock"]
    assert not path.parent.exists()


def test_the_lock_of_a_killed_process_ends_with_it(tmp_path: Path) -> None:
    path = tmp_path / "net.engine"
    with holder(path) as other:
        os.kill(other.pid, signal.SIGKILL)
    with locked(path, seconds=5):
        pass
    assert list(tmp_path.iterdir()) == []


def test_processes_that_count_together_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "count"
    path.write_text("0")
    counters = [subprocess.Popen([sys.executable, "-c", COUNT, str(path)]) for _ in range(3)]
    assert [counter.wait(timeout=120) for counter in counters] == [0, 0, 0]
    assert path.read_text() == "75"
    assert [left.name for left in tmp_path.iterdir()] == ["count"]


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot be made"), locked(tmp_path / "file" / "net.engine", seconds=1):
        pass
