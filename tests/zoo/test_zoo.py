"""Networks of torchvision and timm, chosen to be unlike each other: half of every group leaves, and it is proved.

``benchmarks/zoo.py`` does the same for all architectures. Inputs are small and some networks shallow here, which
changes neither the operators nor the sizes written in their code.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from prune2deploy.budget.from_mask import plan_from_mask
from prune2deploy.graph.channels import ChannelGraph, ChannelMask
from prune2deploy.pipeline.backends import GRAPH, MODULE, find_channels
from prune2deploy.surgery.evaluation_mode import evaluated
from prune2deploy.surgery.trial import randomised_copy
from prune2deploy.surgery.verify import prove

NO_BACKBONE = {"weights_backbone": None}
SMALL = {"img_size": 64}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network, the way that it is cut, and the most of its FLOPs that may stay when half of every group leaves."""

    name: str
    backend: str = MODULE
    flops_left: float
    shape: tuple[int, ...] = (3, 64, 64)
    options: dict[str, Any] = field(default_factory=dict)


CASES = (
    Case(name="torchvision:shufflenet_v2_x0_5", backend=GRAPH, flops_left=0.41),
    Case(name="torchvision:densenet121", flops_left=0.28),
    Case(name="torchvision:mobilenet_v3_small", flops_left=0.34),
    Case(name="torchvision:googlenet", flops_left=0.29, options={"aux_logits": False, "init_weights": False}),
    Case(name="torchvision:fcn_resnet50", flops_left=0.27, shape=(3, 32, 32), options=NO_BACKBONE),
    Case(name="torchvision:deeplabv3_mobilenet_v3_large", flops_left=0.27, options=NO_BACKBONE),
    Case(name="torchvision:lraspp_mobilenet_v3_large", flops_left=0.29, options=NO_BACKBONE),
    Case(name="torchvision:r2plus1d_18", flops_left=0.27, shape=(3, 4, 32, 32)),
    Case(name="timm:efficientnet_lite0", flops_left=0.30),
    Case(name="timm:regnetx_002", flops_left=0.31),
    Case(name="timm:convnext_atto", flops_left=0.28),
    Case(name="timm:nf_regnet_b0", flops_left=0.32),
    Case(name="timm:resnetv2_50x1_bit", flops_left=0.28, shape=(3, 32, 32)),
    Case(name="timm:eca_resnet33ts", flops_left=0.27),
    Case(name="timm:resnest14d", flops_left=0.27),
    Case(name="timm:ghostnet_100", flops_left=0.32),
    Case(name="timm:hrnet_w18_small", flops_left=0.27),
    Case(name="timm:gmlp_ti16_224", flops_left=0.29, options=SMALL),
    Case(name="timm:mixer_s32_224", flops_left=0.29, options=SMALL),
    Case(name="timm:vit_tiny_patch16_224", backend=GRAPH, flops_left=0.32, options={**SMALL, "depth": 3}),
    Case(
        name="timm:swin_tiny_patch4_window7_224",
        backend=GRAPH,
        flops_left=0.32,
        shape=(3, 56, 56),
        options={"img_size": 56, "depths": (1, 1), "num_heads": (3, 6), "embed_dim": 48},
    ),
    Case(name="timm:xcit_nano_12_p16_224", backend=GRAPH, flops_left=0.29, options={**SMALL, "depth": 3}),
    Case(name="timm:crossvit_tiny_240", backend=GRAPH, flops_left=0.37, shape=(3, 240, 240)),
)


def built(case: Case) -> nn.Module:
    source, _, name = case.name.partition(":")
    torch.manual_seed(0)
    if source == "timm":
        return pytest.importorskip("timm").create_model(name, pretrained=False, **case.options).eval()
    return pytest.importorskip("torchvision").models.get_model(name, weights=None, **case.options).eval()


def half(graph: ChannelGraph) -> ChannelMask:
    random = np.random.default_rng(0)
    kept = graph.everything()
    for group in graph.groups:
        kept[random.permutation(group.channels)[: len(group.channels) // 2]] = False
    return kept


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_half_of_every_group_leaves_a_known_network_and_the_rest_is_proved(case: Case) -> None:
    model = built(case)
    inputs = (torch.randn(1, *case.shape, generator=torch.Generator().manual_seed(0)),)
    channels = find_channels(model, inputs)
    graph = channels.graph
    assert channels.backend == case.backend, channels.notes
    kept = half(graph)
    sample = randomised_copy(model)
    pruned = channels.cut(sample, plan_from_mask(graph, kept))
    proof = prove(channels.traced, sample, pruned, kept, inputs)
    assert proof.flops / graph.cost.dense_flops <= case.flops_left
    assert [one.shape for one in evaluated(pruned, inputs)] == [one.shape for one in evaluated(model, inputs)]
