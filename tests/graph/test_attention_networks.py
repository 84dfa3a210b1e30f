"""Attention as torchvision and timm write it, in small networks with random weights: its heads are free.

``prove_labels`` shows that nothing which stays depends on what leaves; by which backend it leaves is another question.
It replaces values by copies, so that networks which write into a part of a value are cut instead.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import timm
import torch
from timm.layers import MultiQueryAttention2d
from timm.models.efficientvit_mit import LiteMLA
from torch import Tensor, nn
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2
from torchvision.models.video.mvit import MSBlockConfig, MViT
from torchvision.models.vision_transformer import VisionTransformer

from prune2deploy.graph.labels import AttentionAxis

WIDTH, HEADS = 24, 4
IMAGE = (1, 3, 32, 32)
VIDEO = (1, 3, 4, 32, 32)


def vision_transformer() -> nn.Module:
    return VisionTransformer(32, 8, num_layers=1, num_heads=HEADS, hidden_dim=WIDTH, mlp_dim=40, num_classes=5)


def swin(**choices: Any) -> nn.Module:
    return SwinTransformer([4, 4], 16, depths=[2], num_heads=[HEADS], window_size=[4, 4], num_classes=5, **choices)


def swin_v2() -> nn.Module:
    return swin(block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2)


def multiscale_video() -> nn.Module:
    block = partial(MSBlockConfig, num_heads=HEADS, kernel_q=[3, 3, 3], kernel_kv=[3, 3, 3], stride_kv=[1, 2, 2])
    return MViT(
        spatial_size=(32, 32),
        temporal_size=4,
        block_setting=[
            block(input_channels=16, output_channels=32, stride_q=[1, 1, 1]),
            block(input_channels=32, output_channels=32, stride_q=[1, 2, 2]),
        ],
        residual_pool=True,
        residual_with_cls_embed=False,
        rel_pos_embed=True,
        proj_after_attn=True,
        num_classes=5,
    )


def of_timm(name: str, **choices: Any) -> nn.Module:
    sizes = {"img_size": 32, "embed_dim": WIDTH, "num_heads": HEADS, "depth": 1, "num_classes": 5}
    return timm.create_model(name, **{**sizes, **choices})


class Within(nn.Module):
    """A module of maps between an embedding and a classifier."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.embed, self.inner, self.out = nn.Conv2d(3, 32, 4, 4), inner, nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.out((x + self.inner(x)).mean((2, 3)))


def multi_query() -> nn.Module:
    return Within(MultiQueryAttention2d(32, num_heads=HEADS, key_dim=6, value_dim=10))


def linear_attention() -> nn.Module:
    return Within(LiteMLA(32, 32, dim=8))


WRITING_IN_PLACE = (swin_v2, multiscale_video)

WHOLE_HEADS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[str]]] = {
    "torchvision's ViT": (vision_transformer, IMAGE, ["encoder.layers.encoder_layer_0.self_attention"]),
    "torchvision's Swin": (swin, IMAGE, ["features.1.0.attn.qkv", "features.1.1.attn.qkv"]),
    "torchvision's Swin V2": (
        swin_v2,
        IMAGE,
        ["features.1.0.attn.cpb_mlp.2", "features.1.1.attn.cpb_mlp.2"],
    ),
    "torchvision's MViT": (multiscale_video, VIDEO, ["blocks.0.attn.qkv", "blocks.1.attn.qkv"]),
    "timm's ViT": (partial(of_timm, "vit_tiny_patch16_224"), IMAGE, ["blocks.0.attn.qkv"]),
    "relative positions": (partial(of_timm, "vit_relpos_small_patch16_224"), IMAGE, ["blocks.0.attn.qkv"]),
    "position tables": (partial(of_timm, "beit_base_patch16_224"), IMAGE, ["blocks.0.attn.qkv"]),
    "rotary positions": (
        partial(of_timm, "vit_small_patch16_dinov3", embed_dim=64),
        IMAGE,
        ["blocks.0.attn.qkv"],
    ),
    "pooling by attention": (
        partial(of_timm, "vit_so150m_patch16_reg4_map_256"),
        IMAGE,
        ["blocks.0.attn.qkv", "attn_pool.q"],
    ),
    "talking heads": (
        partial(of_timm, "cait_xxs24_224"),
        IMAGE,
        ["blocks.0.attn.qkv", "blocks.0.attn.proj_l", "blocks_token_only.0.attn.q"],
    ),
    "cross-covariance": (
        partial(of_timm, "xcit_nano_12_p16_224", embed_dim=32),
        IMAGE,
        ["blocks.0.attn.qkv", "cls_attn_blocks.0.attn.q"],
    ),
    "one head of keys": (multi_query, IMAGE, ["inner.query.proj"]),
    "linear attention": (linear_attention, IMAGE, ["inner.qkv.conv"]),
}


@pytest.mark.parametrize(("make", "shape", "attentions"), WHOLE_HEADS.values(), ids=WHOLE_HEADS.keys())
def test_every_head_can_leave(see, prove_labels, prove_edited_cut, make, shape, attentions) -> None:
    torch.manual_seed(0)
    seen = see(make().eval(), shape, sizes_are_free=True)
    assert {name: seen.widths.get(name) for name in attentions} == dict.fromkeys(attentions, HEADS)
    (prove_edited_cut if make in WRITING_IN_PLACE else prove_labels)(seen)


POSITIONS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, int]]] = {
    "torchvision's ViT": (vision_transformer, IMAGE, {"encoder.layers.encoder_layer_0.self_attention": 6}),
    "torchvision's Swin": (swin, IMAGE, {"features.1.0.attn.qkv": 4}),
    "torchvision's Swin V2": (
        swin_v2,
        IMAGE,
        {"features.1.0.attn.qkv": 4},
    ),
    "torchvision's MViT": (multiscale_video, VIDEO, {"blocks.0.attn.qkv": 8, "blocks.1.attn.qkv": 8}),
    "timm's ViT": (partial(of_timm, "vit_tiny_patch16_224"), IMAGE, {"blocks.0.attn.qkv": 6}),
    "talking heads": (
        partial(of_timm, "cait_xxs24_224"),
        IMAGE,
        {"blocks.0.attn.qkv": 6, "blocks_token_only.0.attn.q": 6, "blocks_token_only.0.attn.v": 6},
    ),
    "one head of keys": (multi_query, IMAGE, {"inner.query.proj": 6, "inner.value.proj": 10}),
}


@pytest.mark.parametrize(("make", "shape", "positions"), POSITIONS.values(), ids=POSITIONS.keys())
def test_the_same_positions_can_leave_every_head(see, prove_labels, prove_edited_cut, make, shape, positions) -> None:
    torch.manual_seed(0)
    seen = see(make().eval(), shape, sizes_are_free=True, attention=AttentionAxis.HEAD_DIM)
    assert {name: seen.widths.get(name) for name in positions} == positions
    (prove_edited_cut if make in WRITING_IN_PLACE else prove_labels)(seen)


def test_heads_leave_where_positions_cannot(see, prove_labels) -> None:
    """Rotary positions of neighbours are taken by strides, which need the size of a head."""
    torch.manual_seed(0)
    model = of_timm("vit_small_patch16_dinov3", embed_dim=64).eval()
    seen = see(model, IMAGE, sizes_are_free=True, attention=AttentionAxis.HEAD_DIM)
    assert seen.widths["blocks.0.attn.qkv"] == HEADS
    prove_labels(seen)
