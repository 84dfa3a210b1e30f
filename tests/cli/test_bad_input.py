"""Bad input: one clear line, the documented code, and a disk that is as it was."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from prune2deploy.checkpoint.bundle import save_bundle
from prune2deploy.model.spec import ModelSpec, build_model

IMAGE = (1, 8, 8)


@pytest.fixture(scope="module")
def template(tmp_path_factory, tiny_source):
    """A folder with a checkpoint, a bundle, and files that are none."""
    folder = tmp_path_factory.mktemp("bad-input") / "template"
    folder.mkdir()
    (folder / "tiny.py").write_text(tiny_source)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        spec = ModelSpec.parse("tiny:Tiny")
        model = build_model(spec, seed=0)
        torch.save(model.state_dict(), "good.pth")
        torch.save(build_model(ModelSpec.parse("tiny:Flat"), seed=0).state_dict(), "flat.pth")
        save_bundle(folder / "bundle", model, spec=spec, plan=None, input_shape=IMAGE, data="digits")
    content = (folder / "good.pth").read_bytes()
    (folder / "empty.pth").touch()
    (folder / "cut.pth").write_bytes(content[: len(content) // 2])
    (folder / "text.pth").write_text("weights\n")
    (folder / "text.onnx").write_text("a network\n")
    (folder / "folder").mkdir()
    broken = model.state_dict()
    broken["first.weight"] = torch.full_like(broken["first.weight"], float("nan"))
    torch.save(broken, folder / "nan.pth")
    for name in ("one-class/train/cat", "pictures/cat", "pictures/dog"):
        (folder / name).mkdir(parents=True)
        for number in range(6):
            Image.new("L", (8, 8), number * 40).save(folder / name / f"{number}.png")
    shutil.copytree(folder / "pictures", folder / "unreadable")
    (folder / "unreadable/dog/3.png").write_text("no picture")
    shutil.copytree(folder / "pictures", folder / "damaged-inside")
    for picture in (folder / "damaged-inside/dog").iterdir():
        content = picture.read_bytes()
        picture.write_bytes(content[:45] + bytes(len(content) - 45))
    return folder


@pytest.fixture
def here(template, tmp_path, monkeypatch):
    folder = shutil.copytree(template, tmp_path / "here")
    monkeypatch.chdir(folder)
    return folder


def listing(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts and not path.is_dir()
    }


@pytest.fixture
def refused(here, run_p2d):
    """Run a command that has to be refused with ``code``; gives its one line."""

    def run(code: int, *arguments: object) -> str:
        before = listing(here)
        result = run_p2d(*arguments)
        assert result.exit_code == code, (result.stderr, result.exception)
        assert result.stdout == ""
        errors = [line for line in result.stderr.splitlines() if line.startswith("p2d: error: ")]
        assert len(errors) == 1
        assert result.stderr.splitlines()[-1] == errors[0]
        assert "Traceback" not in result.stderr
        assert listing(here) == before
        return errors[0]

    return run


TINY = ("--model", "tiny:Tiny", "--input", "1x8x8")


@pytest.mark.parametrize(
    ("checkpoint", "words"),
    [
        ("absent.pth", "does not exist"),
        ("folder", "is a folder"),
        ("empty.pth", "is empty"),
        ("cut.pth", "damaged or cut off"),
        ("text.pth", "is a text file"),
        ("nan.pth", "NaN or infinite values in 1 of"),
        ("absent-folder/run", "does not exist"),
    ],
)
def test_what_is_no_checkpoint_is_refused(checkpoint, words, refused):
    line = refused(2, "prune", checkpoint, "--flops", 0.5, *TINY)
    assert checkpoint in line
    assert words in line


def test_a_checkpoint_of_another_architecture_names_what_differs(refused):
    line = refused(2, "prune", "good.pth", "--flops", 0.5, "--model", "resnet20")
    assert "does not fit zoo:resnet20" in line
    assert "missing" in line


def test_an_architecture_that_nobody_knows_asks_for_the_model(refused):
    assert "pass --model" in refused(2, "prune", "good.pth", "--flops", 0.5)


@pytest.mark.parametrize("target", ["0", "1", "2", "-1", "nan", "abc"])
@pytest.mark.parametrize("option", ["--flops", "--params"])
def test_a_target_that_is_no_share_is_refused(option, target, refused):
    line = refused(2, "prune", "good.pth", option, target, *TINY)
    assert f"{option} {target}" in line
    assert "0.33" in line


def test_no_target_and_unknown_names_are_refused(refused):
    assert "--latency 0.5, --flops 0.33" in refused(2, "prune", "good.pth")
    assert "choose l1, l2" in refused(2, "prune", "good.pth", "--flops", 0.5, "--method", "guess")
    assert "resnet20" in refused(2, "train", "resnet21", "--epochs", 1)
    assert "is not a data spec" in refused(2, "train", "resnet20", "--data", "numbers")
    assert "--batch 0" in refused(2, "bench", "text.onnx", "--batch", 0)
    assert "batch-size" in refused(2, "train", "resnet20", "--batch-size", 0)
    assert "does not exist" in refused(2, "inspect", "absent.pth")
    assert "nothing" in refused(2, "inspect", "nothing")
    assert "did you mean trt?" in refused(2, "inspect", "resnet20", "--engine", "tr")
    assert "--precision fp23" in refused(2, "inspect", "resnet20", "--precision", "fp23")


def test_a_target_out_of_reach_says_what_can_be_reached(refused):
    line = refused(3, "prune", "good.pth", "--flops", 1e-6, *TINY)
    assert "keeps 0.0" in line


def test_a_pruning_that_would_change_nothing_is_refused(refused):
    line = refused(3, "prune", "flat.pth", "--flops", 0.5, "--model", "tiny:Flat", "--input", "1x8x8")
    assert "nothing can be pruned" in line
    assert "p2d inspect" in line


def test_a_method_that_needs_data_says_so_where_there_is_none(refused):
    assert "data" in refused(2, "prune", "good.pth", "--flops", 0.5, "--method", "taylor", *TINY)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("imagefolder:one-class", "at least two"),
        ("imagefolder:unreadable", "3.png"),
        ("imagefolder:absent", "is not a folder"),
        ("imagefolder:pictures", "classes"),
        ("imagefolder:damaged-inside", "dog/0.png"),
        ("cifar10:absent", "absent"),
    ],
)
def test_data_that_cannot_be_used_is_refused_before_anything_is_written(data, words, refused):
    assert words in refused(2, "prune", "good.pth", "--flops", 0.5, "--data", data, *TINY)


def test_a_picture_that_turns_out_damaged_leaves_no_empty_run(refused):
    line = refused(2, "train", "tiny:Tiny", "--data", "imagefolder:damaged-inside", "--input", "1x8x8", "--epochs", 1)
    assert "damaged-inside/dog" in line


def test_a_run_withdrawn_leaves_latest_where_it_was(here, refused, run_p2d):
    assert run_p2d("train", "tiny:Tiny", "--epochs", 1, "--batch-size", 512).exit_code == 0
    before = Path("p2d-runs/latest").resolve()
    refused(2, "train", "tiny:Tiny", "--data", "imagefolder:damaged-inside", "--input", "1x8x8", "--epochs", 1)
    assert Path("p2d-runs/latest").resolve() == before


def test_a_model_that_cannot_be_exported_names_the_line(refused):
    line = refused(2, "prune", "good.pth", "--flops", 0.5, "--model", "tiny:Branching", "--input", "1x8x8")
    assert "tiny.py:24: the model cannot be exported" in line


def test_a_factory_that_raises_is_quoted(refused):
    assert "the weights are elsewhere" in refused(2, "inspect", "tiny:raising")
    assert "no 'absent'" in refused(2, "inspect", "tiny:absent")
    assert "absent" in refused(2, "inspect", "absent.module:factory")


def test_a_damaged_bundle_is_refused(here, refused):
    weights = here / "bundle/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-9] ^= 1
    weights.write_bytes(content)
    assert "bundle" in refused(2, "prune", "bundle", "--flops", 0.5)
    weights.write_bytes(content[: len(content) // 2])
    assert "bundle" in refused(2, "inspect", "bundle")


@pytest.mark.parametrize("command", ["export", "build", "bench", "report"])
def test_commands_without_a_run_say_how_to_make_one(command, refused):
    assert "p2d prune" in refused(2, command)
    assert "absent" in refused(2, command, "absent")


@pytest.mark.parametrize("command", ["export", "build", "bench", "report", "prune"])
def test_a_damaged_run_manifest_is_refused(command, here, refused):
    (here / "run").mkdir()
    (here / "run/run.json").write_text('{"schema_version": 1')
    options = ("--flops", 0.5) if command == "prune" else ()
    assert "run.json" in refused(2, command, "run", *options)
    (here / "run/run.json").write_text('{"schema_version": 1}')
    assert "damaged" in refused(2, command, "run", *options)


@pytest.mark.parametrize("command", ["export", "build", "bench", "prune", "inspect"])
def test_a_run_without_variants_says_how_to_finish_it(command, here, refused, monkeypatch):
    monkeypatch.setattr("prune2deploy.pipeline.train.train", interrupt)
    run_train_interrupted()
    options = ("--flops", 0.5) if command == "prune" else ()
    engine = ("--engine", "ort-cpu") if command in ("build", "bench") else ()
    assert "--resume" in refused(2, command, "run", *options, *engine)


def interrupt(*arguments, **options):
    raise KeyboardInterrupt


def run_train_interrupted():
    from prune2deploy.pipeline.requests import TrainRequest
    from prune2deploy.pipeline.train import run_train

    with pytest.raises(KeyboardInterrupt):
        run_train(TrainRequest(model="tiny:Tiny", out=Path("run")))


@pytest.mark.parametrize("name", ["text.onnx", "good.pth", "absent.onnx"])
def test_what_is_no_onnx_file_is_not_measured(name, refused):
    assert name in refused(2, "bench", name, "--engine", "ort-cpu")


def test_an_engine_that_is_not_installed_says_how_to_get_it(refused, monkeypatch):
    from prune2deploy.engines.engine import Availability
    from prune2deploy.engines.tensorrt.family import TensorRTEngine

    absent = Availability(runs=False, builds=False, reason="tensorrt is not installed", hint="pip install tensorrt")
    monkeypatch.setattr(TensorRTEngine, "availability", lambda self: absent)
    for command in (["bench", "text.onnx"], ["bench"], ["demo"]):
        assert "pip install tensorrt" in refused(5, *command, "--engine", "trt")


def test_a_folder_that_holds_something_is_not_overwritten(refused):
    assert "exists" in refused(2, "prune", "bundle", "--flops", 0.5, "--out", "folder/../pictures")
    assert "exists" in refused(2, "train", "tiny:Tiny", "--out", "good.pth")
    assert "no run folder" in refused(2, "train", "tiny:Tiny", "--out", "pictures", "--resume")


def test_a_wrong_cut_is_refused_with_the_name_of_its_group(refused, monkeypatch):
    from prune2deploy.surgery import apply

    real = apply.pruned_copy

    def wrong(model, plan):
        pruned = real(model, plan)
        with torch.no_grad():
            pruned.second.weight.copy_(pruned.second.weight.flip(0))
        return pruned

    monkeypatch.setattr("prune2deploy.pipeline.backends.pruned_copy", wrong)
    line = refused(4, "prune", "bundle", "--flops", 0.5)
    assert "second" in line


TRAIN = ("train", "tiny:Tiny", "--epochs", 1, "--batch-size", 512, "--out", "run")
PRUNE = ("prune", "bundle", "--flops", 0.4, "--epochs", 1, "--batch-size", 512, "--out", "run")


@pytest.fixture
def full_disk(monkeypatch):
    """Make the disk full for the file of this name, until ``free()``."""
    replace = Path.replace

    def fill(name: str):
        def refusing(self, target):
            if Path(target).name == name:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
            return replace(self, target)

        monkeypatch.setattr(Path, "replace", refusing)

    fill.free = lambda: monkeypatch.setattr(Path, "replace", replace)
    return fill


@pytest.mark.parametrize("file", ["run.json", "dense.pt", "model.safetensors", "bundle.json"])
def test_training_on_a_full_disk_stops_cleanly_and_resumes(file, here, run_p2d, full_disk):
    full_disk(file)
    result = run_p2d(*TRAIN)
    assert result.exit_code == 6, (result.stderr, result.exception)
    assert result.stderr.splitlines()[-1].startswith("p2d: error: ")
    assert file in result.stderr
    assert not list(here.rglob("*.partial*"))
    full_disk.free()
    result = run_p2d(*TRAIN, "--resume")
    assert result.exit_code == 0, result.stderr
    assert json.loads((here / "run/run.json").read_text())["finished"]


@pytest.mark.slow
def test_every_later_stage_stops_cleanly_on_a_full_disk_and_goes_on(here, run_p2d, full_disk):
    bench = ("bench", "run", "--engine", "ort-cpu", "--threads", 1, "--batch", 1, "--builds", 1, "--max-seconds", 3)
    stages = [
        ("pruned.pt", PRUNE, (*PRUNE, "--resume")),
        ("dense-fp32.onnx", ("export", "run"), ("export", "run")),
        ("result.json", bench, bench),
        ("report.html", ("report", "run"), ("report", "run")),
    ]
    for file, command, again in stages:
        before = listing(here)
        full_disk(file)
        result = run_p2d(*command)
        assert result.exit_code == 6, (file, result.stderr, result.exception)
        assert file in result.stderr.splitlines()[-1]
        after = listing(here)
        assert not [name for name in after if "partial" in name]
        assert {name: after[name] for name in before} == before
        full_disk.free()
        result = run_p2d(*again)
        assert result.exit_code == 0, (file, result.stderr, result.exception)
