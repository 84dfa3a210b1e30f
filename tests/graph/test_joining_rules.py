from functools import partial

import pytest
import torch
from torch import Tensor, nn


class Net(nn.Module):
    """A stem of ``width`` channels, some layers by name, and a body that uses them."""

    def __init__(self, body, *, width: int = 8, pool: bool = True, **layers: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.layers = nn.ModuleDict(layers)
        self.body = body
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.layers, self.stem(x))
        return x.mean((2, 3)) if self.pool else x


def conv(inputs: int, outputs: int, **options: object) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1, **options)


def out(width: int) -> nn.Conv2d:
    return nn.Conv2d(width, 4, 1)


def test_residual_add_couples_both_branches(see, prove_random_cut) -> None:
    seen = see(Net(lambda m, x: m["out"](x + m["b"](m["a"](x).relu())), a=conv(8, 6), b=conv(6, 8), out=out(8)))
    assert seen.widths == {"stem": 8, "layers.a": 6}
    assert seen.channels("stem.weight", 0) == seen.channels("layers.b.weight", 0) == seen.channels("layers.b.bias", 0)
    stem, inside = seen.graph.groups
    assert stem.stream
    assert not inside.stream
    prove_random_cut(seen)


def test_a_constant_added_to_channels_is_no_stream(see) -> None:
    seen = see(Net(lambda m, x: m["out"](x + 1.0), out=out(8)))
    assert not seen.graph.groups[0].stream


def test_concatenation_keeps_its_parts_apart(see, prove_random_cut) -> None:
    seen = see(Net(lambda m, x: m["out"](torch.cat([x, m["a"](x)], 1)), a=conv(8, 6), out=out(14)))
    assert seen.widths == {"stem": 8, "layers.a": 6}
    read = seen.channels("layers.out.weight", 1)
    assert read == seen.channels("stem.weight", 0) + seen.channels("layers.a.weight", 0)
    prove_random_cut(seen)


def test_concatenation_with_the_input_leaves_the_other_part_free(see, prove_random_cut) -> None:
    class WithInput(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.out = conv(3, 6), out(9)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.cat([x, self.a(x)], 1)).mean((2, 3))

    seen = see(WithInput())
    assert seen.channels("out.weight", 1)[:3] == [-1] * 3
    assert seen.channels("out.weight", 1)[3:] == seen.channels("a.weight", 0)
    prove_random_cut(seen)


def test_concatenation_along_space_couples_the_channels(see, prove_random_cut) -> None:
    seen = see(Net(lambda m, x: m["out"](torch.cat([x, m["a"](x)], 2)), a=conv(8, 8), out=out(8)))
    assert seen.channels("layers.a.weight", 0) == seen.channels("stem.weight", 0)
    prove_random_cut(seen)


def test_stacked_parts_are_coupled(see, prove_random_cut) -> None:
    seen = see(Net(lambda m, x: m["out"](torch.stack([x, m["a"](x)], 0).sum(0)), a=conv(8, 8), out=out(8)))
    assert seen.channels("layers.a.weight", 0) == seen.channels("stem.weight", 0)
    prove_random_cut(seen)


def test_squeeze_and_excite_follows_the_channels_it_scales(see, prove_random_cut) -> None:
    def body(m, x: Tensor) -> Tensor:
        scale = m["grow"](m["shrink"](x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return m["out"](x * scale)

    seen = see(Net(body, shrink=conv(8, 4), grow=conv(4, 8), out=out(8)))
    assert seen.widths == {"stem": 8, "layers.shrink": 4}
    assert seen.channels("layers.grow.weight", 0) == seen.channels("stem.weight", 0)
    assert not seen.graph.groups[0].stream
    prove_random_cut(seen)


def test_a_flattened_map_gives_each_channel_its_columns(see, prove_random_cut) -> None:
    seen = see(
        Net(lambda m, x: m["fc"](nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)), fc=nn.Linear(32, 4), pool=False)
    )
    produced = seen.channels("stem.weight", 0)
    assert seen.channels("layers.fc.weight", 1) == [channel for channel in produced for _ in range(4)]
    prove_random_cut(seen)


def test_a_flattened_map_with_space_first_interleaves_its_columns(see, prove_random_cut) -> None:
    def body(m, x: Tensor) -> Tensor:
        return m["fc"](nn.functional.adaptive_avg_pool2d(x, 2).permute(0, 2, 3, 1).flatten(1))

    seen = see(Net(body, fc=nn.Linear(32, 4), pool=False))
    assert seen.channels("layers.fc.weight", 1) == 4 * seen.channels("stem.weight", 0)
    prove_random_cut(seen)


def chunked(m, x: Tensor) -> Tensor:
    value, gate = m["wide"](x).chunk(2, 1)
    return m["out"](value * gate.sigmoid())


@pytest.mark.parametrize("body", [chunked, lambda m, x: m["out"](nn.functional.glu(m["wide"](x), 1))])
def test_gated_linear_units_lose_pairs(see, prove_random_cut, body) -> None:
    seen = see(Net(body, wide=conv(8, 12), out=out(6)))
    produced = seen.channels("layers.wide.weight", 0)
    assert produced[:6] == produced[6:] == seen.channels("layers.out.weight", 1)
    assert seen.graph.groups[1].positions == 2
    prove_random_cut(seen)


def test_unequal_splits_by_written_sizes_freeze(see) -> None:
    def body(m, x: Tensor) -> Tensor:
        first, second = x.split([3, 5], 1)
        return m["a"](first) + m["b"](second)

    seen = see(Net(body, a=conv(3, 4), b=conv(5, 4)))
    assert seen.frozen("stem.weight") == "is split by sizes written in the code [aten.split_with_sizes.default]"


def test_slices_by_written_bounds_freeze(see) -> None:
    seen = see(Net(lambda m, x: m["out"](x[:, 2:]), out=out(6)))
    assert seen.frozen("stem.weight") == "is sliced by bounds written in the code [aten.slice.Tensor]"


def shuffled(m, x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)
    return m["out"](x.relu())


@pytest.mark.parametrize("body", [shuffled, lambda m, x: m["out"](nn.functional.channel_shuffle(x, 2).relu())])
def test_channel_shuffle_moves_channels_and_keeps_its_groups_equal(see, prove_random_cut, body) -> None:
    seen = see(Net(body, out=out(8)))
    produced, read = seen.channels("stem.weight", 0), seen.channels("layers.out.weight", 1)
    assert produced[:4] == produced[4:]
    assert read == [channel for channel in produced[:4] for _ in range(2)]
    prove_random_cut(seen)


def test_pixel_shuffle_takes_whole_squares_of_channels(see, prove_random_cut) -> None:
    seen = see(Net(lambda m, x: m["out"](nn.functional.pixel_shuffle(x, 2).relu()), width=16, out=out(4)))
    assert seen.widths == {"stem": 4}
    assert seen.channels("stem.weight", 0) == [channel for channel in range(4) for _ in range(4)]
    prove_random_cut(seen)


def test_pixel_unshuffle_gives_each_channel_a_square(see, prove_random_cut) -> None:
    seen = see(Net(lambda m, x: m["out"](nn.functional.pixel_unshuffle(x, 2)), out=out(32)))
    produced = seen.channels("stem.weight", 0)
    assert seen.channels("layers.out.weight", 1) == [channel for channel in produced for _ in range(4)]
    prove_random_cut(seen)


def test_repeated_channels_leave_together(see, prove_random_cut) -> None:
    tiled = see(Net(lambda m, x: m["out"](x.repeat(1, 2, 1, 1)), out=out(16)))
    assert tiled.channels("layers.out.weight", 1) == 2 * tiled.channels("stem.weight", 0)
    prove_random_cut(tiled)
    interleaved = see(Net(lambda m, x: m["out"](x.repeat_interleave(2, 1)), out=out(16)))
    assert interleaved.channels("layers.out.weight", 1) == [
        channel for channel in interleaved.channels("stem.weight", 0) for _ in range(2)
    ]
    prove_random_cut(interleaved)


def test_a_module_called_twice_counts_twice_and_is_cut_once(see, prove_random_cut) -> None:
    seen = see(Net(lambda m, x: m["out"](m["twice"](m["twice"](x).relu())), twice=conv(8, 8), out=out(8)))
    assert seen.widths == {"stem": 8}
    assert seen.channels("layers.twice.weight", 0) == seen.channels("layers.twice.weight", 1)
    assert seen.graph.cost.flops_by_layer(seen.graph.everything())["layers.twice"] == 2 * 2 * 8 * 8 * 144
    prove_random_cut(seen)


def test_a_module_under_two_names_is_one_tensor(see, prove_random_cut) -> None:
    shared = conv(8, 8)
    seen = see(Net(lambda m, x: m["out"](m["again"](m["one"](x).relu())), one=shared, again=shared, out=out(8)))
    assert seen.graph.aliases["layers.again.weight"] == "layers.one.weight"
    assert [axis.tensor for axis in seen.graph.axes if "again" in axis.tensor] == []
    prove_random_cut(seen)


def test_tied_weights_are_read_and_produced_by_one_tensor(see, prove_random_cut) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(5, 12)
            self.encode = nn.Linear(12, 7)
            self.decode_bias = nn.Parameter(torch.zeros(12))
            self.out = nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            code = self.encode(self.inner(x).relu())
            return self.out(nn.functional.linear(code, self.encode.weight.t(), self.decode_bias))

    seen = see(Tied(), (1, 5))
    assert seen.widths == {"inner": 12, "encode": 7}
    assert seen.channels("out.weight", 1) == seen.channels("decode_bias", 0) == seen.channels("inner.weight", 0)
    prove_random_cut(seen)


def test_padded_channels_freeze_what_they_join(see) -> None:
    def body(m, x: Tensor) -> Tensor:
        return m["out"](nn.functional.pad(x, (0, 0, 0, 0, 2, 2)) + m["a"](x))

    seen = see(Net(body, a=conv(8, 12), out=out(12)))
    assert "is padded by a number written in the code" in seen.frozen("stem.weight")
    assert "meets data of fixed size" in seen.frozen("layers.a.weight")


def test_data_of_fixed_size_freezes_what_it_meets_element_by_element(see) -> None:
    seen = see(Net(lambda m, x: m["out"](x * torch.arange(8.0).view(1, 8, 1, 1)), out=out(8)))
    assert seen.frozen("stem.weight") == "meets data of fixed size, element by element [aten.mul.Tensor]"


class FixedBasis(nn.Module):
    """Projects on a fixed basis between two learned layers."""

    def __init__(self, *, persistent: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 8), nn.Linear(6, 3)
        self.register_buffer("basis", torch.randn(8, 6), persistent=persistent)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x) @ self.basis)


def test_buffers_alone_make_no_channel(see, prove_random_cut) -> None:
    seen = see(FixedBasis(persistent=True), (1, 5))
    assert seen.widths == {"first": 8}
    assert seen.channels("basis", 0) == seen.channels("first.weight", 0)
    assert seen.channels("basis", 1) == seen.channels("last.weight", 1) == [-1] * 6
    prove_random_cut(seen)


def test_a_buffer_outside_the_state_dict_is_data_of_fixed_size(see) -> None:
    seen = see(FixedBasis(persistent=False), (1, 5))
    assert seen.widths == {}
    assert "nothing prunable produces" in seen.frozen("first.weight")


def test_layer_scale_and_slopes_leave_with_their_channel(see, prove_random_cut) -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gamma = nn.Parameter(torch.ones(8, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.gamma

    seen = see(Net(lambda m, x: m["out"](m["slope"](m["scale"](x))), scale=Scale(), slope=nn.PReLU(8), out=out(8)))
    produced = seen.channels("stem.weight", 0)
    assert seen.channels("layers.scale.gamma", 0) == seen.channels("layers.slope.weight", 0) == produced
    prove_random_cut(seen)


@pytest.mark.parametrize(
    "function",
    [
        nn.functional.gelu,
        nn.functional.hardswish,
        nn.functional.leaky_relu,
        nn.functional.softplus,
        nn.functional.mish,
        torch.tanh,
        partial(torch.clamp, min=0.0, max=6.0),
        partial(torch.maximum, torch.zeros(())),
        lambda x: torch.max(x, -x),
        lambda x: torch.where(x > 0, x, 0.1 * x),
        lambda x: x.masked_fill(x < 0, 0.0),
        lambda x: nn.functional.interpolate(x, scale_factor=2, mode="bilinear"),
        lambda x: nn.functional.interpolate(x, size=7, mode="nearest"),
        lambda x: nn.functional.pad(x, (1, 1, 1, 1), mode="reflect"),
        lambda x: nn.functional.max_pool2d(x, 2, return_indices=True)[0],
        lambda x: x.transpose(1, 3).contiguous().transpose(1, 3),
        lambda x: x[:, :, ::2, 1:],
        lambda x: x.flip(2).roll(1, 3),
        lambda x: nn.functional.dropout(x, 0.5, training=False),
        lambda x: x.to(torch.float64).to(torch.float32),
        lambda x: x.clone().mul_(2.0).add_(1.0),
        lambda x: x.unsqueeze(0).squeeze(0).expand(1, -1, -1, -1),
        lambda x: x.sum(2, keepdim=True),
        lambda x: x.amax((2, 3), keepdim=True),
        lambda x: x.permute(2, 3, 0, 1).permute(2, 3, 0, 1),
    ],
)
def test_channels_pass_through_what_works_on_each_alone(see, prove_random_cut, function) -> None:
    seen = see(Net(lambda m, x: m["out"](function(x)), out=out(8)))
    assert seen.widths == {"stem": 8}
    assert seen.channels("layers.out.weight", 1) == seen.channels("stem.weight", 0)
    prove_random_cut(seen)
