"""LAMP and FPGM by hand."""

import dataclasses

import numpy as np
import pytest
import torch

from prune2deploy.importance.fpgm import fpgm
from prune2deploy.importance.lamp import lamp


def fill(parameter, values):
    with torch.no_grad():
        parameter.copy_(torch.tensor(values, dtype=parameter.dtype).reshape(parameter.shape))


@pytest.fixture
def residual(make):
    """A stream of three channels with two producers, of which the branch is zero."""
    model = make("Residual")
    fill(model.branch.weight, [0.0] * 81)
    return model


def test_lamp_divides_by_the_squares_that_are_not_smaller(residual):
    """Squares 5, 9 and 2, sorted 2, 5, 9: 2/16, 5/14, 9/9."""
    fill(residual.stem.weight, [[1.0, -2.0], [0.0, 3.0], [-1.0, -1.0]])
    np.testing.assert_allclose(lamp(residual.graph, residual), [5 / 14, 1, 2 / 16], rtol=1e-12)


def test_lamp_counts_all_producers_of_a_channel(residual):
    fill(residual.stem.weight, [[1.0, -2.0], [0.0, 3.0], [-1.0, -1.0]])
    with torch.no_grad():
        residual.branch.weight[2, 0, 1, 1] = 4.0  # the third channel: 2 + 16
    np.testing.assert_allclose(lamp(residual.graph, residual), [5 / 32, 9 / 27, 1], rtol=1e-12)


def test_lamp_of_equal_and_of_empty_channels(residual):
    fill(residual.stem.weight, [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    np.testing.assert_allclose(lamp(residual.graph, residual), [1 / 3, 1 / 2, 1], rtol=1e-12)
    fill(residual.stem.weight, [[0.0, 0.0]] * 3)
    assert lamp(residual.graph, residual).tolist() == [0, 0, 0]


def test_lamp_compares_within_each_group_alone(make):
    model = make("Chain")
    before = lamp(model.graph, model)
    with torch.no_grad():
        model.conv2.weight.mul_(100)
    np.testing.assert_allclose(lamp(model.graph, model), before, rtol=1e-12)
    assert [before[group.channels].max() for group in model.graph.groups] == [1, 1]


def test_fpgm_adds_up_the_distances_to_all_others(residual):
    """Filters (0, 0), (3, 4) and (0, 1): distances 5, 1 and √18."""
    fill(residual.stem.weight, [[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    np.testing.assert_allclose(fpgm(residual.graph, residual), [5 + 1, 5 + 18**0.5, 1 + 18**0.5], rtol=1e-9)


def test_fpgm_measures_over_all_producers_together(residual):
    """The branch adds 12 to the second filter: 13 = √(5² + 12²) from the first, √(18 + 12²) from the third."""
    fill(residual.stem.weight, [[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    with torch.no_grad():
        residual.branch.weight[1, 2, 0, 0] = 12.0
    expected = [13 + 1, 13 + 162**0.5, 1 + 162**0.5]
    np.testing.assert_allclose(fpgm(residual.graph, residual), expected, rtol=1e-9)


def test_fpgm_takes_all_indices_of_a_channel_in_their_order(make):
    """Channel 0 owns filters 0 and 2, channel 1 owns 1 and 3: (1, 0 | 0, 0) and (0, 0 | 0, 5) are √26 apart."""
    model = make("Grouped")
    fill(model.conv.weight, [[1.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 5.0]])
    np.testing.assert_allclose(fpgm(model.graph, model), [26**0.5, 26**0.5], rtol=1e-9)


def test_fpgm_of_a_producer_that_makes_some_channels_counts_the_others_as_zero(residual):
    """The branch makes channels 0 and 1 alone, as behind a shortcut that was padded with zeros."""
    fill(residual.stem.weight, [[0.0, 0.0]] * 3)
    graph = residual.graph
    axes = tuple(
        dataclasses.replace(axis, channels=np.array([0, 1, -1])) if axis.tensor == "branch.weight" else axis
        for axis in graph.axes
    )
    with torch.no_grad():
        residual.branch.weight[0, 0, 0, 0], residual.branch.weight[1, 0, 0, 1] = 3.0, 4.0
        residual.branch.weight[2, 0, 0, 0] = 100.0  # cannot leave, and belongs to no channel
    np.testing.assert_allclose(fpgm(dataclasses.replace(graph, axes=axes), residual), [5 + 3, 5 + 4, 3 + 4], rtol=1e-9)


def test_the_channel_at_the_geometric_median_leaves_first(residual):
    fill(residual.stem.weight, [[-9.0, 0.0], [0.1, 0.1], [9.0, 0.0]])
    assert int(np.argmin(fpgm(residual.graph, residual))) == 1
