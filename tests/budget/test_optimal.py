"""The solver against trying everything."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from prune2deploy.budget.allocate import allocate
from prune2deploy.budget.ladder import Ladder
from prune2deploy.budget.optimal import GREEDY, best_within, cheapest_worth
from prune2deploy.budget.priced import Priced, PricedTerm, priced_flops, priced_parameters
from prune2deploy.budget.running import Running
from prune2deploy.budget.surface import Surface
from prune2deploy.budget.target import Budget, Limit
from prune2deploy.errors import TargetError
from prune2deploy.graph.trace import trace

GRANULE = 16


def scores_of(graph, seed=0):
    return np.random.default_rng(seed).lognormal(sigma=0.7, size=graph.channel_count)


def every_plan(ladder):
    """All counts that a plan can have: branches leave whole."""
    held = [group for branch in ladder.graph.branches for group in branch.groups]
    assert all(len(branch.groups) == 1 for branch in ladder.graph.branches)
    choices = [(0, *allowed) if group in held else allowed for group, allowed in enumerate(ladder.allowed)]
    return [np.array(counts) for counts in itertools.product(*choices)]


def stepped(graph, granule=24):
    """A latency that goes up in steps of a width that is not that of the plans, and has a fixed part."""
    sizes = tuple(range(1, 257))
    steps = np.ceil(np.array(sizes) / granule)
    surface = Surface(axes=(sizes, sizes), values=np.outer(steps, steps))
    terms = [
        PricedTerm(name=term.layer, widths=term.widths, price=surface.at, branches=term.branches)
        for term in graph.cost.flop_terms
        if len(term.widths) == 2
    ]
    return Priced(
        name="latency",
        unit="ns",
        channel_count=graph.channel_count,
        widths=graph.cost.widths,
        terms=tuple(terms),
        fixed=5.0,
        branches=graph.cost.branches,
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "fractions", [{"flops": 0.5}, {"flops": 0.2}, {"parameters": 0.4}, {"flops": 0.5, "parameters": 0.35}]
)
def test_no_plan_within_the_limits_is_worth_more(graph, seed, fractions):
    ladder = Ladder.of(graph, scores_of(graph, seed), GRANULE)
    limits = tuple(Budget(**fractions).limits(graph.cost).values())
    solution = best_within(ladder, limits)
    assert all(limit.total(ladder.mask(solution.counts)) <= limit.most for limit in limits)
    best = max(
        ladder.worth_of(counts)
        for counts in every_plan(ladder)
        if all(limit.total(ladder.mask(counts)) <= limit.most for limit in limits)
    )
    assert solution.status == "optimal"
    assert ladder.worth_of(solution.counts) >= best - 0.003


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_steps_of_a_latency_are_seen(graph, share):
    ladder = Ladder.of(graph, scores_of(graph), GRANULE)
    price = stepped(graph)
    limit = Limit(prices=(price,), most=share * price.dense)
    solution = best_within(ladder, (limit,))
    best = max(
        ladder.worth_of(counts) for counts in every_plan(ladder) if limit.total(ladder.mask(counts)) <= limit.most
    )
    assert limit.total(ladder.mask(solution.counts)) <= limit.most
    assert ladder.worth_of(solution.counts) >= best - 0.003


def test_the_dearest_of_several_prices_counts(graph):
    ladder = Ladder.of(graph, scores_of(graph), GRANULE)
    prices = (priced_flops(graph.cost), priced_parameters(graph.cost).corrected(offset=0.0, scale=50.0))
    limit = Limit(prices=prices, most=0.6 * max(price.dense for price in prices))
    kept = ladder.mask(best_within(ladder, (limit,)).counts)
    assert limit.total(kept) == max(price.total(kept) for price in prices)
    assert 0.9 * limit.most <= limit.total(kept) <= limit.most


def test_without_time_the_plan_is_greedy_and_keeps_to_the_limits(graph):
    ladder = Ladder.of(graph, scores_of(graph), GRANULE)
    limits = tuple(Budget(flops=0.4, parameters=0.5).limits(graph.cost).values())
    greedy, solved = best_within(ladder, limits, greedily=True), best_within(ladder, limits)
    assert (greedy.status, greedy.gap) == (GREEDY, None)
    assert all(limit.total(ladder.mask(greedy.counts)) <= limit.most for limit in limits)
    assert ladder.worth_of(greedy.counts) <= ladder.worth_of(solved.counts) + 1e-12
    assert ladder.worth_of(greedy.counts) >= ladder.worth_of(solved.counts) - 0.1


def test_a_plan_that_the_solver_has_no_time_to_better_has_the_gap_of_fractional_choices(graph, monkeypatch):
    ladder = Ladder.of(graph, scores_of(graph), GRANULE)
    limits = tuple(Budget(flops=0.4, parameters=0.5).limits(graph.cost).values())
    best = ladder.worth_of(best_within(ladder, limits).counts)
    monkeypatch.setattr("prune2deploy.budget.optimal.most_worth", lambda *_, **__: None)
    solution = best_within(ladder, limits)
    assert solution.status == GREEDY
    assert solution.gap is not None
    assert ladder.worth_of(solution.counts) + np.log1p(solution.gap) >= best - 1e-6, "the bound holds for the best plan"


def test_branches_leave_whole_where_no_width_is_narrow_enough(graph):
    smallest = Ladder.of(graph, scores_of(graph), GRANULE).smallest()
    fraction = 0.6 * graph.cost.flops(smallest) / graph.cost.dense_flops
    with pytest.raises(TargetError):
        allocate(graph, scores_of(graph), Budget(flops=fraction), granule=GRANULE)
    allocation = allocate(graph, scores_of(graph), Budget(flops=fraction), granule=GRANULE, ranking="optimal")
    assert graph.removed_branches(allocation.kept)
    assert allocation.flops_fraction <= fraction
    assert allocation.solution is not None


def test_what_nothing_reaches_is_refused(graph):
    with pytest.raises(TargetError, match="no plan reaches"):
        allocate(graph, scores_of(graph), Budget(flops=0.0001), granule=GRANULE, ranking="optimal")


class Concatenated(nn.Module):
    """Each layer reads all before it, as DenseNet's do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3, padding=1)
        self.layers = nn.ModuleList(nn.Conv2d(64 * (depth + 1), 64, 3, padding=1) for depth in range(3))
        self.head = nn.Linear(256, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = [self.stem(x).relu()]
        for layer in self.layers:
            made.append(layer(torch.cat(made, 1)).relu())
        return self.head(torch.cat(made, 1).mean((2, 3)))


def test_widths_that_several_groups_make_are_within_the_limits_and_nearly_best():
    torch.manual_seed(0)
    graph = trace(Concatenated(), torch.randn(1, 3, 8, 8)).graph
    ladder = Ladder.of(graph, scores_of(graph), GRANULE)
    (limit,) = Budget(flops=0.4).limits(graph.cost).values()
    solution = best_within(ladder, (limit,))
    best = max(
        ladder.worth_of(counts) for counts in every_plan(ladder) if limit.total(ladder.mask(counts)) <= limit.most
    )
    assert limit.total(ladder.mask(solution.counts)) <= limit.most
    assert ladder.worth_of(solution.counts) >= best - 0.005


def test_the_cheapest_plan_of_a_worth_is_found(graph):
    ladder = Ladder.of(graph, scores_of(graph), GRANULE)
    near = np.array([48, 48, 96, 64])
    least = ladder.worth_of(near)
    kept = cheapest_worth(ladder, priced_flops(graph.cost), near, at_least=least)
    counts = np.array([int(kept[group.channels].sum()) for group in graph.groups])
    cheapest = min(
        graph.cost.flops(ladder.mask(counts)) for counts in every_plan(ladder) if ladder.worth_of(counts) >= least
    )
    assert ladder.worth_of(counts) >= least - 1e-6
    assert graph.cost.flops(kept) <= 1.01 * cheapest


def test_running_totals_are_those_of_the_masks(graph):
    ladder = Ladder.of(graph, scores_of(graph), GRANULE)
    prices = (priced_flops(graph.cost), stepped(graph))
    running = Running(graph, prices, ladder.dense())
    generator = np.random.default_rng(0)
    plans = every_plan(ladder)
    for number in generator.integers(0, len(plans), 50):
        move = dict(enumerate(plans[number].tolist()))
        expected = [price.total(ladder.mask(plans[number])) for price in prices]
        assert running.totals + running.change(move) == pytest.approx(expected)
        running.take(move)
        assert running.totals == pytest.approx(expected)
