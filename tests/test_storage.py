"""Files that are either whole or absent, alone and in pairs."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from prune2deploy.errors import StorageError
from prune2deploy.storage import atomic_pair, sha256_of_file, sha256_of_files


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def write(path: Path, text: str, beside: str | None) -> None:
    companion = path.with_name("beside")
    with atomic_pair(path, companion) as folder:
        (folder / path.name).write_text(text)
        if beside is not None:
            (folder / companion.name).write_text(beside)


def test_both_files_get_their_places_and_nothing_else_stays(tmp_path: Path) -> None:
    write(tmp_path / "new" / "main", "a", "b")
    assert names(tmp_path / "new") == ["beside", "main"]
    assert (tmp_path / "new" / "beside").read_text() == "b"
    assert (tmp_path / "new" / "main").stat().st_mode & 0o777 == 0o666 & ~_umask()


def test_a_companion_that_is_no_longer_written_goes_away(tmp_path: Path) -> None:
    write(tmp_path / "main", "a", "b")
    write(tmp_path / "main", "c", None)
    assert names(tmp_path) == ["main"]
    assert (tmp_path / "main").read_text() == "c"


def test_an_error_inside_keeps_the_old_pair(tmp_path: Path) -> None:
    write(tmp_path / "main", "a", "b")
    with pytest.raises(ZeroDivisionError), atomic_pair(tmp_path / "main", tmp_path / "beside") as folder:
        (folder / "beside").write_text(str(1 / 0))
    assert names(tmp_path) == ["beside", "main"]
    assert (tmp_path / "beside").read_text() == "b"


def test_a_pair_without_its_main_file_is_refused_and_keeps_the_old_one(tmp_path: Path) -> None:
    write(tmp_path / "main", "a", None)
    with pytest.raises(StorageError, match="main"), atomic_pair(tmp_path / "main", tmp_path / "beside"):
        pass
    assert (tmp_path / "main").read_text() == "a"


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_kill_between_the_renames_never_mixes_two_pairs(renames: int, tmp_path: Path) -> None:
    write(tmp_path / "main", "old", "old")
    program = f"""
import os, signal
from pathlib import Path
from prune2deploy.storage import atomic_pair
done, replace = 0, Path.replace
def counted(self, target):
    global done
    if done == {renames}:
        os.kill(os.getpid(), signal.SIGKILL)
    done += 1
    return replace(self, target)
Path.replace = counted
with atomic_pair(Path("main"), Path("beside")) as folder:
    (folder / "main").write_text("new")
    (folder / "beside").write_text("new")
"""
    killed = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=False)
    assert killed.returncode == (-signal.SIGKILL if renames < 2 else 0)
    main = tmp_path / "main"
    assert not main.exists() or main.read_text() == (tmp_path / "beside").read_text()


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        write(tmp_path / "file" / "main", "a", None)


def test_the_digest_of_several_files_is_that_of_their_bytes_in_order(tmp_path: Path) -> None:
    for name, text in (("a", "one"), ("b", "two"), ("both", "onetwo")):
        (tmp_path / name).write_text(text)
    assert sha256_of_files((tmp_path / "a", tmp_path / "b")) == sha256_of_file(tmp_path / "both")
    assert sha256_of_files((tmp_path / "b", tmp_path / "a")) != sha256_of_file(tmp_path / "both")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
