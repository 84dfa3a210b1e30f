"""Any network of common blocks, cut at random, equals its gated dense self."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

KINDS = ("plain", "residual", "dense", "depthwise", "grouped", "squeeze", "glu", "shuffle", "norm", "resize", "split")


class Block(nn.Module):
    """One block from ``inputs`` channels to ``outputs``; ``inputs`` is a multiple of 4."""

    def __init__(self, kind: str, inputs: int, width: int) -> None:
        super().__init__()
        self.kind = kind
        self.outputs = inputs + width if kind == "dense" else width if kind in ("plain", "glu", "split") else inputs
        inside, result = {
            "dense": (width, width),
            "glu": (inputs, 2 * width),
            "depthwise": (inputs, inputs),
            "grouped": (inputs, inputs),
        }.get(kind, (width, self.outputs))
        groups = {"depthwise": inputs, "grouped": 4}.get(kind, 1)
        self.first = nn.Conv2d(inputs, inside, 3, padding=1, groups=groups)
        self.norm = nn.GroupNorm(2, inside) if kind == "norm" else nn.BatchNorm2d(inside)
        self.second = nn.Conv2d(inside, result, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.norm(self.first(x)).relu())
        match self.kind:
            case "residual" | "norm" | "depthwise":
                return x + y
            case "dense":
                return torch.cat([x, y], 1)
            case "squeeze":
                return x * y.mean((2, 3), keepdim=True).sigmoid()
            case "glu":
                value, gate = y.chunk(2, 1)
                return value * gate.sigmoid()
            case "shuffle":
                return nn.functional.channel_shuffle(y, 2)
            case "resize":
                return nn.functional.interpolate(nn.functional.max_pool2d(y, 2), scale_factor=2.0)
            case "split":
                first, second = y.chunk(2, 1)
                return torch.cat([second.tanh(), first], 1)
            case _:
                return y


class Network(nn.Module):
    def __init__(self, blocks: list[tuple[str, int]], *, flat: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential()
        width = 8
        for kind, chosen in blocks:
            self.blocks.append(Block(kind, width, chosen))
            width = self.blocks[-1].outputs
        self.flat = flat
        self.head = nn.Linear(width * (9 if flat else 1), 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x))
        return self.head(nn.functional.adaptive_avg_pool2d(x, 3).flatten(1) if self.flat else x.mean((2, 3)))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    blocks=st.lists(st.tuples(st.sampled_from(KINDS), st.sampled_from((4, 8, 12))), min_size=1, max_size=5),
    flat=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_network_of_common_blocks_is_cut_exactly(see, prove_random_cut, blocks, flat: bool, seed: int) -> None:
    seen = see(Network(blocks, flat=flat), (1, 3, 6, 6))
    if seen.graph.groups:
        prove_random_cut(seen, seed)
    else:  # only chains of shuffles tie all channels to each other
        assert {kind for kind, _ in blocks} & {"shuffle", "split"}
        assert seen.frozen("stem.weight")
