"""Attention in the ways that networks write it: whole heads are the channels of its projections."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from prune2deploy.graph.labels import AttentionAxis
from prune2deploy.graph.trace import trace
from prune2deploy.pipeline.backends import find_channels

WIDTH, HEAD, HEADS = 24, 6, 4


class Attention(nn.Module):
    """An embedding, one attention ``mix(self, x)`` over ``WIDTH`` channels in a residual, and a classifier."""

    def __init__(self, mix: Callable[["Attention", Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.embed, self.proj, self.out = nn.Linear(5, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)
        self.layers = nn.ModuleDict(layers)
        self.mix = mix

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.out((x + self.mix(self, x)).mean(1))


def linear(outputs: int = WIDTH) -> nn.Linear:
    return nn.Linear(WIDTH, outputs)


def heads_first(x: Tensor) -> Tensor:
    """(B, N, heads * HEAD) -> (B, heads, N, HEAD), however many heads are left."""
    return x.unflatten(-1, (-1, HEAD)).transpose(1, 2)


def fused(net: Attention, x: Tensor) -> Tensor:
    q, k, v = net.layers["qkv"](x).unflatten(-1, (3, -1, HEAD)).permute(2, 0, 3, 1, 4)
    return net.proj(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def by_matrix_products(net: Attention, x: Tensor) -> Tensor:
    q, k, v = net.layers["qkv"](x).unflatten(-1, (3, -1, HEAD)).permute(2, 0, 3, 1, 4).unbind(0)
    weights = ((q * HEAD**-0.5) @ k.transpose(-2, -1)).softmax(-1)
    return net.proj((weights @ v).transpose(1, 2).reshape(*x.shape[:2], -1))


def by_einsum(net: Attention, x: Tensor) -> Tensor:
    q, k, v = net.layers["qkv"](x).unflatten(-1, (3, -1, HEAD)).unbind(2)
    weights = torch.einsum("bqhc,bkhc->bhqk", q, k).softmax(-1)
    return net.proj(torch.einsum("...hqk,...khc->...qhc", weights, v).flatten(2))


def chunked(net: Attention, x: Tensor) -> Tensor:
    q, k, v = (heads_first(part) for part in net.layers["qkv"](x).chunk(3, -1))
    return net.proj(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def tokens_as_batch(net: Attention, x: Tensor) -> Tensor:
    """As torch's own: three projections, first the kind, then the heads within the batch."""
    parts = net.layers["qkv"](x).unflatten(-1, (3, -1)).unsqueeze(0).transpose(0, -2).squeeze(-2)
    q, k, v = (
        parts[index].reshape(-1, x.shape[1], parts.shape[-1] // HEAD, HEAD).transpose(1, 2) for index in range(3)
    )
    return net.proj(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def windows(net: Attention, x: Tensor) -> Tensor:
    """Two windows of tokens, in the batch."""
    x = x.unflatten(1, (2, -1)).flatten(0, 1)
    return fused(net, x).unflatten(0, (-1, 2)).flatten(1, 2)


@pytest.mark.parametrize("mix", [fused, by_matrix_products, by_einsum, chunked, tokens_as_batch, windows])
def test_heads_are_the_channels_of_fused_projections(see, prove_random_cut, mix) -> None:
    seen = see(Attention(mix, qkv=linear(3 * WIDTH)), (1, 8, 5))
    assert seen.widths == {"embed": WIDTH, "layers.qkv": HEADS}
    heads = seen.channels("layers.qkv.weight", 0)
    first = heads[0]
    assert heads == 3 * [first + index for index in range(HEADS) for _ in range(HEAD)]
    assert seen.channels("proj.weight", 1) == heads[:WIDTH]
    assert all(group.exact for group in seen.graph.groups)
    prove_random_cut(seen)


def separate(net: Attention, x: Tensor) -> Tensor:
    q, k, v = (heads_first(net.layers[name](x)) for name in "qkv")
    return net.proj(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def with_norms_of_heads(net: Attention, x: Tensor) -> Tensor:
    q, k, v = (heads_first(net.layers[name](x)) for name in "qkv")
    q, k = net.layers["q_norm"](q), net.layers["k_norm"](k)
    return net.proj(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def by_cosine(net: Attention, x: Tensor) -> Tensor:
    q, k, v = (heads_first(net.layers[name](x)) for name in "qkv")
    q, k = nn.functional.normalize(q, dim=-1), nn.functional.normalize(k, dim=-1)
    return net.proj(((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).flatten(2))


def across_channels(net: Attention, x: Tensor) -> Tensor:
    """Cross-covariance attention: within a head, channels attend to channels."""
    q, k, v = (net.layers[name](x).unflatten(-1, (-1, HEAD)).permute(0, 2, 3, 1) for name in "qkv")
    return net.proj(((q @ k.transpose(-2, -1)).softmax(-1) @ v).permute(0, 3, 1, 2).flatten(2))


@pytest.mark.parametrize("mix", [separate, with_norms_of_heads, by_cosine, across_channels])
def test_separate_projections_lose_the_same_heads(see, prove_random_cut, mix) -> None:
    norms = {"q_norm": nn.LayerNorm(HEAD), "k_norm": nn.RMSNorm(HEAD)} if mix is with_norms_of_heads else {}
    seen = see(Attention(mix, q=linear(), k=linear(), v=linear(), **norms), (1, 8, 5))
    assert seen.widths == {"embed": WIDTH, "layers.q": HEADS}
    heads = seen.channels("layers.q.weight", 0)
    assert heads == [heads[0] + index for index in range(HEADS) for _ in range(HEAD)]
    assert heads == seen.channels("layers.k.weight", 0) == seen.channels("layers.v.bias", 0)
    prove_random_cut(seen)


class RelativePosition(nn.Module):
    """A table of one number for each distance and head."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(15, HEADS))
        self.register_buffer("distance", torch.arange(8)[:, None] - torch.arange(8)[None, :] + 7)

    def forward(self) -> Tensor:
        return self.table[self.distance.flatten()].view(8, 8, -1).permute(2, 0, 1).unsqueeze(0)


def biased_mask(net: Attention, x: Tensor) -> Tensor:
    q, k, v = (heads_first(net.layers[name](x)) for name in "qkv")
    mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=net.layers["position"]())
    return net.proj(mixed.transpose(1, 2).flatten(2))


def biased_logits(net: Attention, x: Tensor) -> Tensor:
    q, k, v = (heads_first(net.layers[name](x)) for name in "qkv")
    weights = (q @ k.transpose(-2, -1) + net.layers["position"]()).softmax(-1)
    return net.proj((weights @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("mix", [biased_mask, biased_logits])
def test_relative_positions_leave_with_their_heads(see, prove_random_cut, mix) -> None:
    seen = see(Attention(mix, q=linear(), k=linear(), v=linear(), position=RelativePosition()), (1, 8, 5))
    assert seen.widths == {"embed": WIDTH, "layers.q": HEADS}
    assert seen.channels("layers.position.table", 1) == seen.channels("layers.q.weight", 0)[::HEAD]
    assert seen.channels("layers.position.table", 0) == [-1] * 15
    prove_random_cut(seen)


def mask_expanded_to_heads(net: Attention, x: Tensor) -> Tensor:
    q, k, v = (heads_first(net.layers[name](x)) for name in "qkv")
    mask = torch.ones(8, 8, dtype=torch.bool).tril()[None, None].expand(1, q.shape[1], -1, -1)
    return net.proj(nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))


def test_a_mask_repeated_for_each_head_holds_none(see) -> None:
    seen = see(Attention(mask_expanded_to_heads, q=linear(), k=linear(), v=linear()), (1, 8, 5))
    assert seen.widths == {"embed": WIDTH, "layers.q": HEADS}


def shared_keys(net: Attention, x: Tensor) -> Tensor:
    q, k, v = (heads_first(net.layers[name](x)) for name in "qkv")
    mixed = nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    return net.proj(mixed.transpose(1, 2).flatten(2))


def repeated_keys(net: Attention, x: Tensor) -> Tensor:
    q, k, v = (heads_first(net.layers[name](x)) for name in "qkv")
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    return net.proj(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("mix", [shared_keys, repeated_keys])
def test_grouped_queries_leave_with_the_head_of_keys_that_they_share(see, prove_random_cut, mix) -> None:
    seen = see(Attention(mix, q=linear(), k=linear(WIDTH // 2), v=linear(WIDTH // 2)), (1, 8, 5))
    assert seen.widths == {"embed": WIDTH, "layers.q": HEADS // 2}
    shared = seen.channels("layers.k.weight", 0)
    assert seen.channels("layers.q.weight", 0) == [shared[index // 2 // HEAD * HEAD] for index in range(WIDTH)]
    prove_random_cut(seen)


class CrossAttention(nn.Module):
    """torch's own, with a mask: the last token of the memory is not seen, nor the first by the first."""

    def __init__(self, *, batch_first: bool = True) -> None:
        super().__init__()
        self.embed, self.memory, self.out = nn.Linear(5, WIDTH), nn.Linear(7, WIDTH), nn.Linear(WIDTH, 3)
        self.attend = nn.MultiheadAttention(WIDTH, HEADS, batch_first=batch_first)
        self.batch_first = batch_first

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        x, memory = self.embed(x), self.memory(memory)
        if not self.batch_first:
            x, memory = x.transpose(0, 1), memory.transpose(0, 1)
        unseen = torch.zeros(8, 6, dtype=torch.bool)
        unseen[:, 5] = unseen[0, 0] = True
        x = x + self.attend(x, memory, memory, need_weights=False, attn_mask=unseen)[0]
        return self.out(x.mean(1 if self.batch_first else 0))


def test_torchs_own_attention_loses_heads_and_joins_what_its_one_weight_reads(see) -> None:
    seen = see(CrossAttention(), (1, 8, 5), (1, 6, 7), sizes_are_free=True)
    assert seen.widths == {"embed": WIDTH, "attend": HEADS}
    assert seen.channels("memory.weight", 0) == seen.channels("embed.weight", 0)
    heads = seen.channels("attend.in_proj_weight", 0)
    assert heads[:WIDTH] == heads[WIDTH : 2 * WIDTH] == heads[2 * WIDTH :]
    assert seen.channels("attend.out_proj.weight", 1) == heads[:WIDTH]


@pytest.mark.parametrize("batch", [1, 2])
def test_torchs_encoder_loses_heads_whatever_the_batch(batch: int) -> None:
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 48, batch_first=True)
    model = nn.Sequential(nn.Linear(5, WIDTH), layer, nn.Linear(WIDTH, 3))
    graph = trace(model, torch.randn(batch, 8, 5)).graph
    assert {group.name: len(group.channels) for group in graph.groups} == {
        "0": WIDTH,
        "1.self_attn": HEADS,
        "1.linear1": 48,
    }


def one_head_of_keys(net: Attention, x: Tensor) -> Tensor:
    """Multi-query attention: all queries share one head of keys and values."""
    q = heads_first(net.layers["q"](x))
    k, v = (net.layers[name](x).unsqueeze(1) for name in "kv")
    return net.proj(nn.functional.scaled_dot_product_attention(q, k, v, scale=0.5).transpose(1, 2).flatten(2))


def one_head_by_products(net: Attention, x: Tensor) -> Tensor:
    q = heads_first(net.layers["q"](x))
    k, v = (net.layers[name](x).unsqueeze(1) for name in "kv")
    return net.proj(((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("mix", [one_head_of_keys, one_head_by_products])
def test_queries_of_one_shared_head_of_keys_lose_heads(see, prove_random_cut, mix) -> None:
    seen = see(Attention(mix, q=linear(), k=linear(HEAD), v=linear(HEAD)), (1, 8, 5))
    assert seen.widths == {"embed": WIDTH, "layers.q": HEADS}
    assert seen.frozen("layers.v.weight").startswith("is shared by all heads, which leave instead")
    prove_random_cut(seen)


class ByTheBook(nn.Module):
    """Attention as it is often written: heads in the code, the scale from the size of a head, tokens attended to."""

    def __init__(self, norm: Callable[[int], nn.Module] = nn.Identity) -> None:
        super().__init__()
        self.embed, self.qkv, self.proj = nn.Linear(5, WIDTH), linear(3 * WIDTH), nn.Linear(WIDTH, 3)
        self.q_norm, self.k_norm = norm(HEAD), norm(HEAD)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        qkv = self.qkv(self.embed(x)).reshape(batch, tokens, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        weights = (self.q_norm(q) @ self.k_norm(k).transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, WIDTH).mean(1))


@pytest.mark.parametrize("attention", list(AttentionAxis))
def test_attention_with_sizes_in_its_code_is_cut_by_editing_its_graph(see, prove_edited_cut, attention) -> None:
    seen = see(ByTheBook(), (1, 8, 5), sizes_are_free=True, attention=attention)
    assert seen.widths == {"embed": WIDTH, "qkv": HEADS if attention == "heads" else HEAD}
    prove_edited_cut(seen)


def test_the_same_positions_leave_every_head_of_a_fused_projection(see) -> None:
    seen = see(ByTheBook(), (1, 8, 5), sizes_are_free=True, attention=AttentionAxis.HEAD_DIM)
    positions = seen.channels("qkv.weight", 0)
    first = positions[0]
    assert positions == 3 * HEADS * [first + index for index in range(HEAD)]
    assert seen.channels("proj.weight", 1) == positions[:WIDTH]
    assert all(group.exact for group in seen.graph.groups)


def test_positions_of_heads_that_are_normalised_leave_inexactly(see, prove_edited_cut) -> None:
    seen = see(ByTheBook(nn.LayerNorm), (1, 8, 5), sizes_are_free=True, attention=AttentionAxis.HEAD_DIM)
    assert seen.widths["qkv"] == HEAD
    assert seen.channels("q_norm.weight", 0) == seen.channels("qkv.weight", 0)[:HEAD]
    assert [group.name for group in seen.graph.groups if not group.exact] == ["qkv"]
    prove_edited_cut(seen)


def within_heads(net: Attention, x: Tensor) -> Tensor:
    """The number of heads is written, their size is what is left; the scale is that of the dense model."""
    q, k, v = (net.layers[name](x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for name in "qkv")
    mixed = nn.functional.scaled_dot_product_attention(q, k, v, scale=HEAD**-0.5)
    return net.proj(mixed.transpose(1, 2).flatten(2))


def shared_within_heads(net: Attention, x: Tensor) -> Tensor:
    q, k, v = (
        net.layers[name](x).unflatten(-1, (heads, -1)).transpose(1, 2) for name, heads in (("q", 4), ("k", 2), ("v", 2))
    )
    mixed = nn.functional.scaled_dot_product_attention(q, k, v, scale=0.4, enable_gqa=True)
    return net.proj(mixed.transpose(1, 2).flatten(2))


def summed_within_heads(net: Attention, x: Tensor) -> Tensor:
    q, k, v = (net.layers[name](x).unflatten(-1, (HEADS, -1)) for name in "qkv")
    weights = (torch.einsum("bqhc,bkhc->bhqk", q, k) * HEAD**-0.5).softmax(-1)
    return net.proj(torch.einsum("bhqk,bkhc->bqhc", weights, v).flatten(2))


@pytest.mark.parametrize("mix", [within_heads, shared_within_heads, summed_within_heads])
def test_positions_of_heads_leave_by_slicing_where_the_code_allows_it(see, prove_random_cut, mix) -> None:
    keys = WIDTH // 2 if mix is shared_within_heads else WIDTH
    model = Attention(mix, q=linear(), k=linear(keys), v=linear(keys))
    seen = see(model, (1, 8, 5), attention=AttentionAxis.HEAD_DIM)
    assert seen.widths == {"embed": WIDTH, "layers.q": HEAD, "layers.v": HEAD}
    positions = seen.channels("layers.q.weight", 0)
    assert positions == HEADS * positions[:HEAD]
    assert seen.channels("layers.k.weight", 0) == positions[:keys]
    assert seen.channels("proj.weight", 1) == HEADS * seen.channels("layers.v.weight", 0)[:HEAD]
    prove_random_cut(seen)


@pytest.mark.parametrize(("mix", "backend"), [(within_heads, "module"), (separate, "graph")])
def test_the_way_to_cut_positions_of_heads_follows_from_the_code(mix, backend) -> None:
    """``separate`` leaves the scale to the size of the heads, which slicing would change."""
    model = Attention(mix, q=linear(), k=linear(), v=linear())
    channels = find_channels(model, (torch.randn(1, 8, 5),), attention="head-dim")
    assert channels.backend == backend
    widths = {group.name: len(group.channels) for group in channels.graph.groups}
    assert widths == {"embed": WIDTH, "layers.q": HEAD, "layers.v": HEAD}


def fused_across_channels(net: Attention, x: Tensor) -> Tensor:
    q, k, v = net.layers["qkv"](x).unflatten(-1, (3, -1, HEAD)).permute(2, 0, 3, 4, 1)
    return net.proj(((q @ k.transpose(-2, -1)).softmax(-1) @ v).permute(0, 3, 1, 2).flatten(2))


def test_attention_across_channels_still_loses_heads_where_positions_are_asked_for(see, prove_random_cut) -> None:
    model = Attention(fused_across_channels, qkv=linear(3 * WIDTH))
    seen = see(model, (1, 8, 5), attention=AttentionAxis.HEAD_DIM)
    assert seen.widths == {"embed": WIDTH, "layers.qkv": HEADS}
    prove_random_cut(seen)


class Rotated(nn.Module):
    """Rotary positions: the halves of a head turn into each other."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv, self.proj = nn.Linear(5, WIDTH), linear(3 * WIDTH), nn.Linear(WIDTH, 3)
        angles = torch.arange(8)[:, None] * torch.rand(HEAD // 2)
        self.register_buffer("angles", torch.cat([angles, angles], dim=-1), persistent=False)

    def rotated(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return x * self.angles.cos() + torch.cat([-second, first], dim=-1) * self.angles.sin()

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (HEADS, HEAD)).transpose(1, 2) for part in self.qkv(self.embed(x)).chunk(3, -1))
        mixed = nn.functional.scaled_dot_product_attention(self.rotated(q), self.rotated(k), v)
        return self.proj(mixed.transpose(1, 2).flatten(2).mean(1))


def test_positions_that_turn_into_each_other_leave_in_pairs(see, prove_edited_cut) -> None:
    seen = see(Rotated(), (1, 8, 5), sizes_are_free=True, attention=AttentionAxis.HEAD_DIM)
    pairs = seen.channels("qkv.weight", 0)[:HEAD]
    assert pairs[: HEAD // 2] == pairs[HEAD // 2 :]
    assert len(set(pairs)) == HEAD // 2
    prove_edited_cut(seen)


@pytest.mark.parametrize("attention", list(AttentionAxis))
@pytest.mark.parametrize("batch_first", [True, False])
def test_torchs_own_attention_is_cut_by_editing_its_graph(see, prove_edited_cut, attention, batch_first) -> None:
    """The keys' and values' part of its one weight is taken by a slice, which is rewritten."""
    seen = see(CrossAttention(batch_first=batch_first), (1, 8, 5), (1, 6, 7), sizes_are_free=True, attention=attention)
    assert seen.widths["attend"] == (HEADS if attention == "heads" else HEAD)
    prove_edited_cut(seen)
