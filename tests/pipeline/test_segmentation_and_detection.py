"""Torchvision's networks that return dictionaries: cut with their proofs, exported, saved, loaded."""

import numpy as np
import onnxruntime
import pytest
import torch

import prune2deploy as p2d
from prune2deploy.checkpoint.bundle import load_bundle, save_bundle
from prune2deploy.errors import ModelError
from prune2deploy.export.evaluation_set import make_evaluation_set
from prune2deploy.export.onnx_from_model import export_onnx
from prune2deploy.model.spec import ModelSpec, build_model


def segmenter(name: str, **arguments: object) -> tuple[ModelSpec, torch.nn.Module]:
    spec = ModelSpec(source="torchvision", name=name, arguments={"num_classes": 3, **arguments})
    return spec, build_model(spec).eval()


@pytest.mark.parametrize("name", ["fcn_resnet50", "deeplabv3_mobilenet_v3_large"])
def test_a_segmentation_network_with_an_auxiliary_head_is_cut_and_gives_the_same_maps(name: str) -> None:
    _, model = segmenter(name, aux_loss=True)
    result = p2d.prune(model, torch.rand(1, 3, 64, 64), flops=0.4)
    assert result.report["flops_fraction"] == pytest.approx(0.4, abs=0.01)
    assert result.report["proof_relative_error"] < 1e-5
    with torch.no_grad():
        maps = result.model(torch.rand(2, 3, 48, 80))
    assert {key: tuple(one.shape) for key, one in maps.items()} == {"out": (2, 3, 48, 80), "aux": (2, 3, 48, 80)}


def test_a_pruned_segmentation_network_is_exported_for_any_batch_and_comes_back_from_its_bundle(tmp_path) -> None:
    spec, model = segmenter("lraspp_mobilenet_v3_large")
    result = p2d.prune(model, torch.rand(1, 3, 32, 32), flops=0.5)
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        expected = result.model(images)["out"].numpy()

    save_bundle(tmp_path / "bundle", result.model, spec=spec, plan=result.plan, input_shape=(3, 32, 32))
    with torch.no_grad():
        assert np.array_equal(load_bundle(tmp_path / "bundle").model(images)["out"].numpy(), expected)

    export_onnx(result.model, tmp_path / "pruned.onnx", input_shape=(3, 32, 32))
    session = onnxruntime.InferenceSession(tmp_path / "pruned.onnx", providers=["CPUExecutionProvider"])
    [served] = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    np.testing.assert_allclose(served, expected, atol=1e-4)

    references = make_evaluation_set({"pruned": result.model}, None, input_shape=(3, 32, 32), references=2).references
    assert references["pruned"].shape == (2, 3, 32, 32)


def test_a_detector_by_name_is_refused_with_what_to_do_instead() -> None:
    spec = ModelSpec(source="torchvision", name="ssdlite320_mobilenet_v3_large", arguments={})
    with pytest.raises(ModelError, match=r"as a whole.*model\.backbone = p2d\.prune\(model\.backbone"):
        build_model(spec)
