"""Networks of Hugging Face's transformers, small and with random weights: heads leave, and outputs stay what they were.

None of them is loaded from anywhere: each is built from a configuration.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from prune2deploy.budget.from_mask import plan_from_mask
from prune2deploy.errors import ModelError
from prune2deploy.pipeline.backends import Channels, find_channels
from prune2deploy.surgery.trial import randomised_copy
from prune2deploy.surgery.verify import prove

WIDTH, HEADS, LABELS = 24, 4, 5
TRANSFORMER = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "intermediate_size": 40,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": LABELS,
}
IMAGE = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
MASK = torch.ones(1, 32, 32, dtype=torch.long)
MASK[:, 24:] = 0


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network, its inputs, how it is cut, and the heads of its attentions by the end of their layers' names."""

    make: Callable[[], nn.Module]
    backend: str
    heads: dict[str, int]
    inputs: tuple[Tensor, ...] = (IMAGE,)
    exact: bool = False


def vision_transformer(**choices: Any) -> nn.Module:
    return transformers.ViTForImageClassification(transformers.ViTConfig(**TRANSFORMER, **choices))


def beit() -> nn.Module:
    configuration = transformers.BeitConfig(**TRANSFORMER, use_relative_position_bias=True)
    return transformers.BeitForImageClassification(configuration)


def swin() -> nn.Module:
    configuration = transformers.SwinConfig(
        image_size=32, patch_size=4, embed_dim=16, depths=[2], num_heads=[HEADS], window_size=4, num_labels=LABELS
    )
    return transformers.SwinForImageClassification(configuration)


def convnext() -> nn.Module:
    configuration = transformers.ConvNextConfig(
        num_stages=2, hidden_sizes=[8, 16], depths=[1, 1], num_labels=LABELS, out_features=["stage2"]
    )
    return transformers.ConvNextForImageClassification(configuration)


def segformer() -> nn.Module:
    """Its keys come from fewer tokens than its queries; a decoder joins the stages."""
    configuration = transformers.SegformerConfig(
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[8, 16],
        num_attention_heads=[2, 4],
        mlp_ratios=[2, 2],
        patch_sizes=[7, 3],
        strides=[4, 2],
        decoder_hidden_size=16,
        num_labels=LABELS,
    )
    return transformers.SegformerForSemanticSegmentation(configuration)


def detr() -> nn.Module:
    """A convolutional trunk, an encoder, and a decoder that attends across."""
    trunk = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )
    configuration = transformers.DetrConfig(
        backbone_config=trunk,
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        d_model=WIDTH,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=4,
        num_labels=3,
    )
    return transformers.DetrForObjectDetection(configuration)


CASES = {
    "ViT": Case(
        make=vision_transformer,
        backend="module",
        heads={"layers.0.attention.q_proj": HEADS, "layers.1.attention.q_proj": HEADS},
    ),
    "ViT with its products written out": Case(
        make=lambda: vision_transformer(attn_implementation="eager"),
        backend="module",
        heads={"layers.0.attention.q_proj": HEADS, "layers.1.attention.q_proj": HEADS},
    ),
    "BEiT": Case(
        make=beit,
        backend="module",
        heads={"layers.0.attention.q_proj": HEADS, "layers.1.attention.q_proj": HEADS},
    ),
    "Swin": Case(
        make=swin,
        backend="module",
        heads={"blocks.0.attention.q_proj": HEADS, "blocks.1.attention.q_proj": HEADS},
    ),
    "ConvNeXt": Case(make=convnext, backend="module", heads={}),
    "SegFormer": Case(
        make=segformer,
        backend="graph",
        heads={"stages.0.blocks.0.attention.q_proj": 2, "stages.1.blocks.0.attention.q_proj": 4},
    ),
    "DETR": Case(
        make=detr,
        inputs=(IMAGE, MASK),
        backend="module",
        heads={
            "encoder.layers.0.self_attn.q_proj": HEADS,
            "decoder.layers.0.self_attn.q_proj": HEADS,
            "decoder.layers.0.encoder_attn.q_proj": HEADS,
        },
        exact=True,
    ),
}


def widths_by_ending(channels: Channels, *endings: str) -> dict[str, int]:
    """Channel counts of the groups whose names end in these."""
    groups = {group.name: len(group.channels) for group in channels.graph.groups}
    return {ending: groups[name] for ending in endings for name in groups if name.endswith(ending)}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_heads_leave_and_the_outputs_stay_of_the_same_kind(case: Case, random_mask) -> None:
    torch.manual_seed(0)
    model = case.make().eval()
    channels = find_channels(model, case.inputs)
    assert channels.backend == case.backend
    assert widths_by_ending(channels, *case.heads) == case.heads
    assert all(group.exact for group in channels.graph.groups) == case.exact

    sample, kept = randomised_copy(model), random_mask(channels.graph, 0)
    pruned = channels.cut(sample, plan_from_mask(channels.graph, kept))
    proof = prove(channels.traced, sample, pruned, kept, case.inputs)
    assert proof.flops < 0.6 * channels.graph.cost.dense_flops

    expected, given = model(*case.inputs), pruned(*case.inputs)
    assert type(given) is type(expected)
    assert {name: tuple(one.shape) for name, one in given.items() if isinstance(one, Tensor)} == {
        name: tuple(one.shape) for name, one in expected.items() if isinstance(one, Tensor)
    }


def test_positions_of_heads_leave_where_the_code_counts_heads(random_mask) -> None:
    """Its views find the number of heads from the written size of one, so slicing would change their number."""
    torch.manual_seed(0)
    model = vision_transformer().eval()
    channels = find_channels(model, (IMAGE,), attention="head-dim")
    assert channels.backend == "graph"
    wanted = {"layers.0.attention.q_proj": WIDTH // HEADS, "layers.0.attention.v_proj": WIDTH // HEADS}
    assert widths_by_ending(channels, *wanted) == wanted
    sample, kept = randomised_copy(model), random_mask(channels.graph, 0)
    pruned = channels.cut(sample, plan_from_mask(channels.graph, kept))
    prove(channels.traced, sample, pruned, kept, (IMAGE,))


def test_a_network_that_cannot_be_edited_says_so_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    """DETR looks for infinities in training mode, which torch.export prints whole before it gives up."""
    torch.manual_seed(0)
    with pytest.raises(ModelError, match="cannot be exported") as caught:
        find_channels(detr().eval(), (IMAGE, MASK), backend="graph")
    assert "\n" not in str(caught.value)
    assert "def forward" not in capfd.readouterr().err
