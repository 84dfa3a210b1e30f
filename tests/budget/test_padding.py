"""What padding to a granule costs, against numbers worked out by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prune2deploy.budget.padding import Side, padded
from prune2deploy.graph.layers import Layer


def layer(inputs: int, outputs: int, *, groups: int = 1, positions: int = 1, reads_image: bool = False) -> Layer:
    return Layer(
        name="layer",
        operator="convolution",
        flops=2 * positions * inputs // groups * outputs,
        input_width=inputs,
        output_width=outputs,
        groups=groups,
        kernel=(1, 1),
        weight="layer.weight",
        reads_image=reads_image,
    )


def test_both_widths_are_rounded_up():
    found = padded(layer(60, 37), 8)
    assert found.flops_lost == 2 * (64 * 40 - 60 * 37)
    assert (found.input.below, found.input.above, found.output.below, found.output.above) == (56, 64, 32, 40)


def test_nothing_is_lost_on_multiples_of_the_granule():
    found = padded(layer(64, 32), 16)
    assert (found.flops_lost, found.input.off, found.output.off) == (0, False, False)


def test_a_convolution_that_reads_the_image_is_padded_in_its_outputs_alone():
    found = padded(layer(3, 60, reads_image=True), 16)
    assert (found.input.off, found.input.above) == (False, 3)
    assert found.flops_lost == 2 * 3 * 4


def test_a_depthwise_convolution_is_padded_once():
    found = padded(layer(60, 60, groups=60), 16)
    assert (found.input.off, found.output.off) == (False, True)
    assert found.flops_lost == 2 * 4


def test_wide_groups_are_padded_each():
    found = padded(layer(80, 120, groups=2), 16)  # 40 to 60 in each group
    assert (found.input.above, found.output.above) == (2 * 48, 2 * 64)
    assert (found.input.below, found.output.below) == (2 * 32, 2 * 48)
    assert found.flops_lost == 2 * 2 * (48 * 64 - 40 * 60)


def test_narrow_groups_share_a_tile_of_outputs():
    found = padded(layer(128, 128, groups=32), 16)  # 4 to 4 in each group
    assert (found.input.above, found.output.above) == (32 * 16, 128)
    assert (found.input.below, found.output.off) == (None, False)
    assert found.flops_lost == 2 * 128 * (16 - 4)


def test_a_width_below_the_granule_has_no_smaller_neighbour():
    assert (Side(width=10, parts=1, granule=16).below, Side(width=10, parts=1, granule=16).above) == (None, 16)


@given(
    inputs=st.integers(1, 300),
    outputs=st.integers(1, 300),
    granule=st.sampled_from((1, 4, 8, 16, 32)),
    groups=st.integers(1, 6),
)
def test_padding_is_never_negative_and_aligned_widths_lose_nothing(
    inputs: int, outputs: int, granule: int, groups: int
) -> None:
    found = padded(layer(inputs * groups, outputs * groups, groups=groups, positions=5), granule)
    assert found.flops_lost >= 0
    assert (found.flops_lost == 0) == (not found.input.off and not found.output.off)
    for side in (found.input, found.output):
        assert (side.below or 0) <= side.width <= side.above
        assert side.above % side.granule == 0
    aligned = padded(layer(found.input.above, found.output.above, groups=groups, positions=5), granule)
    assert aligned.flops_lost == 0 or found.layer.depthwise


@pytest.mark.parametrize("granule", [4, 8, 16])
def test_a_finer_granule_never_loses_more(granule: int) -> None:
    for width in range(1, 200):
        assert padded(layer(width, width), granule).flops_lost <= padded(layer(width, width), 2 * granule).flops_lost
