"""``p2d train --method``: every method from the command to the exported file, and across a kill at any step."""

import hashlib
import json
import random
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

import prune2deploy as p2d
from prune2deploy.budget.plan import PrunePlan
from prune2deploy.data.load import load_data
from prune2deploy.pipeline import choices
from prune2deploy.pipeline.method_options import METHOD_OPTIONS
from prune2deploy.policies.registry import METHODS

STEPS_PER_EPOCH = 6
COMMANDS = {
    "3sp": ("--method", "3sp", "--flops", 0.5, "--epochs", 2),
    "epi": ("--method", "epi", "--flops", 0.5, "--epochs", 4, "--window", 1, "--threshold", 0.5),
    "prunetrain": (
        *("--method", "prunetrain", "--epochs", 4, "--interval", 2, "--penalty-ratio", 0.9, "--dead-below", 0.05),
        *("--align", 1, "--ema", 0.5),
    ),
    "activation-density": (
        *("--method", "activation-density", "--epochs", 5, "--plateau-window", 1, "--plateau-epsilon", 0.9),
    ),
    "activation-density, fresh weights": (
        *("--method", "activation-density", "--keep", "reinitialise", "--epochs", 5, "--plateau-window", 1),
        *("--plateau-epsilon", 0.9),
    ),
}
KILL_AT_STEP = """
import os, signal
from accelerate.optimizer import AcceleratedOptimizer
step, taken = AcceleratedOptimizer.step, []
def step_or_die(self, *arguments, **options):
    taken.append(1)
    if len(taken) == {step}:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, *arguments, **options)
AcceleratedOptimizer.step = step_or_die
"""
KILL_WHEN_TRAINED = """
import os, signal
from prune2deploy.pipeline import method_training
keep = method_training.keep_variant
def keep_or_die(run, name, *arguments, **options):
    if name == "pruned":
        os.kill(os.getpid(), signal.SIGKILL)
    keep(run, name, *arguments, **options)
method_training.keep_variant = keep_or_die
"""


def train(*options: object) -> tuple[object, ...]:
    return ("train", "tiny:Tiny", *options, "--batch-size", 256)


def manifest_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "run.json").read_text())


def outcome(run: Path) -> dict[str, Any]:
    """What must not depend on where a run was interrupted: all but the time that it took."""
    manifest = manifest_of(run)
    assert manifest["finished"]
    return {
        "pruning": manifest["pruning"],
        "notes": manifest["notes"],
        "variants": {
            name: {
                "accuracies": record["accuracies"],
                "flops": record["flops"],
                "history": without_seconds(record["training"].get("history", [])),
                "findings": without_seconds(record["training"].get("findings")),
                "training_flops": record["training"].get("cost", {}).get("training_flops"),
                "weights": digest_of_tensors(run / name / "model.safetensors"),
            }
            for name, record in manifest["variants"].items()
        },
    }


def without_seconds(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_seconds(one) for name, one in value.items() if name != "seconds"}
    return [without_seconds(one) for one in value] if isinstance(value, list) else value


def digest_of_tensors(path: Path) -> str:
    """SHA-256 of what follows the header, which holds the command and the time that training took."""
    content = path.read_bytes()
    return hashlib.sha256(content[8 + int.from_bytes(content[:8], "little") :]).hexdigest()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_source) -> Path:
    folder = tmp_path_factory.mktemp("methods") / "here"
    folder.mkdir()
    (folder / "tiny.py").write_text(tiny_source)
    return folder


@pytest.fixture(scope="module")
def trained(own_process, folder):
    """The run of a command, uninterrupted; each is trained once."""

    def run(name: str) -> Path:
        path = folder / name.replace(" ", "-")
        if not path.exists():
            done = own_process(folder, *train(*COMMANDS[name]), "--out", path.name)
            assert done.code == 0, done.stderr
        return path

    return run


def test_every_registered_method_can_be_named() -> None:
    assert set(choices.TRAINING_METHODS) == {choices.DENSE_TRAINING, *METHODS}
    assert set(choices.METHODS_WITH_TARGET) == {name for name, method in METHODS.items() if method.needs_target}


@pytest.mark.parametrize("name", list(METHODS))
def test_every_option_of_a_method_is_a_field_of_its_record_and_the_other_way_round(name) -> None:
    assert set(METHOD_OPTIONS[name].values()) == {field.name for field in fields(METHODS[name].options)}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(COMMANDS))
def test_a_method_leaves_a_pruned_network_that_loads_and_is_as_large_as_said(
    trained, name, folder, monkeypatch
) -> None:
    monkeypatch.syspath_prepend(folder)
    run = trained(name)
    record = manifest_of(run)["variants"]["pruned"]
    model = p2d.load(run / "pruned")
    assert sum(one.numel() for one in model.parameters()) == record["parameters"]
    assert record["flops"] < manifest_of(run)["variants"]["dense"]["flops"]
    images, labels = zip(*load_data("digits").evaluation, strict=True)
    with torch.no_grad():
        guessed = model(torch.stack(images)).argmax(dim=1)
    accuracy = (guessed == torch.tensor(labels)).double().mean().item()
    assert accuracy == pytest.approx(record["accuracies"]["final"], abs=0.005)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(COMMANDS))
def test_a_manifest_says_what_a_method_did_and_what_it_cost(trained, name) -> None:
    manifest = manifest_of(trained(name))
    pruning, training = manifest["pruning"], manifest["variants"]["pruned"]["training"]
    assert not PrunePlan.from_document(pruning["plan"]).is_empty
    assert pruning["method"] == training["findings"]["method"] == name.split(",")[0]
    assert pruning["proof_relative_error"] < 1e-4
    assert pruning["achieved"]["flops"] < 1
    cost, images = training["cost"], len(load_data("digits").train)
    assert cost["images"] == len(training["history"]) * images
    # what an epoch cost is three forward passes of the network of that epoch on every image
    assert cost["training_flops"] == sum(3 * epoch["flops"] * images for epoch in training["history"])
    assert cost["training_flops"] < cost["dense_training_flops"]
    assert cost["seconds"]["training"] > 0


@pytest.mark.slow
def test_dense_is_there_to_be_timed_with_its_initial_weights(trained) -> None:
    manifest = manifest_of(trained("3sp"))
    dense = manifest["variants"]["dense"]
    assert (dense["accuracies"], dense["training"]) == ({}, {})
    assert any("dense is untrained" in note for note in manifest["notes"])
    assert list(manifest["variants"]) == ["dense", "pruned"]


@pytest.mark.slow
def test_what_a_method_leaves_is_exported_as_other_variants_are(trained, own_process, folder) -> None:
    run = trained("prunetrain")
    done = own_process(folder, "export", run.name)
    assert done.code == 0, done.stderr
    files = {name: record["onnx"]["fp32"] for name, record in manifest_of(run)["variants"].items()}
    assert list(files) == ["dense", "pruned"]
    assert all(file["parity_max_error"] < 1e-4 for file in files.values())
    assert files["pruned"]["bytes_total"] < files["dense"]["bytes_total"]
    done = own_process(folder, "report", run.name)
    assert done.code == 0, done.stderr
    page = (run / "report/report.html").read_text()
    assert "What training cost" in page
    assert "Channels that survive" in page


@pytest.mark.slow
@pytest.mark.parametrize("name", list(COMMANDS))
def test_a_method_goes_on_after_a_kill_at_any_step(trained, own_process, folder, name) -> None:
    expected = outcome(trained(name))
    epochs = COMMANDS[name][COMMANDS[name].index("--epochs") + 1]
    step = random.Random(name).randrange(2, STEPS_PER_EPOCH * (epochs - 1))
    path = folder / f"{trained(name).name}-killed"
    command = (*train(*COMMANDS[name]), "--out", path.name)
    killed = own_process(folder, *command, before=KILL_AT_STEP.format(step=step))
    assert killed.code == -9, killed.stderr
    assert manifest_of(path)["variants"] == {}
    done = own_process(folder, *command, "--resume")
    assert done.code == 0, done.stderr
    assert outcome(path) == expected
    assert not list(path.rglob("*.partial*"))


@pytest.mark.slow
def test_a_method_goes_on_that_was_killed_once_all_was_trained(trained, own_process, folder) -> None:
    command = (*train(*COMMANDS["epi"]), "--out", "epi-trained")
    assert own_process(folder, *command, before=KILL_WHEN_TRAINED).code == -9
    assert list(manifest_of(folder / "epi-trained")["variants"]) == ["dense"]
    done = own_process(folder, *command, "--resume")
    assert done.code == 0, done.stderr
    assert outcome(folder / "epi-trained") == outcome(trained("epi"))


@pytest.mark.slow
def test_a_finished_run_is_shown_again(trained, own_process, folder) -> None:
    run = trained("3sp")
    before = (run / "run.json").read_bytes()
    done = own_process(folder, *train(*COMMANDS["3sp"]), "--out", run.name, "--resume")
    assert done.code == 0, done.stderr
    assert "pruned" in done.stdout
    assert (run / "run.json").read_bytes() == before


@pytest.mark.slow
def test_other_options_of_a_method_are_refused_at_resume(trained, own_process, folder) -> None:
    run = trained("3sp")
    done = own_process(folder, *train(*COMMANDS["3sp"], "--per", "none"), "--out", run.name, "--resume")
    assert done.code == 2
    assert "per was None, now none" in done.stderr


@pytest.mark.slow
def test_named_variants_are_trained_by_the_same_recipe(own_process, folder) -> None:
    command = (*train(*COMMANDS["3sp"]), "--variants", "dense,pruned,reduced,scratch", "--out", "all")
    done = own_process(folder, *command)
    assert done.code == 0, done.stderr
    manifest = manifest_of(folder / "all")
    variants = manifest["variants"]
    assert list(variants) == ["dense", "pruned", "reduced", "scratch"]
    recipes = [record["training"]["recipe"] for record in variants.values()]
    assert all(recipe == recipes[0] for recipe in recipes)
    assert variants["scratch"]["flops"] == variants["pruned"]["flops"]
    assert variants["dense"]["accuracies"].keys() == {"final"}
    assert not any("dense is untrained" in note for note in manifest["notes"])
    costs = {line.partition(":")[0]: line for line in done.stdout.splitlines() if line.startswith("training ")}
    assert list(costs) == [f"training {name}" for name in variants]
    assert "that dense training takes" in costs["training pruned"]
    assert "that dense training takes" not in costs["training dense"]


@pytest.mark.slow
def test_a_stop_that_is_never_reached_is_exit_code_3_and_the_run_is_kept(own_process, folder) -> None:
    options = ("--method", "prunetrain", "--epochs", 2, "--penalty-ratio", 0.9, "--dead-below", 0.03, "--interval", 1)
    command = (*train(*options, "--flops", 0.01, "--align", 1), "--out", "short")
    done = own_process(folder, *command)
    assert done.code == 3, done.stderr
    assert "short: prunetrain came down to" in done.stderr
    assert "of the FLOPs (target 0.01)" in done.stderr
    assert "--penalty-ratio" in done.stderr
    assert "Traceback" not in done.stderr
    manifest = manifest_of(folder / "short")
    assert manifest["finished"]
    assert list(manifest["variants"]) == ["dense", "pruned"]
    again = own_process(folder, *command, "--resume")
    assert again.code == 3


@pytest.mark.slow
def test_a_method_that_removes_nothing_is_exit_code_3_and_the_run_is_kept(own_process, folder) -> None:
    command = (*train("--method", "prunetrain", "--epochs", 1, "--penalty-ratio", 0.01), "--out", "nothing")
    done = own_process(folder, *command)
    assert done.code == 3, done.stderr
    assert "nothing: prunetrain removed nothing" in done.stderr
    variants = manifest_of(folder / "nothing")["variants"]
    assert variants["pruned"]["flops"] == variants["dense"]["flops"]
    assert own_process(folder, "export", "nothing").code == 0


@pytest.mark.slow
@pytest.mark.parametrize("method", ["3sp", "epi"])
def test_a_target_out_of_reach_is_refused_before_training_and_leaves_nothing(own_process, folder, method) -> None:
    done = own_process(folder, *train("--method", method, "--flops", 0.0001, "--epochs", 4), "--out", "unreachable")
    assert done.code == 3, done.stderr
    assert not (folder / "unreachable").exists()


@pytest.mark.slow
def test_a_model_of_which_nothing_can_leave_is_refused(own_process, folder) -> None:
    command = ("train", "tiny:Flat", "--method", "prunetrain", "--epochs", 1, "--out", "flat")
    done = own_process(folder, *command)
    assert done.code == 3, done.stderr
    assert "every channel is frozen" in done.stderr
    assert not (folder / "flat").exists()
