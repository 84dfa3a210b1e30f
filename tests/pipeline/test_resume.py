"""A run that was killed goes on as if nothing had happened."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

TRAIN = ("train", "tiny:Tiny", "--epochs", 3, "--batch-size", 256)
PRUNE = ("prune", "dense.safetensors", "--flops", 0.4, "--epochs", 2, "--batch-size", 256)

KILL_AFTER_EPOCH = """
import os, signal
from prune2deploy.training.state import TrainingState
save = TrainingState.save
def save_and_die(self, path):
    save(self, path)
    if path.stem == {variant!r} and len(self.history) == {epoch}:
        os.kill(os.getpid(), signal.SIGKILL)
TrainingState.save = save_and_die
"""
KILL_ONCE_BEGUN = """
import os, signal
from prune2deploy.run import RunFolder
create = RunFolder.create.__func__
def create_and_die(cls, *arguments, **options):
    create(cls, *arguments, **options)
    os.kill(os.getpid(), signal.SIGKILL)
RunFolder.create = classmethod(create_and_die)
"""


def outcome(run: Path) -> dict:
    """What must not depend on where a run was interrupted: weights, accuracies, costs, plan."""
    manifest = json.loads((run / "run.json").read_text())
    assert manifest["finished"]
    return {
        "plan": manifest["pruning"].get("plan"),
        "notes": manifest["notes"],
        "variants": {
            name: {
                "accuracies": record["accuracies"],
                "flops": record["flops"],
                "losses": [epoch["loss"] for epoch in record["training"].get("history", [])],
                "weights": digest_of_tensors(run / name / "model.safetensors"),
            }
            for name, record in manifest["variants"].items()
        },
    }


def digest_of_tensors(path: Path) -> str:
    """SHA-256 of what follows the header, which holds the command and the time that training took."""
    content = path.read_bytes()
    return hashlib.sha256(content[8 + int.from_bytes(content[:8], "little") :]).hexdigest()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_source):
    folder = tmp_path_factory.mktemp("resume") / "here"
    folder.mkdir()
    (folder / "tiny.py").write_text(tiny_source)
    return folder


@pytest.fixture(scope="module")
def trained(own_process, folder):
    done = own_process(folder, *TRAIN, "--out", "trained")
    assert done.code == 0, done.stderr
    shutil.copy(folder / "trained/dense/model.safetensors", folder / "dense.safetensors")
    return outcome(folder / "trained")


@pytest.fixture(scope="module")
def pruned(own_process, folder, trained):
    done = own_process(folder, *PRUNE, "--out", "pruned")
    assert done.code == 0, done.stderr
    return outcome(folder / "pruned")


def test_training_goes_on_after_a_kill(own_process, folder, trained):
    command = (*TRAIN, "--out", "train-again")
    killed = own_process(folder, *command, before=KILL_AFTER_EPOCH.format(variant="dense", epoch=1))
    assert killed.code == -9
    done = own_process(folder, *command, "--resume")
    assert done.code == 0, done.stderr
    assert outcome(folder / "train-again") == trained


def test_pruning_during_fine_tuning_goes_on_after_a_kill_between_its_cuts(own_process, folder, trained):
    command = (*PRUNE[:4], "--epochs", 4, "--batch-size", 256, "--every-steps", 3, "--variants", "dense,pruned")
    whole = own_process(folder, *command, "--out", "gradual")
    assert whole.code == 0, whole.stderr
    again = (*command, "--out", "gradual-again")
    killed = own_process(folder, *again, before=KILL_AFTER_EPOCH.format(variant="pruned", epoch=2))
    assert killed.code == -9
    done = own_process(folder, *again, "--resume")
    assert done.code == 0, done.stderr
    assert outcome(folder / "gradual-again") == outcome(folder / "gradual")


@pytest.mark.parametrize(("variant", "epoch"), [("pruned", 1), ("reduced", 2)])
def test_pruning_goes_on_after_a_kill(own_process, folder, pruned, variant, epoch):
    command = (*PRUNE, "--out", f"prune-{variant}")
    killed = own_process(folder, *command, before=KILL_AFTER_EPOCH.format(variant=variant, epoch=epoch))
    assert killed.code == -9
    done = own_process(folder, *command, "--resume")
    assert done.code == 0, done.stderr
    assert outcome(folder / f"prune-{variant}") == pruned
    assert not list(folder.rglob("*.partial*"))


def test_a_run_goes_on_that_was_killed_as_soon_as_its_folder_was_made(own_process, folder, pruned):
    command = (*PRUNE, "--out", "prune-begun")
    assert own_process(folder, *command, before=KILL_ONCE_BEGUN).code == -9
    assert json.loads((folder / "prune-begun/run.json").read_text())["variants"] == {}
    done = own_process(folder, *command, "--resume")
    assert done.code == 0, done.stderr
    assert outcome(folder / "prune-begun") == pruned


def test_other_options_are_refused_by_name(folder, pruned, run_p2d, monkeypatch):
    monkeypatch.chdir(folder)
    before = (folder / "pruned/run.json").read_bytes()
    result = run_p2d(*PRUNE[:-1], 128, "--out", "pruned", "--resume")
    assert result.exit_code == 2
    assert "batch_size was 256, now 128" in result.stderr
    result = run_p2d("prune", "dense.safetensors", "--flops", 0.5, *PRUNE[4:], "--out", "pruned", "--resume")
    assert result.exit_code == 2
    assert "flops was 0.4, now 0.5" in result.stderr
    assert result.stderr.splitlines()[-1].endswith("or leave --resume out to begin another")
    assert (folder / "pruned/run.json").read_bytes() == before


def test_weights_that_changed_since_are_refused(folder, pruned, run_p2d, monkeypatch, tmp_path):
    monkeypatch.chdir(folder)
    for name in ("pruned", "tiny.py", "dense.safetensors"):
        copy = shutil.copytree if (folder / name).is_dir() else shutil.copy
        copy(folder / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    shutil.copy(folder / "train-again/dense/model.safetensors", "dense.safetensors")
    result = run_p2d(*PRUNE, "--out", "pruned", "--resume")
    assert result.exit_code == 2
    assert "checkpoint was" in result.stderr


def test_a_finished_run_returns_at_once_and_stays_as_it_is(folder, pruned, run_p2d, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("prune2deploy.pipeline.prune.find_channels", None)
    before = {path: path.stat().st_mtime_ns for path in (folder / "pruned").rglob("*")}
    result = run_p2d(*PRUNE, "--out", "pruned", "--resume")
    assert result.exit_code == 0, result.stderr
    assert "run: pruned" in result.stdout
    assert {path: path.stat().st_mtime_ns for path in (folder / "pruned").rglob("*")} == before


def test_latest_means_the_run_that_was_latest_when_pruning_began(own_process, folder, trained, run_p2d, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "p2d-runs").mkdir(exist_ok=True)
    (folder / "p2d-runs/latest").unlink(missing_ok=True)
    (folder / "p2d-runs/latest").symlink_to(folder / "trained")
    command = ("prune", "p2d-runs/latest", *PRUNE[2:])
    killed = own_process(folder, *command, before=KILL_AFTER_EPOCH.format(variant="pruned", epoch=1))
    assert killed.code == -9
    assert (folder / "p2d-runs/latest").resolve() != (folder / "trained").resolve()
    result = run_p2d(*command, "--resume")
    assert result.exit_code == 0, result.stderr


def test_with_nothing_begun_resume_begins(run_p2d, tmp_path, tiny_source, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.py").write_text(tiny_source)
    result = run_p2d("train", "tiny:Tiny", "--epochs", 1, "--batch-size", 512, "--out", "new", "--resume")
    assert result.exit_code == 0, result.stderr
    assert "nothing to resume" in result.stderr
    assert (tmp_path / "new/dense/model.safetensors").is_file()
