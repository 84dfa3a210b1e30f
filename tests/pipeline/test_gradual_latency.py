"""A latency as the target of a fine-tuning that cuts a little at a time."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prune2deploy.budget.plan import PrunePlan
from prune2deploy.pipeline.latency.methods import MethodLatency
from prune2deploy.pipeline.prune import run_prune
from prune2deploy.pipeline.requests import LatencyTarget, PruneRequest, Targets, TrainingChoices

RUN = Path("run")


def request_for(checkpoint: Path, **changes: Any) -> PruneRequest:
    fields: dict[str, Any] = {
        "targets": Targets(latency=LatencyTarget(fraction=0.5)),
        "variants": ("dense", "pruned"),
        "engine": "ort-cpu",
        "threads": 1,
        "training": TrainingChoices(epochs=4, batch_size=20, learning_rate=0.001),
        "cuts": 2,
        "alignment": 1,
        "solver_seconds": 5.0,
        "seed": 4,
        "out": RUN,
    }
    return PruneRequest(checkpoint=checkpoint, **(fields | changes))


def manifest() -> dict[str, Any]:
    return json.loads((RUN / "run.json").read_text())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ranking": "global", "method": "l2"},
        {"method": "taylor", "targets": Targets(flops=0.9, latency=LatencyTarget(nanoseconds=500_000))},
    ],
)
def test_cuts_during_fine_tuning_come_down_to_the_measured_latency(
    changes: dict[str, Any], small_model: Callable[..., Path], engine_by_formula: Callable[[], int]
) -> None:
    outcome = run_prune(request_for(small_model(), **changes))
    pruning = manifest()["pruning"]
    shares = [cut["latency"] for cut in pruning["findings"]["cuts"]]
    assert len(shares) == 2
    assert shares[0] > shares[1]
    assert outcome.latency == pruning["latency"]
    measured = pruning["latency"]["ratio"]
    assert 0.4 < measured <= 0.5
    assert outcome.achieved["latency"] == measured == pruning["latency"]["rounds"][-1]["ratio"]
    assert outcome.targets["latency"] == pytest.approx(0.5)


def test_cuts_that_miss_the_latency_by_more_than_the_tolerance_are_told(
    small_model: Callable[..., Path], engine_by_formula: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    enter = MethodLatency.enter

    def slower(self: MethodLatency, record: dict[str, Any], plan: PrunePlan) -> tuple[str, ...]:
        measure = self.engine.measure
        monkeypatch.setattr(
            self.engine, "measure", lambda kept: replace(measure(kept), ratio=0.55, low=0.54, high=0.56), raising=True
        )
        return enter(self, record, plan)

    monkeypatch.setattr(MethodLatency, "settle", lambda self, *arguments, **options: None)
    monkeypatch.setattr(MethodLatency, "enter", slower)
    outcome = run_prune(request_for(small_model()))
    assert outcome.shortfall == "the cuts came down to 0.550 of the latency only (target 0.5); the run is kept"
    assert "the measured latency of pruned is 10.0% above the target" in outcome.notes
    assert manifest()["finished"]


def test_a_finished_run_of_cuts_is_not_measured_again(
    small_model: Callable[..., Path], engine_by_formula: Callable[[], int]
) -> None:
    first = request_for(small_model())
    outcome = run_prune(first)
    timed = engine_by_formula()
    assert run_prune(replace(first, resume=True)) == outcome
    assert engine_by_formula() == timed
