"""What is alive in memory while a network runs, and at which moments that may be most."""

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from prune2deploy.graph.dataflow import Dataflow
from prune2deploy.graph.liveness import MANY_MOMENTS, moments_of
from prune2deploy.graph.steps import steps_of
from prune2deploy.graph.trace import Trace, trace
from prune2deploy.graph.unit import LiveValues
from prune2deploy.graph.units import unit_model
from prune2deploy.graph.value_widths import ValueWidths


def traced(network: nn.Module, *shape: int) -> Trace:
    return trace(network.eval(), torch.randn(shape or (1, 3, 8, 8)))


def by_width(moment: LiveValues, widths: object) -> dict[int, int]:
    """Elements for each index, by the dense size of the width."""
    return {len(widths[number]): each for number, each in moment.elements.items()}


def dense_size(moment: LiveValues, widths: object) -> int:
    return moment.fixed + sum(len(widths[number]) * each for number, each in moment.elements.items())


def test_a_step_needs_what_it_reads_and_what_it_makes() -> None:
    network = nn.Sequential(nn.Conv2d(3, 20, 1), nn.ReLU(), nn.Conv2d(20, 30, 1), nn.Conv2d(30, 4, 1))
    model = unit_model(traced(network))
    moments = {moment.name: moment for moment in model.moments}
    assert (moments["0"].fixed, by_width(moments["0"], model.widths)) == (3 * 64, {20: 64})
    assert (moments["2"].fixed, by_width(moments["2"], model.widths)) == (0, {20: 64, 30: 64})
    assert (moments["3"].fixed, by_width(moments["3"], model.widths)) == (4 * 64, {30: 64})


class Residual(nn.Module):
    def __init__(self, *, norm: bool = False) -> None:
        super().__init__()
        self.first, self.inner, self.outer = nn.Conv2d(3, 20, 1), nn.Conv2d(20, 30, 1), nn.Conv2d(30, 20, 1)
        self.norm = nn.BatchNorm2d(20) if norm else nn.Identity()
        self.last = nn.Conv2d(20, 4, 1, stride=2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.first(image).relu()
        return self.last((x + self.norm(self.outer(self.inner(x).relu()))).relu())


def test_a_shortcut_lives_until_it_is_added_and_tails_run_in_place() -> None:
    for norm in (False, True):
        model = unit_model(traced(Residual(norm=norm)))
        [fullest] = [moment for moment in model.moments if moment.name == "outer"]
        assert (fullest.fixed, by_width(fullest, model.widths)) == (0, {20: 2 * 64, 30: 64})


def test_a_moment_at_which_nothing_is_more_than_at_another_is_left_out() -> None:
    names = [moment.name for moment in unit_model(traced(Residual())).moments]
    assert names == ["first", "outer"]  # what lives at "inner" lives at "outer" too, and "last" is as "first"


def test_moments_within_a_residual_branch_carry_its_name() -> None:
    seen = traced(Residual())
    moments = {moment.name: moment for moment in unit_model(seen).moments}
    [branch] = seen.graph.branches
    assert (moments["first"].branches, moments["outer"].branches) == ((), (branch.name,))


def test_views_hold_the_data_of_what_they_look_at() -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.hidden, self.last = nn.Conv2d(3, 20, 1), nn.Linear(20, 30), nn.Linear(30, 4)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            x = self.first(image)
            rows = x.flatten(2).transpose(1, 2)
            return self.last(self.hidden(rows)) + rows[..., :4]

    model = unit_model(traced(Views()))
    moments = {moment.name: moment for moment in model.moments}
    assert dense_size(moments["last"], model.widths) == (20 + 30 + 4) * 64


def test_of_two_widths_of_a_value_the_smaller_one_counts_as_dense() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.rows = nn.Linear(8, 16), nn.Linear(6, 12)
            self.fewer, self.last = nn.Linear(12, 6), nn.Linear(16, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.fewer(self.rows(self.first(x).transpose(1, 2))).transpose(1, 2))

    model = unit_model(traced(Mixed(), 1, 6, 8))
    [moment] = [moment for moment in model.moments if moment.name == "rows"]
    assert (moment.fixed, by_width(moment, model.widths)) == (0, {16: 6 + 12})


def test_no_moment_is_left_out_that_could_be_the_fullest() -> None:
    stages = [nn.Sequential(nn.Conv2d(8, 16, 1), nn.ReLU(), nn.Conv2d(16, 8, 1)) for _ in range(30)]
    seen = traced(nn.Sequential(nn.Conv2d(3, 8, 1), *stages, nn.Conv2d(8, 4, 1)))
    flow, widths = Dataflow.of(seen.program), ValueWidths(seen)
    steps = steps_of(flow, widths)
    moments = moments_of(steps, flow, widths, ())
    assert len(moments) == 61  # every convolution but the last, all of about one size
    assert len(moments) > MANY_MOMENTS
    random = np.random.default_rng(0)
    for _ in range(5):
        sizes = [int(random.integers(1, len(array) + 1)) for array in widths.arrays]
        largest = max(
            moment.fixed + sum(sizes[one] * each for one, each in moment.elements.items()) for moment in moments
        )
        assert largest == max(pair_of(step, widths, sizes) for step in steps)


def pair_of(step: object, widths: ValueWidths, sizes: list[int]) -> int:
    """What a step of a plain chain reads and makes."""
    shapes = [widths.shape(node) for node in (*step.reads(), step.result)]
    return sum(math.prod(size if size >= 0 else sizes[-1 - size] for size in shape) for shape in shapes)


def test_a_value_that_is_read_again_late_lives_all_the_while() -> None:
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.down, self.last = nn.Conv2d(3, 20, 1), nn.Conv2d(20, 30, 1, stride=2), nn.Conv2d(50, 4, 1)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            x = self.first(image)
            low = functional.interpolate(self.down(x), scale_factor=2.0, mode="nearest")
            return self.last(torch.cat([x, low], 1))

    model = unit_model(traced(Skip()))
    joined = max(model.moments, key=lambda moment: dense_size(moment, model.widths))
    assert joined.name == ""  # the concatenation is the network's own
    assert by_width(joined, model.widths) == {20: 64, 30: 64, 50: 64}
    assert model.unpriced == {}
