import argparse
import collections
import os
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from prune2deploy.checkpoint.foreign import read_checkpoint
from prune2deploy.errors import CheckpointError


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def weights(prefix: str = "") -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in network().state_dict().items()}


def save(tmp_path: Path, content: Any, **options: Any) -> Path:
    path = tmp_path / "checkpoint.pth"
    torch.save(content, path, **options)
    return path


def assert_is_the_network(state_dict: Any) -> None:
    expected = weights()
    assert list(state_dict) == list(expected)
    assert all(torch.equal(state_dict[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    ("content", "wrapper"),
    [
        (weights(), ()),
        (collections.OrderedDict(weights("module.")), ("module.",)),
        ({"state_dict": weights("module._orig_mod."), "epoch": 3}, ("state_dict", "module.", "_orig_mod.")),
        ({"model": weights("_orig_mod.module.")}, ("model", "_orig_mod.", "module.")),
        ({"model_state": weights("model.")}, ("model_state", "model.")),
        ({"model_state_dict": weights(), "optimizer_state_dict": {"state": {}}}, ("model_state_dict",)),
        ({"net": weights(), "acc": 93.1, "epoch": 1}, ("net",)),
        ({"state_dict_ema": weights()}, ("state_dict_ema",)),
        ({"ema": {"model": weights()}}, ("ema", "model")),
        ({"state_dict": {name: value + 1 for name, value in weights().items()}, "model": weights()}, ("state_dict",)),
        ({"generator": weights(), "step": 5}, ("generator",)),
        ({"model_ema": {"n_averaged": torch.tensor(4), **weights("module.")}}, ("model_ema", "module.")),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_weights_are_found_under_the_usual_wrappers(
    tmp_path: Path, content: Any, wrapper: tuple[str, ...], zipped: bool
) -> None:
    checkpoint = read_checkpoint(save(tmp_path, content, _use_new_zipfile_serialization=zipped))
    assert checkpoint.wrapper == wrapper
    assert checkpoint.format == "torch.save"
    assert checkpoint.module is None
    if wrapper == ("state_dict",) and "model" in content:
        assert torch.equal(checkpoint.state_dict["0.bias"], weights()["0.bias"] + 1)
    else:
        assert_is_the_network(checkpoint.state_dict)


def test_raw_weights_come_before_their_moving_average(tmp_path: Path) -> None:
    averaged = {name: tensor + 1 for name, tensor in weights().items()}
    path = save(tmp_path, {"state_dict_ema": averaged, "state_dict": weights()})
    assert_is_the_network(read_checkpoint(path).state_dict)


def test_a_prefix_that_only_some_names_have_stays(tmp_path: Path) -> None:
    content = {**weights("model."), "head.weight": torch.ones(2)}
    checkpoint = read_checkpoint(save(tmp_path, content))
    assert checkpoint.wrapper == ()
    assert "model.0.weight" in checkpoint.state_dict


@pytest.mark.parametrize("zipped", [True, False])
def test_a_timm_training_file_names_its_architecture_and_its_data(tmp_path: Path, zipped: bool) -> None:
    arguments = argparse.Namespace(
        model="resnet18", num_classes=10, in_chans=1, dataset="", data_dir=str(tmp_path), lr=0.1, output=Path("runs")
    )
    content = {
        "epoch": 2,
        "arch": "resnet18",
        "state_dict": weights(),
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
        "version": 2,
        "args": arguments,
    }
    checkpoint = read_checkpoint(save(tmp_path, content, _use_new_zipfile_serialization=zipped))
    assert_is_the_network(checkpoint.state_dict)
    assert checkpoint.architecture == "timm:resnet18?in_chans=1&num_classes=10"
    assert checkpoint.data == f"imagefolder:{tmp_path}"
    assert "argparse.Namespace" in checkpoint.skipped


def test_a_torchvision_reference_file_names_its_architecture(tmp_path: Path) -> None:
    arguments = argparse.Namespace(model="mobilenet_v2", data_path="/nowhere/imagenet")
    content = {"model": weights(), "optimizer": {}, "lr_scheduler": {}, "epoch": 0, "args": arguments}
    checkpoint = read_checkpoint(save(tmp_path, content))
    assert checkpoint.architecture == "torchvision:mobilenet_v2"
    assert checkpoint.data is None


def test_the_imagenet_example_names_a_torchvision_architecture(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(save(tmp_path, {"arch": "resnet50", "state_dict": weights("module.")}))
    assert checkpoint.architecture == "torchvision:resnet50"


class _Touch:
    """Unpickling an instance creates a file: what a malicious checkpoint would do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (eval, (f"open({str(self.path)!r}, 'w').close()",))


def test_code_in_a_file_is_never_run(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    path = save(tmp_path, {"state_dict": weights(), "hyper_parameters": _Touch(victim)})
    checkpoint = read_checkpoint(path)
    assert_is_the_network(checkpoint.state_dict)
    assert checkpoint.skipped == ("builtins.eval",)
    assert not victim.exists()
    torch.load(path, weights_only=False)
    assert victim.exists(), "the file does carry code that runs when it is unpickled carelessly"


class _Command:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("true",))


@pytest.mark.parametrize("trust", [True, False])
def test_a_file_that_asks_for_a_shell_command_is_refused_even_under_trust(tmp_path: Path, trust: bool) -> None:
    path = save(tmp_path, {"state_dict": weights(), "extra": _Command()})
    with pytest.raises(CheckpointError, match=r"system to be run"):
        read_checkpoint(path, trust_pickle=trust)


@pytest.fixture
def vanishing_module() -> Any:
    """A module whose classes exist when a file is written and not when it is read."""
    module = types.ModuleType("vanished_project")
    source = """
import collections
class Settings:
    def __init__(self): self.rate = 0.1
class Attributes(dict): pass
class History(list): pass
class Both(dict): pass
"""
    exec(source, module.__dict__)
    sys.modules["vanished_project"] = module
    yield module
    sys.modules.pop("vanished_project", None)


def test_lightning_hyper_parameters_of_unknown_classes_are_ignored(tmp_path: Path, vanishing_module: Any) -> None:
    content = {
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {**weights("model."), "criterion.weight": torch.ones(3)},
        "hyper_parameters": vanishing_module.Attributes(lr=0.1, settings=vanishing_module.Settings()),
        "callbacks": {"history": vanishing_module.History([1, 2]), "d": collections.defaultdict(list, {"a": [1]})},
    }
    path = save(tmp_path, content)
    del sys.modules["vanished_project"]
    checkpoint = read_checkpoint(path)
    assert_is_the_network(checkpoint.state_dict)
    assert checkpoint.wrapper == ("state_dict", "model.")
    assert "vanished_project.Settings" in checkpoint.skipped


def test_safetensors_are_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(weights("module."), path)
    checkpoint = read_checkpoint(path)
    assert checkpoint.format == "safetensors"
    assert set(checkpoint.state_dict) == set(weights())


def test_an_export_archive_gives_its_weights(tmp_path: Path) -> None:
    model = network().eval()
    path = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(model, (torch.randn(2, 3, 8, 8),)), path)
    checkpoint = read_checkpoint(path)
    assert checkpoint.format == "torch.export"
    assert_is_the_network(dict(sorted(checkpoint.state_dict.items(), key=lambda item: list(weights()).index(item[0]))))


def test_a_whole_module_needs_trust(tmp_path: Path) -> None:
    path = save(tmp_path, {"model": network(), "epoch": 1})
    with pytest.raises(
        CheckpointError, match=r"whole pickled torch\.nn\.modules\.container\.Sequential.*--trust-pickle"
    ):
        read_checkpoint(path)
    checkpoint = read_checkpoint(path, trust_pickle=True)
    assert isinstance(checkpoint.module, nn.Sequential)
    assert_is_the_network(checkpoint.state_dict)
    assert checkpoint.format == "pickled module"


def test_a_trusted_module_whose_code_is_missing_is_one_line(tmp_path: Path, vanishing_module: Any) -> None:
    vanishing_module.Net = type("Net", (nn.Linear,), {"__module__": "vanished_project"})
    path = save(tmp_path, vanishing_module.Net(2, 2))
    del sys.modules["vanished_project"]
    with pytest.raises(CheckpointError, match="cannot be unpickled") as caught:
        read_checkpoint(path, trust_pickle=True)
    assert "\n" not in str(caught.value)


def test_trust_is_not_used_where_weights_can_be_read_without_it(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    path = save(tmp_path, {"state_dict": weights(), "extra": _Touch(victim)})
    assert_is_the_network(read_checkpoint(path, trust_pickle=True).state_dict)
    assert not victim.exists()


def truncated(path: Path, share: float) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9, 0.99])
@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_files_that_were_cut_off_are_refused(tmp_path: Path, form: str, share: float) -> None:
    if form == "safetensors":
        path = tmp_path / "cut.safetensors"
        save_file(weights(), path)
    else:
        path = save(tmp_path, weights(), _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(truncated(path, share))
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pth", b"", "is empty"),
        ("a.pth", b"epoch,loss\n1,0.3\n", "is a text file"),
        ("a.pth", b"<!DOCTYPE html><html>Not found</html>", "is a web page"),
        ("a.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("a.onnx", b"\x08\x07", "is an ONNX file"),
        ("a.pth", bytes(range(256)) * 8, "damaged"),
        ("a.safetensors", b"not safetensors at all", "damaged"),
        ("a.pth", pickle.dumps({"state_dict": [1, 2]}, protocol=4), "damaged"),
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        read_checkpoint(tmp_path / "absent.pth")
    with pytest.raises(CheckpointError, match="is a folder"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "holds no weights: an empty dict"),
        ({"epoch": 3, "lr": 0.1}, "holds no weights: only epoch, lr"),
        ([1, 2], "holds no weights: a list"),
        (torch.ones(3), "holds no weights: a Tensor"),
        ({"a": weights(), "b": weights()}, r"2 sets of weights \(a, b\)"),
        ({**weights(), "epoch": 3}, r"1 of the 8 entries beside the weights are no tensors \(epoch\)"),
    ],
)
def test_files_without_one_set_of_weights_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(save(tmp_path, content))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path, value: float) -> None:
    content = weights()
    content["0.weight"][0, 0, 0, 0] = value
    content["1.running_var"][:] = value
    with pytest.raises(CheckpointError, match=r"in 2 of 7 tensors \(0\.weight, 1\.running_var\)"):
        read_checkpoint(save(tmp_path, content))


def test_huge_finite_weights_are_read(tmp_path: Path) -> None:
    content = {"weight": torch.full((4,), 1.7e308, dtype=torch.float64)}
    assert torch.equal(read_checkpoint(save(tmp_path, content)).state_dict["weight"], content["weight"])
