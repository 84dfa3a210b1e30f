"""The variants that a pruned network is compared with: what they are, and that each is trained for as long."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import prune2deploy as p2d
from prune2deploy.errors import InputError
from prune2deploy.pipeline.backends import find_channels
from prune2deploy.pipeline.choices import VARIANTS
from prune2deploy.pipeline.comparisons import check_comparisons
from prune2deploy.pipeline.cutting import example_inputs
from prune2deploy.pipeline.export import run_export
from prune2deploy.pipeline.prune import run_prune
from prune2deploy.pipeline.report import run_report
from prune2deploy.pipeline.requests import ExportRequest, PruneRequest, ReportRequest, Targets, TrainingChoices


def pruned(checkpoint: Path, **changes: Any) -> dict[str, Any]:
    """Prune to 0.6 of the FLOPs, and give the manifest."""
    asked: dict[str, Any] = {
        "checkpoint": checkpoint,
        "targets": Targets(flops=0.6),
        "variants": tuple(VARIANTS),
        "training": TrainingChoices(epochs=1, batch_size=20),
        "alignment": 1,
        "out": Path("run"),
    }
    run_prune(PruneRequest(**{**asked, **changes}))
    return json.loads(Path("run/run.json").read_text())


def width_of(variant: str, tensor: str) -> int:
    return int(p2d.load(Path("run") / variant).state_dict()[tensor].shape[0])


def test_all_variants_have_the_flops_of_pruned_and_are_trained_for_as_long_as_it_was(
    small_model: Callable[..., Path],
) -> None:
    manifest = pruned(small_model())
    variants = manifest["variants"]
    assert list(variants) == ["dense", "pruned", "reduced", "bottleneck", "scratch"]
    for name in ("reduced", "bottleneck"):
        assert variants[name]["flops"] == pytest.approx(variants["pruned"]["flops"], rel=0.05)
    assert variants["scratch"]["flops"] == variants["pruned"]["flops"]
    assert variants["scratch"]["parameters"] == variants["pruned"]["parameters"]
    for name in ("reduced", "bottleneck", "scratch"):
        assert len(variants[name]["training"]["history"]) == 3, name  # two epochs of dense, one of fine-tuning
        assert variants[name]["training"]["recipe"] == variants["reduced"]["training"]["recipe"]
    layers = manifest["pruning"]["layers"]
    assert all({"dense", *variants} - {"dense"} <= layer.keys() for layer in layers)
    pictures = run_report(ReportRequest(run=Path("run"))).files
    assert "bottleneck" in pictures[0].read_text()


def test_bottleneck_leaves_residual_streams_alone_and_scratch_has_the_widths_of_pruned(
    small_model: Callable[..., Path],
) -> None:
    pruned(small_model())
    assert width_of("bottleneck", "stem.weight") == 16
    assert width_of("bottleneck", "blocks.0.first.weight") < 16
    assert width_of("reduced", "stem.weight") < 16
    found, fresh = (p2d.load(Path("run") / name).state_dict() for name in ("pruned", "scratch"))
    assert {name: tensor.shape for name, tensor in found.items()} == {
        name: tensor.shape for name, tensor in fresh.items()
    }
    assert not torch.equal(found["blocks.0.first.weight"], fresh["blocks.0.first.weight"])


def test_a_bottleneck_that_cannot_get_so_small_says_what_it_keeps(small_model: Callable[..., Path]) -> None:
    manifest = pruned(small_model(), targets=Targets(flops=0.05), variants=("dense", "pruned", "bottleneck"))
    share = manifest["variants"]["bottleneck"]["flops"] / manifest["variants"]["dense"]["flops"]
    assert share > 0.06
    assert any(f"bottleneck keeps {share:.3f} of the FLOPs" in note for note in manifest["notes"])


def test_without_residual_streams_bottleneck_is_reduced_and_the_run_says_so(small_model: Callable[..., Path]) -> None:
    manifest = pruned(small_model("small_blocks:Chain"))
    assert "the model has no residual streams, so bottleneck is the same network as reduced" in manifest["notes"]
    assert manifest["variants"]["bottleneck"]["flops"] == manifest["variants"]["reduced"]["flops"]


def test_a_bottleneck_of_nothing_but_streams_is_refused_before_anything_is_written(
    small_model: Callable[..., Path],
) -> None:
    graph = find_channels(p2d.load(small_model()), example_inputs((1, 6, 6)), backend="module").graph
    streams = graph.without_groups({group.index: "inside" for group in graph.groups if not group.stream})
    with pytest.raises(InputError, match="no channel lies inside a residual block"):
        check_comparisons(streams, ["pruned", "bottleneck"])
    check_comparisons(streams, ["pruned", "scratch"])


def test_without_data_the_variants_are_there_to_be_timed(small_model: Callable[..., Path]) -> None:
    manifest = pruned(small_model(data=None))
    assert list(manifest["variants"]) == ["dense", "pruned", "reduced", "bottleneck", "scratch"]
    assert all(record["accuracies"] == {} for record in manifest["variants"].values())
    exported = run_export(ExportRequest(run=Path("run")))
    assert {file.variant for file in exported.files} == set(manifest["variants"])
