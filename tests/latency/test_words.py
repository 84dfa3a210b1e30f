"""Units as people name them."""

import pytest

from prune2deploy.graph.unit import Operator, Shape, Unit
from prune2deploy.latency.words import words


def unit(*names: str, reads: Shape = (1, -1, 56, 56), shape: Shape = (1, -2, 28, 28), **attributes: object) -> Unit:
    operators = [
        Operator(
            name=name, reads=(number,), shape=shape, attributes=tuple(sorted(attributes.items())) if not number else ()
        )
        for number, name in enumerate(names)
    ]
    return Unit(inputs=(reads,), operators=tuple(operators), axes=2)


@pytest.mark.parametrize(
    ("one", "spelled"),
    [
        (unit("conv2d", "relu", kernel=(3, 3), stride=(2, 2), groups=1), "conv 3x3/2 + relu, 56x56"),
        (unit("conv2d", "add", "relu", kernel=(1, 1), stride=(1, 1)), "conv 1x1 + add + relu, 56x56"),
        (unit("conv2d", kernel=(5, 5), stride=(1, 1), channels_per_group=1), "depthwise conv 5x5, 56x56"),
        (unit("conv2d", kernel=(3, 3), channels_per_group=8), "conv 3x3 in groups of 8, 56x56"),
        (unit("conv2d", kernel=(3, 3), groups=32), "conv 3x3 in 32 groups, 56x56"),
        (unit("conv2d", kernel=(3, 3), stride=(2, 1), dilation=(2, 2)), "conv 3x3/2x1 dilated 2x2, 56x56"),
        (unit("conv2d", kernel=(7, 7), stride=(2, 2), reads=(1, 3, 224, 224)), "conv 7x7/2, 3x224x224"),
        (unit("conv_transpose2d", kernel=(2, 2), stride=(2, 2)), "transposed conv 2x2/2, 56x56"),
        (unit("max_pool2d", kernel=(3, 3), stride=(2, 2)), "max pool 3x3/2, 56x56"),
        (unit("adaptive_avg_pool2d", output_size=(1, 1)), "average pool to 1x1, 56x56"),
        (unit("linear", reads=(1, -1), shape=(1, 1000)), "linear to 1000"),
        (unit("linear", "gelu", reads=(1, 197, -1), shape=(1, 197, -2)), "linear + gelu, 197 positions"),
        (unit("layer_norm", reads=(1, 56, 56, -1), shape=(1, 56, 56, -1)), "layer norm, 56x56"),
        (unit("scaled_dot_product_attention", reads=(1, -1, 197, 64)), "attention, 197x64"),
    ],
)
def test_a_unit_is_told_by_its_operators_and_its_resolution(one, spelled):
    assert words(one) == spelled


def test_the_resolution_is_that_of_the_largest_input():
    scale = Operator(name="mul", reads=(1, 0), shape=(1, -1, 28, 28))
    assert words(Unit(inputs=((1, -1, 1, 1), (1, -1, 28, 28)), operators=(scale,), axes=1)) == "mul, 28x28"


def test_a_unit_without_inputs_has_no_resolution():
    assert words(Unit(inputs=(), operators=(Operator(name="arange", reads=(), shape=(10,)),), axes=0)) == "arange"
