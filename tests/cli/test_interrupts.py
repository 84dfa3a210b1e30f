"""Ctrl-C in each stage: exit code 130, one line, nothing half-written, no process left behind."""

import json
import shutil
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.slow

TRAIN = ("train", "tiny:Tiny", "--epochs", 3, "--batch-size", 256)
PRUNE = ("prune", "run/dense", "--flops", 0.4, "--epochs", 2, "--batch-size", 256)
BENCH = ("bench", "pruned", "--engine", "ort-cpu", "--threads", 1, "--batch", 1, "--builds", 3, "--max-seconds", 60)

# Ctrl-C while a function is at work, {delay} seconds after it was entered.
DURING = """
import os, signal, threading
import {module} as module
function = module.{name}
def interrupted(*arguments, **options):
    threading.Timer({delay}, os.kill, (os.getpid(), signal.SIGINT)).start()
    return function(*arguments, **options)
module.{name} = interrupted
"""
AFTER_FIRST_EPOCH = """
import os, signal
from prune2deploy.training.state import TrainingState
save = TrainingState.save
def save_and_stop(self, path):
    save(self, path)
    os.kill(os.getpid(), signal.SIGINT)
TrainingState.save = save_and_stop
"""


def during(module: str, name: str, *, delay: float = 0.2) -> str:
    return DURING.format(module=module, name=name, delay=delay)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_source, own_process):
    folder = tmp_path_factory.mktemp("interrupts") / "here"
    folder.mkdir()
    (folder / "tiny.py").write_text(tiny_source)
    for command in ((*TRAIN, "--out", "run"), (*PRUNE, "--out", "pruned")):
        done = own_process(folder, *command)
        assert done.code == 0, done.stderr
    return folder


def contents(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def assert_interrupted(done, *, resumable: bool) -> None:
    assert done.code == 130, done.stderr
    assert done.stdout == ""
    line = "p2d: error: interrupted" + ("; the same command with --resume goes on" if resumable else "")
    assert done.stderr.splitlines()[-1] == line
    assert done.stderr.count("p2d: error") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("command", "variant"), [(TRAIN, "dense"), (PRUNE, "pruned")])
def test_in_training(command, variant, folder, own_process):
    out = f"interrupted-{variant}"
    assert_interrupted(own_process(folder, *command, "--out", out, before=AFTER_FIRST_EPOCH), resumable=True)
    assert (folder / out / "training" / f"{variant}.pt").is_file()
    assert not list(folder.rglob("*.partial*"))
    done = own_process(folder, *command, "--out", out, "--resume")
    assert done.code == 0, done.stderr
    assert json.loads((folder / out / "run.json").read_text())["finished"]


@pytest.mark.parametrize(
    "before",
    [
        during("prune2deploy.pipeline.backends", "export_program"),
        during("prune2deploy.pipeline.backends", "trace_program", delay=0.0),
        during("prune2deploy.pipeline.cutting", "prove", delay=0.0),
    ],
)
def test_in_tracing_and_proving_nothing_is_written(before, folder, own_process):
    at_first = contents(folder)
    done = own_process(folder, *PRUNE, "--out", "never", before=before)
    assert_interrupted(done, resumable=True)
    assert contents(folder) == at_first
    done = own_process(folder, *PRUNE, "--out", "later", "--resume")
    assert done.code == 0, done.stderr
    shutil.rmtree(folder / "later")


@pytest.mark.parametrize("function", ["_traced", "_translated"])
def test_in_export_earlier_files_stay(function, folder, own_process):
    done = own_process(
        folder, "export", "pruned", before=during("prune2deploy.export.onnx_from_model", function, delay=0.05)
    )
    assert_interrupted(done, resumable=False)
    assert not list((folder / "pruned").rglob("*.partial*"))
    assert not (folder / "pruned/onnx/evaluation.npz").exists()


def test_in_bench_the_measuring_process_ends_too(folder, own_process):
    done = own_process(folder, "export", "pruned")
    assert done.code == 0, done.stderr
    at_first = contents(folder / "pruned")
    place = folder.parent / "temporary"
    place.mkdir()
    stop = during("prune2deploy.bench.process", "_run", delay=2.0)
    done = own_process(folder, *BENCH, before=f"import tempfile; tempfile.tempdir = {str(place)!r}\n{stop}")
    assert_interrupted(done, resumable=False)
    assert contents(folder / "pruned") == at_first
    assert list(place.iterdir()) == []
    left = [one.pid for one in psutil.process_iter(["cmdline"]) if str(place) in " ".join(one.info["cmdline"] or [])]
    assert left == []
