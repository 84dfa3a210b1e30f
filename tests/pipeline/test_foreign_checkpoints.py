"""Checkpoints that other programs wrote, pruned from the command line with nothing said about them."""

import json
import warnings

import pytest
import torch
import torchvision

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(0)
    return torchvision.models.resnet18().state_dict()


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_state_dict_is_identified_and_pruned_without_data(weights, tmp_path, run_p2d):
    torch.save(weights, "resnet18.pth")
    result = run_p2d("prune", "resnet18.pth", "--flops", 0.33)
    assert result.exit_code == 0, result.stderr
    assert "the architecture is torchvision:resnet18" in result.stderr
    assert "the input size is taken to be 3x224x224: --input overrules" in result.stderr
    assert "data-free criterion" in result.stdout
    manifest = json.loads((tmp_path / "p2d-runs/latest/run.json").read_text())
    dense, pruned, reduced = (manifest["variants"][name] for name in ("dense", "pruned", "reduced"))
    assert pruned["flops"] <= 0.33 * dense["flops"]
    assert reduced["flops"] == pytest.approx(pruned["flops"], rel=0.02)
    assert [record["accuracies"] for record in (dense, pruned, reduced)] == [{}, {}, {}]
    assert reduced["training"] == {}
    assert manifest["data"] is None
    assert not (tmp_path / "p2d-runs/latest/training").exists()


def test_wrappers_and_prefixes_are_seen_through_and_options_overrule(weights, tmp_path, run_p2d):
    torch.save({"epoch": 3, "state_dict": {f"module.{name}": value for name, value in weights.items()}}, "wrapped.pth")
    options = ("--model", "torchvision:resnet18", "--input", "3x64x64", "--variants", "dense,pruned")
    result = run_p2d("prune", "wrapped.pth", "--flops", 0.5, *options)
    assert result.exit_code == 0, result.stderr
    assert "the architecture is" not in result.stderr
    manifest = json.loads((tmp_path / "p2d-runs/latest/run.json").read_text())
    assert manifest["input_shape"] == [3, 64, 64]
    assert set(manifest["variants"]) == {"dense", "pruned"}


def test_the_other_architectures_of_the_same_tensors_are_told(weights, run_p2d):
    torch.save(weights, "resnet18.pth")
    result = run_p2d("inspect", "resnet18.pth", "--input", "3x64x64")
    assert result.exit_code == 0, result.stderr
    assert "--model overrules" in result.stderr


def test_googlenet_is_told_apart_from_its_rescaling_twin(run_p2d):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(torchvision.models.googlenet(init_weights=False).state_dict(), "googlenet.pth")
    result = run_p2d("inspect", "googlenet.pth", "--input", "3x64x64")
    assert result.exit_code == 0, result.stderr
    assert "transform_input=true" in result.stderr


def test_a_pickled_module_is_read_only_on_request(run_p2d, tmp_path):
    torch.save(torchvision.models.squeezenet1_1(), "whole.pth")
    refused = run_p2d("inspect", "whole.pth")
    assert refused.exit_code == 2
    assert "--trust-pickle" in refused.stderr
    result = run_p2d("inspect", "whole.pth", "--trust-pickle", "--input", "3x64x64")
    assert result.exit_code == 0, result.stderr
    assert "could have run any code" in result.stderr
