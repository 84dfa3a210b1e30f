import copy
import itertools
from collections.abc import Collection

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from prune2deploy.graph.trace import trace
from prune2deploy.surgery.culprits import find_failing
from prune2deploy.surgery.trial import freeze_what_breaks, randomised_copy, trial_mask


class Body(nn.Module):
    """Three groups: first, middle, last. ``between`` works on what ``middle`` gives."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 16, 1), nn.Conv2d(16, 10, 1)
        self.out = nn.Linear(10, 3)

    def between(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        x = self.between(self.middle(self.first(x).relu()))
        return self.out(self.last(x).relu().mean((2, 3)))


class WrittenView(Body):
    def between(self, x: Tensor) -> Tensor:
        return x.view(-1, 16, 36).view(-1, 16, 6, 6)


class WrittenHeads(Body):
    def __init__(self) -> None:
        super().__init__()
        self.heads, self.head_width = 4, 16 // 4

    def between(self, x: Tensor) -> Tensor:
        return x.view(-1, self.heads, self.head_width, 6, 6).flatten(1, 2)


class WrittenScale(Body):
    """Runs at any width, and computes something else."""

    def between(self, x: Tensor) -> Tensor:
        return x * x.shape[1] ** -0.5


class WrittenCheck(Body):
    def between(self, x: Tensor) -> Tensor:
        if x.shape[1] != 16:
            raise KeyError(x.shape[1])
        return x


class WrittenDivision(Body):
    def between(self, x: Tensor) -> Tensor:
        return x * (1 / (1 if x.shape[1] == 16 else 0))


CULPRITS = [WrittenView, WrittenHeads, WrittenScale, WrittenCheck, WrittenDivision]


@pytest.mark.parametrize("kind", CULPRITS)
def test_only_the_group_whose_size_is_written_in_the_code_is_frozen(kind: type[Body]) -> None:
    model, inputs = kind(), (torch.randn(1, 3, 6, 6),)
    traced = trace(model, inputs)
    assert [group.name for group in traced.graph.groups] == ["first", "middle", "last"]
    graph = freeze_what_breaks(traced, model, inputs).graph
    assert [group.name for group in graph.groups] == ["first", "last"]
    (reason,) = [one for one in graph.frozen if one.place.startswith("middle")]
    assert reason.reason.startswith("a size written in the code")
    assert reason.axes == (("middle.weight", 0),)


def test_code_that_fits_any_width_freezes_nothing() -> None:
    model, inputs = Body(), (torch.randn(1, 3, 6, 6),)
    traced = trace(model, inputs)
    assert freeze_what_breaks(traced, model, inputs) is traced


def test_the_trial_leaves_the_model_as_it_was() -> None:
    model, inputs = WrittenScale().train(), (torch.randn(1, 3, 6, 6),)
    before = copy.deepcopy(model.state_dict())
    freeze_what_breaks(trace(model, inputs), model, inputs)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_the_trial_cuts_neighbouring_groups_at_distinct_widths_and_empties_none() -> None:
    graph = trace(Body(), torch.randn(1, 3, 6, 6)).graph
    widths = graph.kept_widths(trial_mask(graph, [0, 1, 2]))
    assert [group.width - width for group, width in zip(graph.groups, widths, strict=True)] == [1, 2, 3]
    assert graph.kept_widths(trial_mask(graph, [1])) == (12, 14, 10)


def test_the_trial_takes_half_and_more_of_wide_groups_from_all_over_them() -> None:
    wide = nn.Sequential(nn.Conv2d(3, 64, 1), nn.ReLU(), nn.Conv2d(64, 40, 1), nn.ReLU(), nn.Conv2d(40, 2, 1))
    graph = trace(wide, torch.randn(1, 3, 6, 6)).graph
    kept = trial_mask(graph, [0, 1])
    assert graph.kept_widths(kept) == (31, 18)
    for group in graph.groups:
        gone = [place for place, stays in enumerate(kept[group.channels]) if not stays]
        assert all(after - before in (1, 2) for before, after in itertools.pairwise(gone))
        assert gone[0] == 0
        assert gone[-1] >= len(group.channels) - 2


def failing_sets(*sets: Collection[int]):
    """A test that fails on every superset of one of ``sets``, and counts how often it is asked."""
    asked: list[tuple[int, ...]] = []

    def passes(groups: Collection[int]) -> bool:
        asked.append(tuple(groups))
        return not any(set(one) <= set(groups) for one in sets)

    return passes, asked


@pytest.mark.parametrize(
    ("sets", "found"),
    [
        ([], []),
        ([{3}], [3]),
        ([{0}, {7}], [0, 7]),
        ([{1, 6}], [1, 6]),
        ([{1, 6}, {4}], [1, 4, 6]),
        ([{0, 1, 2}], [0, 1, 2]),
        ([{index} for index in range(8)], list(range(8))),
        ([set(range(8))], list(range(8))),
    ],
)
def test_culprits_are_found_alone_and_in_combination(sets: list[set[int]], found: list[int]) -> None:
    passes, _ = failing_sets(*sets)
    assert find_failing(range(8), passes) == found


def test_one_culprit_of_many_is_found_in_few_questions() -> None:
    passes, asked = failing_sets({700})
    assert find_failing(range(1024), passes) == [700]
    assert len(asked) <= 3 * 10 + 2


@settings(max_examples=200, deadline=None, derandomize=True)
@given(sets=st.lists(st.sets(st.integers(0, 9), min_size=1, max_size=4), max_size=4))
def test_without_the_culprits_everything_passes_and_each_culprit_is_part_of_a_failure(sets: list[set[int]]) -> None:
    passes, _ = failing_sets(*sets)
    found = find_failing(range(10), passes)
    assert passes([index for index in range(10) if index not in found])
    assert all(any(index in one for one in sets) for index in found)


def test_a_randomised_copy_hides_no_error_behind_zeros_and_keeps_ties() -> None:
    shared = nn.Linear(6, 6)
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), shared, shared)
    nn.init.zeros_(model[0].weight)
    copied = randomised_copy(model)
    for tensor in (*copied.parameters(), copied[1].running_mean, copied[1].running_var):
        assert (tensor != 0).all()
        assert len(tensor.unique()) > 1
    assert copied[2].weight is copied[3].weight
    assert (copied[1].running_var > 0).all()
    assert (model[0].weight == 0).all()
    again, other = randomised_copy(model), randomised_copy(model, seed=1)
    assert torch.equal(copied[0].weight, again[0].weight)
    assert not torch.equal(copied[0].weight, other[0].weight)


def test_random_copies_keep_the_tables_that_code_relies_on() -> None:
    model = nn.BatchNorm2d(4)
    model.register_buffer("table", torch.tensor([1.0, 1e-3, 1e-6]))
    sample = randomised_copy(model)
    assert sample.table.equal(model.table)
    assert len(sample.running_mean.unique()) == len(sample.running_var.unique()) == 4


class Residual(nn.Module):
    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(blocks)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


def test_with_inputs_random_copies_of_deep_networks_keep_their_scale() -> None:
    x = torch.randn(1, 8, 6, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tame = randomised_copy(Residual(80), inputs=(x,))(x)
        wild = randomised_copy(Residual(80))(x)
    assert tame.abs().max() < 1e4 < wild.abs().max()
