"""Any network of operators that have rules, cut at random, equals its gated dense self and costs what was predicted.

``benchmarks/property_runs.py`` runs many more examples than the suite does, and counts failures instead of stopping.
"""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from hypothesis import HealthCheck, Phase, assume, given, note, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from prune2deploy.budget.from_mask import plan_from_mask
from prune2deploy.graph.trace import trace_program
from prune2deploy.surgery.apply import pruned_copy
from prune2deploy.surgery.culprits import cut_is_exact
from prune2deploy.surgery.edit import Editor
from prune2deploy.surgery.trial import randomised_copy
from prune2deploy.surgery.verify import count_flops, count_parameters, prove

EXAMPLES = int(os.environ.get("P2D_PROPERTY_EXAMPLES", "24"))
RECORD = os.environ.get("P2D_PROPERTY_RECORD")
"""A file that gets one line of JSON for each example; failures are then written there, and stop nothing."""
SIDE = 8
HEADS = 4


class Block(nn.Module):
    """Layers by name and a function of them; the result has ``outputs`` channels."""

    def __init__(self, outputs: int, body: Callable[[Any, Tensor], Tensor], **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.outputs = outputs
        self.body = body
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


Builder = Callable[[int, int], Block]
IMAGE_BLOCKS: dict[str, Builder] = {}
TOKEN_BLOCKS: dict[str, Builder] = {}


def image(build: Builder) -> Builder:
    """A block of (1, inputs, 8, 8) to (1, outputs, 8, 8); ``inputs`` and ``width`` are multiples of 4."""
    IMAGE_BLOCKS[build.__name__] = build
    return build


def tokens(build: Builder) -> Builder:
    """A block of (1, 64, inputs) to the same."""
    TOKEN_BLOCKS[build.__name__] = build
    return build


def conv(inputs: int, outputs: int, kernel: int = 3, **options: Any) -> nn.Conv2d:
    padding = options.pop("padding", kernel // 2)
    return nn.Conv2d(inputs, outputs, kernel, padding=padding, **options)


def normed(inputs: int, outputs: int, kernel: int = 3, **options: Any) -> nn.Sequential:
    return nn.Sequential(
        conv(inputs, outputs, kernel, bias=False, **options), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


@image
def plain(inputs: int, width: int) -> Block:
    return Block(width, lambda m, x: m.first(x), first=normed(inputs, width))


@image
def dilated(inputs: int, width: int) -> Block:
    return Block(width, lambda m, x: m.first(x), first=normed(inputs, width, dilation=2, padding=2))


@image
def grouped(inputs: int, width: int) -> Block:
    return Block(width, lambda m, x: m.first(x).tanh(), first=conv(inputs, width, groups=4))


@image
def bottleneck(inputs: int, width: int) -> Block:
    layers = {"first": normed(inputs, width, 1), "second": normed(width, width, groups=2)}
    return Block(inputs, lambda m, x: m.last(m.second(m.first(x))) + x, last=conv(width, inputs, 1), **layers)


@image
def inverted(inputs: int, width: int) -> Block:
    layers = {"first": normed(inputs, 2 * width, 1), "second": normed(2 * width, 2 * width, groups=2 * width)}
    return Block(inputs, lambda m, x: x + m.last(m.second(m.first(x))), last=conv(2 * width, inputs, 1), **layers)


@image
def multiplied_depthwise(inputs: int, width: int) -> Block:
    layers = {"first": conv(inputs, 2 * inputs, groups=inputs), "last": conv(2 * inputs, width, 1)}
    return Block(width, lambda m, x: m.last(m.first(x).relu()), **layers)


@image
def transposed(inputs: int, width: int) -> Block:
    layers = {"up": nn.ConvTranspose2d(inputs, width, 2, stride=2), "norm": nn.BatchNorm2d(width)}
    return Block(width, lambda m, x: functional.max_pool2d(m.norm(m.up(x)).relu(), 2), **layers)


@image
def transposed_depthwise(inputs: int, width: int) -> Block:
    up = nn.ConvTranspose2d(inputs, inputs, 2, stride=2, groups=inputs)
    return Block(width, lambda m, x: m.last(functional.avg_pool2d(m.up(x), 2)), up=up, last=conv(inputs, width, 1))


@image
def concatenated(inputs: int, width: int) -> Block:
    layers = {"first": normed(inputs, width), "second": normed(inputs + width, width, 1)}

    def body(m: Any, x: Tensor) -> Tensor:
        y = m.first(x)
        return torch.cat([m.second(torch.cat([x, y], 1)), y, x], 1)

    return Block(inputs + 2 * width, body, **layers)


@image
def chunked(inputs: int, width: int) -> Block:
    def body(m: Any, x: Tensor) -> Tensor:
        first, second = m.first(x).chunk(2, 1)
        return torch.cat([second.tanh(), first], 1)

    return Block(width, body, first=conv(inputs, width))


@image
def unevenly_split(inputs: int, width: int) -> Block:
    def body(m: Any, x: Tensor) -> Tensor:
        kept, small, large = m.first(x).split([width // 2 - 1, 1 + width // 4, width // 4], 1)
        return torch.cat([kept, m.small(small), m.large(large)], 1)

    sizes = 1 + width // 4, width // 4
    layers = {"small": conv(sizes[0], sizes[0], groups=sizes[0]), "large": conv(sizes[1], sizes[1], 5, groups=sizes[1])}
    return Block(width, body, first=normed(inputs, width), **layers)


@image
def channel_shuffled(inputs: int, width: int) -> Block:
    layers = {"first": conv(inputs, width, 1), "last": conv(width, inputs, 1)}
    return Block(inputs, lambda m, x: x + m.last(functional.channel_shuffle(m.first(x).relu(), 2)), **layers)


@image
def shuffled_by_reshapes(inputs: int, width: int) -> Block:
    def body(m: Any, x: Tensor) -> Tensor:
        batch, channels, height, breadth = x.shape
        shuffled = x.view(batch, 2, channels // 2, height, breadth).transpose(1, 2).reshape(x.shape)
        kept, cut = shuffled[:, : channels // 2], shuffled[:, channels // 2 :]
        return torch.cat([kept, m.second(m.first(cut))], 1)

    half = inputs // 2
    return Block(inputs, body, first=normed(half, width), second=normed(width, half))


@image
def pixel_shuffled(inputs: int, width: int) -> Block:
    layers = {"first": conv(inputs, 4 * width, 1), "last": conv(width, width, 2, stride=2, padding=0)}
    return Block(width, lambda m, x: m.last(functional.pixel_shuffle(m.first(x).relu(), 2)), **layers)


@image
def pixel_unshuffled(inputs: int, width: int) -> Block:
    def body(m: Any, x: Tensor) -> Tensor:
        return functional.interpolate(m.last(functional.pixel_unshuffle(m.first(x).relu(), 2)), scale_factor=2)

    return Block(inputs, body, first=conv(inputs, width), last=conv(4 * width, inputs, 1))


@image
def space_to_depth(inputs: int, width: int) -> Block:
    def body(m: Any, x: Tensor) -> Tensor:
        batch, channels, height, breadth = x.shape
        x = x.view(batch, channels, height // 2, 2, breadth // 2, 2).permute(0, 3, 5, 1, 2, 4)
        x = x.reshape(batch, channels * 4, height // 2, breadth // 2)
        return functional.interpolate(m.last(x), size=(height, breadth), mode="bilinear")

    return Block(width, body, last=conv(4 * inputs, width, 1))


@image
def gated_linear(inputs: int, width: int) -> Block:
    return Block(width, lambda m, x: functional.glu(m.first(x), 1), first=conv(inputs, 2 * width))


@image
def squeezed(inputs: int, width: int) -> Block:
    def body(m: Any, x: Tensor) -> Tensor:
        return x * m.up(functional.silu(m.down(functional.adaptive_avg_pool2d(x, 1)))).sigmoid()

    return Block(inputs, body, down=conv(inputs, width, 1), up=conv(width, inputs, 1))


@image
def squeezed_by_linear(inputs: int, width: int) -> Block:
    def body(m: Any, x: Tensor) -> Tensor:
        weights = m.up(m.down(x.mean((2, 3))).relu()).sigmoid()
        return x * weights.view(x.shape[0], -1, 1, 1).expand_as(x)

    return Block(inputs, body, down=nn.Linear(inputs, width), up=nn.Linear(width, inputs))


@image
def efficient_attention(inputs: int, width: int) -> Block:
    def body(m: Any, x: Tensor) -> Tensor:
        weights = m.along(x.mean((2, 3)).unsqueeze(1)).transpose(1, 2).unsqueeze(-1)
        return m.last(x * weights.sigmoid())

    return Block(width, body, along=nn.Conv1d(1, 1, 3, padding=1, bias=False), last=conv(inputs, width, 1))


@image
def seen_in_space(inputs: int, width: int) -> Block:
    def body(m: Any, x: Tensor) -> Tensor:
        seen = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return m.last(x * m.look(seen).sigmoid())

    return Block(width, body, look=conv(2, 1, 5), last=conv(inputs, width, 1))


@image
def split_attention(inputs: int, width: int) -> Block:
    def body(m: Any, x: Tensor) -> Tensor:
        branches = m.wide(x).relu().unflatten(1, (2, -1))
        weights = m.up(m.down(branches.sum(1).mean((2, 3), keepdim=True)).relu())
        weights = weights.view(x.shape[0], 1, 2, -1).transpose(1, 2).softmax(1).reshape(x.shape[0], -1)
        return (branches * weights.view(x.shape[0], 2, -1, 1, 1)).sum(1)

    return Block(width, body, wide=conv(inputs, 2 * width), down=conv(width, 4, 1), up=conv(4, 2 * width, 1))


@image
def group_normed(inputs: int, width: int) -> Block:
    layers = {"first": conv(inputs, width), "norm": nn.GroupNorm(2, width), "last": conv(width, inputs, 1)}
    return Block(inputs, lambda m, x: x + m.last(functional.gelu(m.norm(m.first(x)))), **layers)


@image
def instance_normed(inputs: int, width: int) -> Block:
    layers = {"first": conv(inputs, width), "norm": nn.InstanceNorm2d(width, affine=True)}
    return Block(width, lambda m, x: functional.leaky_relu(m.norm(m.first(x)), 0.1), **layers)


@image
def normed_over_channels(inputs: int, width: int) -> Block:
    def body(m: Any, x: Tensor) -> Tensor:
        y = m.norm(m.mix(x).permute(0, 2, 3, 1))
        return x + (m.scale * m.down(functional.gelu(m.up(y)))).permute(0, 3, 1, 2)

    layers = {"mix": conv(inputs, inputs, 5, groups=inputs), "norm": nn.LayerNorm(inputs)}
    layers |= {"up": nn.Linear(inputs, 2 * width), "down": nn.Linear(2 * width, inputs)}
    return Block(inputs, body, scale=nn.Parameter(torch.ones(inputs)), **layers)


@image
def standardised(inputs: int, width: int) -> Block:
    def body(m: Any, x: Tensor) -> Tensor:
        mean, variance = m.first.weight.mean((1, 2, 3), keepdim=True), m.first.weight.var((1, 2, 3), keepdim=True)
        weight = (m.first.weight - mean) / (variance + 1e-4).sqrt() * m.gain
        return functional.conv2d(x, weight, m.first.bias, padding=1).relu()

    return Block(width, body, first=conv(inputs, width), gain=nn.Parameter(torch.ones(width, 1, 1, 1)))


@image
def called_twice(inputs: int, width: int) -> Block:
    def body(m: Any, x: Tensor) -> Tensor:
        return m.shared(m.shared(x)) + x

    return Block(inputs, body, shared=nn.Sequential(normed(inputs, width), conv(width, inputs)))


@image
def tied_transposed(inputs: int, width: int) -> Block:
    def body(m: Any, x: Tensor) -> Tensor:
        return x + functional.conv_transpose2d(m.encode(x).relu(), m.encode.weight, padding=1)

    return Block(inputs, body, encode=conv(inputs, width))


@image
def unfolded(inputs: int, width: int) -> Block:
    def body(m: Any, x: Tensor) -> Tensor:
        columns = functional.unfold(m.first(x), 3, padding=1)
        return m.last(columns.unflatten(2, x.shape[2:]))

    return Block(width, body, first=conv(inputs, 4, 1), last=conv(36, width, 1))


@image
def folded(inputs: int, width: int) -> Block:
    def body(m: Any, x: Tensor) -> Tensor:
        return functional.fold(m.first(x).flatten(2), x.shape[2:], 3, padding=1)

    return Block(width, body, first=conv(inputs, 9 * width, 1))


@image
def multiplied_by_einsum(inputs: int, width: int) -> Block:
    weight = nn.Parameter(torch.randn(inputs, width))
    return Block(width, lambda m, x: torch.einsum("bchw,cd->bdhw", x, m.weight).relu(), weight=weight)


@image
def bilinear_attention(inputs: int, width: int) -> Block:
    def body(m: Any, x: Tensor) -> Tensor:
        query, key, value = (one(x).flatten(2) for one in (m.query, m.key, m.value))
        attention = torch.bmm(query.transpose(1, 2), key).softmax(-1)
        return torch.bmm(value, attention.transpose(1, 2)).view(x.shape[0], -1, *x.shape[2:])

    return Block(width, body, query=conv(inputs, 4, 1), key=conv(inputs, 4, 1), value=conv(inputs, width, 1))


@image
def padded_with_channels(inputs: int, width: int) -> Block:
    def body(m: Any, x: Tensor) -> Tensor:
        return functional.pad(x, (0, 0, 0, 0, 2, width - 2)) + m.first(x)

    return Block(inputs + width, body, first=conv(inputs, inputs + width))


@image
def padded_in_space(inputs: int, width: int) -> Block:
    def body(m: Any, x: Tensor) -> Tensor:
        return m.first(functional.pad(functional.avg_pool2d(x, 3, 1), (2, 2, 2, 2), mode="reflect"))

    return Block(width, body, first=conv(inputs, width, padding=0))


@image
def repeated(inputs: int, width: int) -> Block:
    def body(m: Any, x: Tensor) -> Tensor:
        return torch.cat([m.first(x), x.repeat(1, 2, 1, 1), x.flip(1)], 1)

    return Block(width + 3 * inputs, body, first=conv(inputs, width, 1))


@image
def stacked(inputs: int, width: int) -> Block:
    def body(m: Any, x: Tensor) -> Tensor:
        one, other = torch.stack([m.one(x), m.other(x)]).sigmoid().unbind(0)
        return one * 2 - other.clamp(max=0.4) / 3

    return Block(width, body, one=conv(inputs, width), other=conv(inputs, width, 1))


class Attention(nn.Module):
    """Self-attention of 4 heads in one of the ways in which it is written."""

    def __init__(self, kind: str, width: int) -> None:
        super().__init__()
        self.kind, self.size = kind, width // HEADS
        keys = {"shared keys": width // 2, "one key": width // HEADS}.get(kind, width)
        if kind in ("fused", "normed", "einsum"):
            self.qkv = nn.Linear(width, 3 * width)
        else:
            self.query, self.key, self.value = nn.Linear(width, width), nn.Linear(width, keys), nn.Linear(width, keys)
        self.keys = keys // self.size
        self.norms = nn.ModuleList([nn.LayerNorm(self.size), nn.LayerNorm(self.size)] if kind == "normed" else [])
        self.bias = nn.Parameter(torch.randn(HEADS, SIDE * SIDE, SIDE * SIDE)) if kind == "biased" else None
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, count, width = x.shape
        if self.kind in ("fused", "normed", "einsum"):
            query, key, value = self.qkv(x).reshape(batch, count, 3, HEADS, self.size).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            query = self.query(x).view(batch, count, HEADS, self.size).transpose(1, 2)
            key = self.key(x).view(batch, count, self.keys, self.size).transpose(1, 2)
            value = self.value(x).view(batch, count, self.keys, self.size).transpose(1, 2)
        if self.keys < HEADS:
            key, value = (one.repeat_interleave(HEADS // self.keys, 1) for one in (key, value))
        if self.kind == "normed":
            query, key = self.norms[0](query), self.norms[1](key)
        if self.kind == "einsum":
            weights = torch.einsum("bhid,bhjd->bhij", query, key * self.size**-0.5).softmax(-1)
            mixed = torch.einsum("bhij,bhjd->bhid", weights, value)
        elif self.kind == "written out":
            mixed = (query @ key.transpose(-2, -1) * self.size**-0.5).softmax(-1) @ value
        else:
            mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=self.bias)
        return self.out(mixed.transpose(1, 2).reshape(batch, count, width))


def attending(kind: str) -> Builder:
    def build(inputs: int, width: int) -> Block:
        layers = {"norm": nn.LayerNorm(inputs), "attention": Attention(kind, inputs)}
        return Block(inputs, lambda m, x: x + m.attention(m.norm(x)), **layers)

    return build


for kind in ("fused", "separate", "written out", "normed", "einsum", "biased", "shared keys", "one key"):
    TOKEN_BLOCKS[f"attention, {kind}"] = attending(kind)


@tokens
def torchs_attention(inputs: int, width: int) -> Block:
    attention = nn.MultiheadAttention(inputs, HEADS, batch_first=True)
    layers = {"norm": nn.LayerNorm(inputs), "attention": attention}
    return Block(inputs, lambda m, x: x + m.attention(y := m.norm(x), y, y, need_weights=False)[0], **layers)


@tokens
def perceptron(inputs: int, width: int) -> Block:
    layers = {"norm": nn.LayerNorm(inputs), "up": nn.Linear(inputs, 2 * width), "down": nn.Linear(2 * width, inputs)}
    scale = nn.Parameter(torch.ones(inputs))
    body = lambda m, x: x + m.scale * m.down(functional.gelu(m.up(m.norm(x))))  # noqa: E731
    return Block(inputs, body, scale=scale, **layers)


@tokens
def gated_perceptron(inputs: int, width: int) -> Block:
    def body(m: Any, x: Tensor) -> Tensor:
        gate, value = m.up(m.norm(x)).chunk(2, -1)
        return x + m.down(functional.silu(gate) * value)

    layers = {"norm": nn.RMSNorm(inputs), "up": nn.Linear(inputs, 4 * width), "down": nn.Linear(2 * width, inputs)}
    return Block(inputs, body, **layers)


@tokens
def mixer(inputs: int, width: int) -> Block:
    def body(m: Any, x: Tensor) -> Tensor:
        return x + m.down(functional.gelu(m.up(m.norm(x).transpose(1, 2)))).transpose(1, 2)

    count = SIDE * SIDE
    return Block(inputs, body, norm=nn.LayerNorm(inputs), up=nn.Linear(count, width), down=nn.Linear(width, count))


class Network(nn.Module):
    """A stem, image blocks, token blocks, and a head; a second input and a second output where asked for."""

    def __init__(self, images: list[tuple[str, int]], sequences: list[tuple[str, int]], inputs: str, head: str) -> None:
        super().__init__()
        self.inputs, self.head = inputs, head
        self.stem = conv(3, 8)
        self.beside = conv(3, 8, 1) if inputs == "two images" else nn.Linear(5, 16) if inputs == "a vector" else None
        self.images = nn.Sequential()
        width = 8
        for kind, chosen in images:
            self.images.append(IMAGE_BLOCKS[kind](width, chosen))
            width = self.images[-1].outputs
        self.sequences = nn.Sequential(*(TOKEN_BLOCKS[kind](width, chosen) for kind, chosen in sequences))
        flat = width * (16 if head == "flattened" else 1)
        self.classify = conv(width, 2, 1) if head == "a map" else nn.Linear(flat, 3)
        self.auxiliary = nn.Linear(width, 2) if head == "two outputs" else None

    def forward(self, x: Tensor, second: Tensor | None = None) -> Any:
        x = self.stem(x)
        if self.inputs == "two images":
            x = x + self.beside(second)
        elif self.inputs == "a vector":
            scale, shift = self.beside(second)[:, :, None, None].chunk(2, 1)
            x = x * (1 + scale) + shift
        x = middle = self.images(x)
        if len(self.sequences):
            x = self.sequences(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, (SIDE, SIDE))
        if self.head == "a map":
            return {"map": functional.interpolate(self.classify(x), scale_factor=2, mode="bilinear")}
        if self.head == "flattened":
            return self.classify(functional.max_pool2d(x, 2).flatten(1))
        scores = self.classify(x.mean((2, 3)))
        return (scores, self.auxiliary(middle.amax((2, 3)))) if self.head == "two outputs" else scores


def blocks_of(registry: dict[str, Builder], *, at_least: int, at_most: int) -> st.SearchStrategy[list[tuple[str, int]]]:
    one = st.tuples(st.sampled_from(sorted(registry)), st.sampled_from((4, 8, 12)))
    return st.lists(one, min_size=at_least, max_size=at_most)


SPECS = st.fixed_dictionaries(
    {
        "images": blocks_of(IMAGE_BLOCKS, at_least=1, at_most=3),
        "sequences": blocks_of(TOKEN_BLOCKS, at_least=0, at_most=1),
        "inputs": st.sampled_from(("one", "two images", "a vector")),
        "head": st.sampled_from(("pooled", "flattened", "two outputs", "a map")),
    }
)


def network_and_inputs(spec: dict[str, Any]) -> tuple[Network, tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(0)
    second = {"two images": (1, 3, SIDE, SIDE), "a vector": (1, 5)}.get(spec["inputs"])
    shapes = [(1, 3, SIDE, SIDE), *([second] if second else [])]
    return Network(**spec).eval(), tuple(torch.randn(shape, generator=generator) for shape in shapes)


def check(spec: dict[str, Any], seed: int, see: Any, random_mask: Any, prove_labels: Any) -> dict[str, Any]:
    """The labels of both ways of cutting, a random cut by the first way that can make it, and what that costs."""
    network, inputs = network_and_inputs(spec)
    edited = see(network, *inputs, sizes_are_free=True)
    sliced = replace(edited, trace=trace_program(network, edited.trace.program))
    sample = randomised_copy(network, seed=seed)
    dense_cost = count_flops(sample, inputs), count_parameters(sample)
    for seen in (edited, sliced):
        cost, held = seen.graph.cost, sum(one.flops for one in seen.graph.frozen)
        assert dense_cost == (cost.dense_flops, cost.dense_parameters)
        assert 0 <= held <= cost.dense_flops
        if seen.graph.groups:
            prove_labels(seen, seed)
    if not edited.graph.groups:
        return {"way": "nothing can leave"}
    way, seen, kept = "module", sliced, random_mask(sliced.graph, seed)
    if sliced.graph.groups and cut_is_exact(sliced.trace, sample, kept, inputs):
        pruned = pruned_copy(sample, plan_from_mask(sliced.graph, kept))
    else:  # sizes written in the code
        way, seen, kept = "graph", edited, random_mask(edited.graph, seed)
        editor = Editor.of(network, edited.trace, inputs)
        pruned = editor.edited_copy(sample, plan_from_mask(edited.graph, kept))
    proof = prove(seen.trace, sample, pruned, kept, inputs)
    assert count_parameters(pruned) == proof.parameters < dense_cost[1]
    assert count_flops(pruned, inputs) <= proof.flops <= dense_cost[0]  # `prove` knows where they must be equal
    exact = all(group.exact for group in seen.graph.groups)
    return {"way": way, "groups": len(seen.graph.groups), "exact": exact, "relative_error": proof.relative_error}


KNOWN: set[str] = set()


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=RECORD is None,
    database=None,
    phases=[Phase.generate] if RECORD else [Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
@given(spec=SPECS, seed=st.integers(0, 99))
def test_any_network_of_known_operators_is_cut_as_predicted(see, random_mask, prove_labels, spec, seed: int) -> None:
    note(f"{spec}, seed {seed}")
    if RECORD is None:
        check(spec, seed, see, random_mask, prove_labels)
        return
    assume(repr(spec) not in KNOWN)
    KNOWN.add(repr(spec))
    line: dict[str, Any] = {"spec": spec, "seed": seed}
    try:
        line |= check(spec, seed, see, random_mask, prove_labels)
    except Exception as error:  # noqa: BLE001  # counted, and judged by whoever reads the record
        line["failure"] = f"{type(error).__name__}: {error}"[:1000]
    with Path(RECORD).open("a") as record:
        record.write(json.dumps(line) + "\n")
