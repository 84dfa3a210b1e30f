"""A benchmark outlives its cells: what fails, hangs or dies in the process is a record, and the next cell runs."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cell_process import CellProcess

from prune2deploy.storage import read_json


@pytest.fixture
def process(tmp_path: Path) -> Iterator[CellProcess]:
    made = CellProcess(os.chdir, tmp_path)
    yield made
    made.end()


def test_calls_are_answered_by_one_process_that_was_begun_as_asked(process: CellProcess, tmp_path: Path) -> None:
    assert process.ask(os.getcwd, seconds=60) == str(tmp_path)
    first = process.ask(os.getpid, seconds=60)
    assert first != os.getpid()
    assert process.ask(os.getpid, seconds=60) == first


def test_an_expected_error_is_its_one_line(process: CellProcess) -> None:
    answer = process.ask(read_json, Path("absent.json"), seconds=60)
    assert answer == {"failed": "absent.json: cannot be read (No such file or directory)"}


def test_an_unexpected_error_is_marked_as_such(process: CellProcess) -> None:
    answer = process.ask(int, "many", seconds=60)
    assert answer["unexpected"]
    assert answer["failed"].startswith("ValueError: invalid literal")


def test_a_process_that_dies_is_told_and_replaced(process: CellProcess, tmp_path: Path) -> None:
    assert process.ask(os._exit, 7, seconds=60) == {"failed": "its process died with 7"}
    assert process.ask(os.getcwd, seconds=60) == str(tmp_path)


def test_a_call_that_hangs_is_ended_at_its_limit(process: CellProcess, tmp_path: Path) -> None:
    process.ask(os.getpid, seconds=60)
    assert process.ask(time.sleep, 600, seconds=0.2) == {"failed": "took over 0 s"}
    assert process.ask(os.getcwd, seconds=60) == str(tmp_path)
