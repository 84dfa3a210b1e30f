"""Predict, measure, correct: against an engine whose whole networks take what a formula says."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from prune2deploy.budget.priced import priced_flops
from prune2deploy.budget.target import Budget
from prune2deploy.errors import TargetError
from prune2deploy.graph.trace import trace
from prune2deploy.graph.unit import UnitModel
from prune2deploy.latency.setting import Setting
from prune2deploy.latency.table import MeasuredTable
from prune2deploy.pipeline.backends import Channels
from prune2deploy.pipeline.cutting import CutChoices
from prune2deploy.pipeline.latency.cut import notes_on
from prune2deploy.pipeline.latency.record import latency_record
from prune2deploy.pipeline.latency.search import TOLERANCE, LatencyOfEngine, Round
from prune2deploy.pipeline.latency.whole_models import WholeTiming
from prune2deploy.pipeline.requests import LatencyTarget

DENSE_NS = 2e6
CHOICES = CutChoices(budget=None, method="l2", ranking="optimal", default_granule=4, solver_seconds=5)


class Formula:
    """A network takes ``fixed`` of the dense latency, and the rest by a power of its FLOPs."""

    def __init__(self, graph, *, fixed: float = 0.2, power: float = 0.8) -> None:
        self.graph, self.fixed, self.power = graph, fixed, power
        self.timed = 0

    def ratio(self, kept: np.ndarray) -> float:
        return self.fixed + (1 - self.fixed) * (self.graph.cost.flops(kept) / self.graph.cost.dense_flops) ** self.power


class Engine(LatencyOfEngine):
    """Measures by the formula instead of building."""

    def measure(self, kept):
        self.whole.timed += 1
        ratio = self.whole.ratio(kept)
        return WholeTiming(
            dense_ns=DENSE_NS, latency_ns=ratio * DENSE_NS, ratio=ratio, low=0.99 * ratio, high=1.01 * ratio
        )


@pytest.fixture(scope="module")
def channels():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 96, 3, padding=1), nn.ReLU(),
        nn.Conv2d(96, 128, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip
    return Channels(traced=trace(model, torch.randn(1, 3, 16, 16)))


def engine_of(channels, **formula):
    """An engine whose table says that time is FLOPs, off by half; what the formula says is the truth."""
    graph = channels.graph
    price = priced_flops(graph.cost)
    return Engine(
        model=nn.Identity(),
        channels=channels,
        setting=Setting(engine="ort-cpu"),
        units=UnitModel(channel_count=graph.channel_count, widths=(), terms=(), moments=(), unpriced=Counter(roll=2)),
        table=MeasuredTable(surfaces={}, timings={}, measured=0, reused=0, seconds=0.0, spread=0.0),
        price=price.corrected(offset=0.0, scale=1.5 * DENSE_NS / price.dense),
        whole=Formula(graph, **formula),
    )


def scores_of(channels):
    return np.random.default_rng(0).random(channels.graph.channel_count)


@pytest.mark.parametrize("fraction", [0.8, 0.5, 0.35])
@pytest.mark.parametrize("formula", [{}, {"fixed": 0.05, "power": 1.3}, {"fixed": 0.3, "power": 1.0}])
def test_the_measured_latency_meets_the_target(channels, fraction, formula):
    engine = engine_of(channels, **formula)
    fitted = engine.fit(LatencyTarget(fraction=fraction), CHOICES, scores_of(channels))
    assert fitted.met
    assert (1 - TOLERANCE) * fraction <= engine.whole.ratio(fitted.best.allocation.kept) <= fraction
    assert len(fitted.rounds) <= 5
    assert notes_on(fitted) == ()


def test_a_target_in_time_is_one_of_the_measured_dense_latency(channels):
    fitted = engine_of(channels).fit(LatencyTarget(nanoseconds=1.2e6), CHOICES, scores_of(channels))
    assert 0.97 * 1.2e6 <= fitted.best.timing.latency_ns <= 1.2e6
    assert fitted.target_ns == 1.2e6


def test_what_one_target_measured_serves_the_next(channels):
    engine = engine_of(channels)
    engine.fit(LatencyTarget(fraction=0.6), CHOICES, scores_of(channels))
    before = engine.whole.timed
    engine.fit(LatencyTarget(fraction=0.57), CHOICES, scores_of(channels))
    assert engine.whole.timed - before <= 2
    again = engine.whole.timed
    engine.fit(LatencyTarget(fraction=0.57), CHOICES, scores_of(channels))
    assert engine.whole.timed == again, "the same network is not built twice"


def test_other_targets_hold_too(channels):
    graph = channels.graph
    choices = CutChoices(
        budget=Budget(parameters=0.3), method="l2", ranking="optimal", default_granule=4, solver_seconds=5
    )
    fitted = engine_of(channels).fit(LatencyTarget(fraction=0.9), choices, scores_of(channels))
    kept = fitted.best.allocation.kept
    assert graph.cost.parameters(kept) <= 0.3 * graph.cost.dense_parameters
    assert fitted.met
    assert any("of the latency that is allowed" in note for note in notes_on(fitted))


def test_a_latency_below_all_that_is_fixed_is_refused_with_what_was_reached(channels):
    with pytest.raises(TargetError, match="latency"):
        engine_of(channels, fixed=0.6).fit(LatencyTarget(fraction=0.5), CHOICES, scores_of(channels))


def test_a_global_ranking_keeps_to_a_latency_as_well(channels):
    choices = CutChoices(budget=None, method="l2", ranking="global", default_granule=4)
    engine = engine_of(channels)
    fitted = engine.fit(LatencyTarget(fraction=0.5), choices, scores_of(channels))
    assert 0.47 <= engine.whole.ratio(fitted.best.allocation.kept) <= 0.5
    assert fitted.best.allocation.solution is None


def test_the_record_tells_what_each_cut_lost_and_gained(channels):
    engine = engine_of(channels)
    scores = scores_of(channels)
    fitted = engine.fit(LatencyTarget(fraction=0.5), CHOICES, scores)
    record = latency_record(engine, fitted, CHOICES, scores)
    assert record["met"] is True
    assert record["target"] == {"fraction": 0.5, "ns": 0.5 * DENSE_NS}
    assert record["unpriced"] == {"roll": 2}
    assert [row["dense"] for row in record["groups"]] == [64, 96, 128]
    lost = np.prod([1 - row["importance_lost"] for row in record["groups"]])
    assert lost == pytest.approx(record["importance_kept"])
    assert all(row["saved_ns"] > 0 for row in record["groups"] if row["kept"] < row["dense"])
    # The table says that time is FLOPs, so the plan of fewest FLOPs is no slower by it.
    assert record["flop_optimal"]["predicted_ns"] <= 1.01 * fitted.limit.total(fitted.best.allocation.kept)
    assert record["flop_optimal"]["importance_kept"] >= record["importance_kept"] - 1e-6


def test_no_correction_calls_the_dense_network_fast_enough(channels):
    engine = engine_of(channels)
    fast = WholeTiming(dense_ns=DENSE_NS, latency_ns=0.3 * DENSE_NS, ratio=0.3, low=None, high=None)
    engine.measured = [Round(predicted_ns=0.9 * engine.price.dense, timing=fast, allocation=None)]
    correction = engine._correction(LatencyTarget(fraction=0.6))
    assert correction.offset_ns + correction.scale * engine.price.dense > 0.6 * DENSE_NS
