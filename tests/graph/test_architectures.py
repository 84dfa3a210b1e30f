"""Whole networks: torchvision's and the zoo's, pruned to a third of their FLOPs, each with its proof."""

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from prune2deploy.budget.allocate import allocate
from prune2deploy.budget.target import Budget
from prune2deploy.graph.trace import trace
from prune2deploy.model.spec import ModelSpec, architecture_names, build_model
from prune2deploy.surgery.trial import freeze_what_breaks

TORCHVISION = (
    "resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "vgg16_bn", "densenet121", "mobilenet_v2",
    "mobilenet_v3_large", "mnasnet1_0", "shufflenet_v2_x1_0", "squeezenet1_1", "googlenet", "inception_v3",
    "efficientnet_b0", "regnet_y_400mf", "convnext_tiny",
)  # fmt: skip
INPUT_SIDE = {"inception_v3": 80}


def torchvision_model(name: str) -> nn.Module:
    options = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = torchvision.models.get_model(name, weights=None, num_classes=10, **options)
    if name == "vgg16_bn":  # its two wide linear layers are four fifths of all parameters, and take all of the time
        model.classifier[0], model.classifier[3] = nn.Linear(512 * 49, 256), nn.Linear(256, 256)
        model.classifier[6] = nn.Linear(256, 10)
    return model


def assert_a_third_is_exact(see, prove_random_cut, model: nn.Module, shape: tuple[int, ...]):
    seen = see(model, shape)
    scores = np.random.default_rng(0).random(seen.graph.channel_count)
    allocation = allocate(seen.graph, scores, Budget(flops=0.33), granule=16, relax_alignment=True)
    proof = prove_random_cut(seen, kept=allocation.kept)
    assert 0.97 * 0.33 * seen.graph.cost.dense_flops <= proof.flops <= 0.33 * seen.graph.cost.dense_flops
    assert proof.relative_error < 1e-5
    return seen


@pytest.mark.parametrize("name", TORCHVISION)
def test_a_third_of_a_torchvision_network_is_exact(see, prove_random_cut, name: str) -> None:
    side = INPUT_SIDE.get(name, 64)
    assert_a_third_is_exact(see, prove_random_cut, torchvision_model(name), (1, 3, side, side))


@pytest.mark.parametrize("name", architecture_names("zoo"))
def test_a_third_of_a_network_of_the_zoo_is_exact(see, prove_random_cut, name: str) -> None:
    spec = ModelSpec(source="zoo", name=name, arguments={"num_classes": 10, "in_channels": 1})
    assert_a_third_is_exact(see, prove_random_cut, build_model(spec), (1, 1, 8, 8))


@pytest.mark.parametrize(
    ("name", "side"),
    [("resnet18", 64), ("mobilenet_v2", 64), ("shufflenet_v2_x1_0", 64), ("efficientnet_b0", 224)],
)
def test_no_group_of_a_known_network_breaks_its_code(name: str, side: int) -> None:
    # efficientnet_b0 at 224 amplifies rounding so much that a trial in single precision alone would freeze groups
    model, inputs = (
        torchvision_model(name),
        (torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0)),),
    )
    traced = trace(model, inputs)
    assert freeze_what_breaks(traced, model, inputs) is traced


def test_the_widths_of_a_residual_network_are_its_streams_and_the_insides_of_its_blocks(see) -> None:
    seen = see(torchvision_model("resnet18"), (1, 3, 64, 64))
    streams = [group for group in seen.graph.groups if group.stream]
    assert [len(group.channels) for group in streams] == [64, 128, 256, 512]
    assert len(seen.graph.groups) == 4 + 8
    assert all(group.exact and group.positions == 1 for group in seen.graph.groups)


def test_only_the_classifier_of_a_dense_network_is_frozen(see) -> None:
    seen = see(torchvision_model("densenet121"), (1, 3, 32, 32))
    assert [one.axes for one in seen.graph.frozen] == [(("classifier.weight", 0),)]
    assert len(seen.graph.groups) == 120


def test_grouped_convolutions_of_a_network_are_cut_by_whole_groups(see) -> None:
    seen = see(torchvision_model("resnext50_32x4d"), (1, 3, 64, 64))
    grouped = [group for group in seen.graph.groups if group.positions > 1]
    assert {len(group.channels) for group in grouped} == {32}
    assert {group.positions for group in grouped} == {4, 8, 16, 32}
