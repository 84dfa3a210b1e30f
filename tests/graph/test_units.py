"""A network as units: which operators run as one, at which shapes, at the cost of the channel graph."""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional

from prune2deploy.budget.from_mask import plan_from_mask
from prune2deploy.graph.channels import ChannelMask
from prune2deploy.graph.cost import CostModel
from prune2deploy.graph.labels import AttentionAxis
from prune2deploy.graph.trace import trace
from prune2deploy.graph.unit import Operator, Unit, UnitModel, UnitTerm
from prune2deploy.graph.units import unit_model
from prune2deploy.surgery.apply import pruned_copy

SIX = ("resnet50", "mobilenet_v2", "efficientnet_b0", "densenet121", "regnet_y_400mf", "convnext_tiny")
OTHERS = ("swin_t", "resnext50_32x4d", "shufflenet_v2_x1_0", "mobilenet_v3_large")


def network(name: str) -> nn.Module:
    if name == "vit":
        return torchvision.models.VisionTransformer(
            image_size=32, patch_size=16, num_layers=2, num_heads=4, hidden_dim=64, mlp_dim=128, num_classes=10
        )
    return torchvision.models.get_model(name, weights=None, num_classes=10)


@pytest.fixture(scope="module")
def see_network(see) -> Callable[[str], Any]:
    """The trace of a network of that name on a small image, made once."""
    return functools.cache(
        lambda name: see(network(name).eval(), (1, 3, 64, 64) if name == "swin_t" else (1, 3, 32, 32))
    )


def sizes_of(model: UnitModel, kept: ChannelMask) -> list[int]:
    empty = CostModel(channel_count=model.channel_count, widths=model.widths, flop_terms=(), parameter_terms=())
    return empty.sizes(kept)


def flops(term: UnitTerm, sizes: list[int]) -> int:
    """Twice the multiply-accumulates of a term's products and convolutions, from the shapes of its unit alone."""
    unit, widths = term.unit, [sizes[number] for number in term.widths]
    values = [unit.at(shape, widths) for shape in unit.inputs]
    total = 0
    for operator in unit.operators:
        result, reads = unit.at(operator.shape, widths), [values[number] for number in operator.reads]
        total += 2 * multiplications(operator, reads, result)
        values.append(result)
    return total


def multiplications(operator: Operator, reads: list[tuple[int, ...]], result: tuple[int, ...]) -> int:
    attributes = dict(operator.attributes)
    if operator.name.startswith("conv"):
        rank = len(attributes["kernel"])
        incoming = reads[0][-rank - 1]
        fixed = attributes.get("groups")
        each = incoming // fixed if fixed is not None else attributes["channels_per_group"]
        assert incoming % (fixed or each) == 0
        if "transpose" in operator.name:
            return math.prod(reads[0]) * math.prod(attributes["kernel"]) * result[-rank - 1] * each // incoming
        return math.prod(result) * math.prod(attributes["kernel"]) * each
    if operator.name in ("linear", "matmul"):
        return math.prod(result) * reads[0][-1]
    if operator.name == "scaled_dot_product_attention":
        query, key, value = reads[:3]
        return math.prod(query) * key[-2] + math.prod(query[:-1]) * math.prod(value[-2:])
    return 0


def names(unit: Unit) -> str:
    return " ".join(operator.name for operator in unit.operators)


def units_in(model: UnitModel) -> list[str]:
    return [names(term.unit) for term in model.terms]


class Written(nn.Module):
    """A network whose forward pass is given."""

    def __init__(self, forward: Callable[..., torch.Tensor], **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.written = forward

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.written(self, *inputs)


def between(body: Callable[..., torch.Tensor], **modules: nn.Module) -> nn.Module:
    """What ``body`` does to 16 channels of 8 x 8, that come from a convolution and go into another one."""
    ends = {"first": nn.Conv2d(3, 16, 3, padding=1), "last": nn.Conv2d(16, 4, 1)}
    return Written(lambda self, image: self.last(body(self, self.first(image))), **ends, **modules)


def model_of(network: nn.Module, *shape: int) -> UnitModel:
    return unit_model(trace(network.eval(), torch.randn(shape or (1, 3, 8, 8))))


@pytest.mark.parametrize("name", [*SIX, *OTHERS, "vit"])
def test_flops_of_the_units_are_those_of_the_channel_graph_at_any_mask(see_network, random_mask, name: str) -> None:
    seen = see_network(name)
    model = unit_model(seen.trace)
    kept = random_mask(seen.graph, 0)
    for mask in (seen.graph.everything(), kept):
        found: dict[str, int] = {}
        sizes = sizes_of(model, mask)
        for term in model.terms:
            if counted := flops(term, sizes):
                found[term.name] = found.get(term.name, 0) + counted
        assert found == seen.graph.cost.flops_by_layer(mask)


@pytest.mark.parametrize("name", SIX)
def test_shapes_of_the_units_are_those_of_the_pruned_network(see_network, random_mask, name: str) -> None:
    seen = see_network(name)
    model, kept = unit_model(seen.trace), random_mask(seen.graph, 1)
    assert model.unpriced == {}
    sizes = sizes_of(model, kept)
    pruned = unit_model(trace(pruned_copy(seen.model, plan_from_mask(seen.graph, kept)), seen.inputs))
    dense = [len(width) for width in pruned.widths]
    assert [shapes_at(term, sizes) for term in model.terms] == [shapes_at(term, dense) for term in pruned.terms]


def shapes_at(term: UnitTerm, sizes: list[int]) -> tuple[object, ...]:
    unit, widths = term.unit, [sizes[number] for number in term.widths]
    shapes = [unit.at(shape, widths) for shape in (*unit.inputs, *(one.shape for one in unit.operators))]
    return (term.name, names(unit), *shapes)


def test_equal_layers_of_a_network_are_one_unit() -> None:
    model = model_of(network("resnet50"), 1, 3, 224, 224)
    assert len(model.terms) == 56
    assert len(model.widest()) == 26
    bottleneck = [term.unit for term in model.terms if term.name in ("layer3.1.conv3", "layer3.5.conv3")]
    assert bottleneck[0] == bottleneck[1]
    assert names(bottleneck[0]) == "conv2d add relu"


def test_units_come_back_from_their_keys(see_network) -> None:
    for name in ("vit", "efficientnet_b0"):
        units = list(unit_model(see_network(name).trace).widest())
        assert [Unit.from_key(unit.key) for unit in units] == units


def test_the_layers_of_a_residual_branch_carry_its_name(see_network) -> None:
    seen = see_network("resnet50")
    by_name = {term.name: term.branches for term in unit_model(seen.trace).terms}
    of_cost = {term.layer: term.branches for term in seen.graph.cost.flop_terms}
    assert {name: by_name[name] for name in of_cost} == of_cost
    assert by_name["layer1.1.conv2"] == ("layer1.1.bn3",)


def test_a_convolution_runs_with_its_norm_and_what_follows_entry_by_entry() -> None:
    model = model_of(
        between(
            lambda self, x: self.norm(self.inner(x)).relu() + x, inner=nn.Conv2d(16, 16, 1), norm=nn.BatchNorm2d(16)
        )
    )
    assert units_in(model) == ["conv2d", "conv2d relu add", "conv2d"]
    unit = model.terms[1].unit
    assert unit.inputs == ((1, -1, 8, 8), (1, -2, 8, 8))
    assert [operator.reads for operator in unit.operators] == [(0,), (2,), (3, 1)]
    assert model.terms[1].widths[0] == model.terms[1].widths[1]  # one width, but it comes in and goes out


def test_a_norm_after_a_convolution_gives_it_a_bias() -> None:
    def attribute(normed: bool) -> bool:
        inner = nn.Conv2d(16, 16, 1, bias=False)
        norm: nn.Module = nn.BatchNorm2d(16) if normed else nn.Identity()
        return dict(
            model_of(between(lambda self, x: self.norm(self.inner(x)), inner=inner, norm=norm))
            .terms[1]
            .unit.operators[0]
            .attributes
        )["bias"]

    assert attribute(True) is True
    assert attribute(False) is False


def test_a_norm_of_what_is_also_read_elsewhere_is_a_unit_of_its_own() -> None:
    def body(self, x):
        y = self.inner(x)
        return self.norm(y).relu() + y

    model = model_of(between(body, inner=nn.Conv2d(16, 16, 1), norm=nn.BatchNorm2d(16)))
    assert units_in(model) == ["conv2d", "conv2d", "batch_norm relu add", "conv2d"]


def test_the_later_of_two_convolutions_takes_their_sum() -> None:
    model = model_of(
        between(
            lambda self, x: self.one(x) + self.two(x), one=nn.Conv2d(16, 16, 1), two=nn.Conv2d(16, 16, 3, padding=1)
        )
    )
    assert units_in(model) == ["conv2d", "conv2d", "conv2d add", "conv2d"]
    assert dict(model.terms[2].unit.operators[0].attributes)["kernel"] == (3, 3)


def test_a_sum_that_comes_in_the_other_order_is_the_same_unit() -> None:
    one, two = (
        model_of(between(body, inner=nn.Conv2d(16, 16, 1)))
        for body in (lambda self, x: self.inner(x) + x, lambda self, x: x + self.inner(x))
    )
    assert one.terms[1].unit == two.terms[1].unit


def test_who_reads_a_value_after_it_was_written_in_place_reads_what_was_written() -> None:
    def body(self, x):
        functional.relu_(x)
        return x

    assert units_in(model_of(between(body))) == ["conv2d relu", "conv2d"]


def test_whole_groups_follow_the_width_and_equal_positions_do_not() -> None:
    def convolution(groups: int, outputs: int = 16) -> tuple[UnitTerm, dict[str, object]]:
        inner = nn.Conv2d(16, outputs, 3, padding=1, groups=groups)
        ends = {"first": nn.Conv2d(3, 16, 1), "inner": inner, "last": nn.Conv2d(outputs, 4, 1)}
        term = model_of(Written(lambda self, image: self.last(self.inner(self.first(image))), **ends)).terms[1]
        return term, dict(term.unit.operators[0].attributes)

    depthwise, attributes = convolution(16)
    assert depthwise.unit.axes == 1
    assert (attributes["channels_per_group"], attributes["outputs_per_group"]) == (1, 1)
    doubled, attributes = convolution(16, outputs=32)
    assert doubled.unit.axes == 1
    assert doubled.unit.inputs == ((1, -1, 8, 8),)
    assert (attributes["channels_per_group"], attributes["outputs_per_group"]) == (1, 1)
    paired, attributes = convolution(2)
    assert paired.unit.axes == 2
    assert attributes["groups"] == 2
    assert "channels_per_group" not in attributes


def test_doubled_depthwise_and_transposed_convolutions_count_their_flops(see, random_mask) -> None:
    modules = {
        "first": nn.Conv2d(3, 16, 1),
        "doubled": nn.Conv2d(16, 32, 3, padding=1, groups=16),
        "up": nn.ConvTranspose2d(32, 16, 2, stride=2),
        "last": nn.Conv2d(16, 4, 3, padding="same"),
    }
    seen = see(Written(lambda self, x: self.last(self.up(self.doubled(self.first(x)))), **modules), (1, 3, 8, 8))
    model, kept = unit_model(seen.trace), random_mask(seen.graph, 0)
    assert units_in(model) == ["conv2d", "conv2d", "conv_transpose2d", "conv2d"]
    sizes = sizes_of(model, kept)
    assert {term.name: flops(term, sizes) for term in model.terms} == seen.graph.cost.flops_by_layer(kept)


def test_a_concatenation_is_told_by_its_result() -> None:
    model = model_of(
        Written(
            lambda self, x: self.last(torch.cat([self.one(x), self.two(x), x], dim=1)),
            one=nn.Conv2d(3, 16, 1), two=nn.Conv2d(3, 8, 1), last=nn.Conv2d(27, 4, 1),
        )
    )  # fmt: skip
    [term] = [term for term in model.terms if names(term.unit) == "cat"]
    assert term.unit.inputs == ((1, -1, 8, 8),)
    assert term.unit.operators[0].shape == (1, -1, 8, 8)
    width = model.widths[term.widths[0]]
    assert (len(width), int((width < 0).sum())) == (27, 3)
    assert model.terms[-1].widths[0] == term.widths[0]


def test_a_gate_is_a_unit_with_one_width() -> None:
    def body(self, x):
        return x * self.gate(functional.adaptive_avg_pool2d(x, 1)).sigmoid()

    model = model_of(between(body, gate=nn.Conv2d(16, 16, 1)))
    assert units_in(model) == ["conv2d", "adaptive_avg_pool2d", "conv2d sigmoid", "mul", "conv2d"]
    assert set(model.terms[3].unit.inputs) == {(1, -1, 8, 8), (1, -1, 1, 1)}
    assert model.terms[3].unit.axes == 1


def test_constants_are_told_by_their_shape_and_numbers_by_themselves() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(16, 1, 1))

        def forward(self, x):
            return (self.scale.exp() * x + 3) / 2

    model = model_of(between(lambda self, x: self.scaled(x), scaled=Scaled()))
    assert units_in(model) == ["conv2d mul add div", "conv2d"]
    _, scale, shift, share = (dict(operator.attributes) for operator in model.terms[0].unit.operators)
    assert (scale, shift, share) == ({"operand": (-1, 1, 1)}, {"scalar": 3.0}, {"scalar": 2.0})


def test_views_and_dropout_are_no_units_and_give_their_shape_to_who_reads_them() -> None:
    def forward(self, x):
        x = self.dropout(self.first(x)).flatten(2).transpose(1, 2)
        return self.last(functional.gelu(self.hidden(x).contiguous()))

    model = model_of(
        Written(
            forward, first=nn.Conv2d(3, 16, 1), hidden=nn.Linear(16, 32), last=nn.Linear(32, 4), dropout=nn.Dropout()
        )
    )
    assert units_in(model) == ["conv2d", "linear gelu", "linear"]
    assert model.terms[1].unit.inputs == ((1, 64, -1),)
    assert model.terms[1].unit.operators[1].attributes == (("approximate", "none"),)
    assert model.unpriced == {}


def test_a_flattened_image_has_every_column_in_its_width() -> None:
    model = model_of(
        Written(lambda self, x: self.last(self.first(x).flatten(1)), first=nn.Conv2d(3, 16, 1), last=nn.Linear(1024, 4))
    )
    [width] = model.terms[1].widths
    assert len(model.widths[width]) == 16 * 64
    assert model.terms[1].unit == Unit(
        inputs=((1, -1),),
        operators=(Operator(name="linear", reads=(0,), shape=(1, 4), attributes=(("bias", True),)),),
        axes=1,
    )


class Attention(nn.Module):
    """Four heads of 16 over the 16 positions of an image of 4 x 4."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 64, 1), nn.Linear(64, 4)
        self.query, self.key, self.value = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64)
        self.out = nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).flatten(2).transpose(1, 2)
        heads = [one(x).unflatten(-1, (4, 16)).transpose(1, 2) for one in (self.query, self.key, self.value)]
        mixed = functional.scaled_dot_product_attention(*heads)
        return self.last(x + self.out(mixed.transpose(1, 2).flatten(2)))


@pytest.mark.parametrize(
    ("axis", "shapes"),
    [
        (AttentionAxis.HEADS, ((1, -1, 16, 16),) * 3),
        (AttentionAxis.HEAD_DIM, ((1, 4, 16, -1), (1, 4, 16, -1), (1, 4, 16, -2))),
    ],
)
def test_attention_has_its_heads_or_their_positions_as_widths(see, axis: AttentionAxis, shapes: object) -> None:
    traced = see(Attention(), (1, 3, 4, 4), attention=axis, sizes_are_free=axis is AttentionAxis.HEAD_DIM).trace
    model = unit_model(traced)
    [attention] = [term.unit for term in model.terms if "attention" in names(term.unit)]
    assert attention.inputs == shapes
    assert attention.operators[0].shape == shapes[2]
    assert units_in(model)[-2:] == ["linear add", "linear"]
    assert model.unpriced == {}


def test_a_third_width_is_held_at_its_dense_size() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.rows, self.more = nn.Linear(8, 16), nn.Linear(6, 12), nn.Linear(12, 20)
            self.fewer, self.last = nn.Linear(20, 6), nn.Linear(16, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.fewer(self.more(self.rows(self.first(x).transpose(1, 2))))
            return self.last(x.transpose(1, 2))

    model = model_of(Mixed(), 1, 6, 8)
    units = {term.name: term.unit for term in model.terms}
    assert units["rows"].inputs == ((1, -2, 6),)
    assert units["more"].inputs == ((1, 16, -1),)
    assert units["more"].operators[0].shape == (1, 16, -2)
    assert units["more"].axes == 2


def test_a_product_by_equation_is_a_unit_with_its_equation() -> None:
    def body(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        rows = x.flatten(2)
        return torch.einsum("b c p, b d p -> b c d", rows, rows.sigmoid())

    model = model_of(Written(lambda self, x: body(self, self.first(x)), first=nn.Conv2d(3, 16, 1)))
    product = model.terms[-1].unit
    assert names(product) == "einsum"
    assert dict(product.operators[0].attributes) == {"equation": "bcp,bdp->bcd"}
    assert len(product.inputs) == 2
    assert model.unpriced == {}


def test_a_norm_goes_into_a_linear_layer_of_rows_alone() -> None:
    def units(*shape: int) -> list[str]:
        return units_in(model_of(nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 4)), *shape))

    assert units(1, 8) == ["linear", "linear"]
    assert units(1, 16, 8) == ["linear", "batch_norm", "linear"]


def test_what_no_unit_holds_is_counted_by_name() -> None:
    model = model_of(between(lambda self, x: torch.roll(x, 1, dims=2).roll(2, dims=3).cumsum(3)))
    assert model.unpriced == {"roll": 2, "cumsum": 1}
    assert units_in(model) == ["conv2d", "conv2d"]


def test_channels_are_numbered_as_the_graph_without_some_groups_numbers_them(see_network, random_mask) -> None:
    seen = see_network("mobilenet_v2")
    part = seen.trace.without_groups({0: "stays", 2: "stays"})
    model, kept = unit_model(part), random_mask(part.graph, 0)
    assert model.channel_count == part.graph.channel_count < seen.graph.channel_count
    sizes = sizes_of(model, kept)
    assert sum(flops(term, sizes) for term in model.terms) == part.graph.cost.flops(kept)
    assert all((width < part.graph.channel_count).all() and (width >= 0).any() for width in model.widths)
    assert all(np.issubdtype(width.dtype, np.integer) for width in model.widths)
