"""The layers that one forward pass runs: their widths, names and FLOPs."""

import pytest
import torch
from torch import Tensor, nn

from prune2deploy.graph.layers import layers_of
from prune2deploy.graph.trace import trace

IMAGE = torch.zeros(1, 4, 6, 6)


class Mixed(nn.Module):
    """One of each: plain, grouped, depthwise and transposed convolutions, attention, a product by hand, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, 12, 3, padding=1)
        self.grouped = nn.Conv2d(12, 24, 1, groups=3)
        self.depthwise = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.up = nn.ConvTranspose2d(24, 10, 2, stride=2, groups=2)
        self.attention = nn.MultiheadAttention(10, 2, batch_first=True)
        self.mix = nn.Parameter(torch.zeros(7, 10))
        self.head = nn.Linear(7, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.depthwise(self.grouped(self.stem(x))))
        tokens = x.flatten(2).transpose(1, 2)
        tokens, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return self.head((self.mix @ tokens[0].T).T).mean(0, keepdim=True)


def test_every_kind_of_layer_is_seen_with_its_widths():
    seen = [
        (layer.name, layer.operator, layer.input_width, layer.output_width, layer.groups, layer.weight)
        for layer in layers_of(Mixed().eval(), (IMAGE,))
    ]
    tokens = 144
    assert seen == [
        ("stem", "convolution", 4, 12, 1, "stem.weight"),
        ("grouped", "convolution", 12, 24, 3, "grouped.weight"),
        ("depthwise", "depthwise convolution", 24, 24, 24, "depthwise.weight"),
        ("up", "transposed convolution", 24, 10, 2, "up.weight"),
        ("attention", "product", 10, 30, 1, "attention.in_proj_weight"),
        ("attention", "product", 5, tokens, 1, None),
        ("attention", "product", tokens, 5, 1, None),
        ("attention.out_proj", "product", 10, 10, 1, "attention.out_proj.weight"),
        ("Mixed", "product", 10, 7, 1, "mix"),
        ("head", "product", 7, 5, 1, "head.weight"),
    ]


def test_only_what_has_the_shape_of_the_image_reads_the_image():
    reading = [layer.name for layer in layers_of(Mixed().eval(), (IMAGE,)) if layer.reads_image]
    assert reading == ["stem"]


def test_flops_are_those_of_the_channel_graph():
    model = Mixed().eval()
    assert sum(layer.flops for layer in layers_of(model, (IMAGE,))) == trace(model, IMAGE).graph.cost.dense_flops


def test_flops_are_those_of_the_batch_that_ran():
    network = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(128, 2)).eval()
    one, three = ([layer.flops for layer in layers_of(network, (IMAGE.expand(n, 4, 6, 6),))] for n in (1, 3))
    assert one == [2 * 16 * 9 * 4 * 8, 2 * 128 * 2]
    assert three == [3 * flops for flops in one]


def test_a_weight_that_two_modules_share_has_its_first_name():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x))

    assert [layer.weight for layer in layers_of(Tied().eval(), (IMAGE,))] == ["first.weight", "first.weight"]


def test_a_computed_weight_leaves_the_name_of_the_module_that_runs():
    network = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 8, 1))).eval()
    (layer,) = layers_of(network, (IMAGE,))
    assert (layer.name, layer.weight, layer.output_width) == ("0", None, 8)


def test_the_fast_path_of_attention_is_put_back():
    before = torch.backends.mha.get_fastpath_enabled()

    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        layers_of(Failing(), (IMAGE,))
    assert torch.backends.mha.get_fastpath_enabled() is before
