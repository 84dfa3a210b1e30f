"""A latency as the target of a method that prunes while it trains."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prune2deploy.errors import TargetError
from prune2deploy.pipeline.latency.search import TOLERANCE
from prune2deploy.pipeline.method_training import run_method
from prune2deploy.pipeline.requests import LatencyTarget, MethodChoices, Targets, TrainingChoices, TrainRequest
from prune2deploy.progress import SILENT

RUN = Path("run")


def request_for(method: str, targets: Targets, *, epochs: int = 2, **options: Any) -> TrainRequest:
    return TrainRequest(
        model="small_blocks:Blocks",
        data="small_blocks:data",
        method=method,
        pruning=MethodChoices(options=options, targets=targets, engine="ort-cpu", threads=1, alignment=1),
        training=TrainingChoices(epochs=epochs, batch_size=20),
        seed=4,
        out=RUN,
    )


def manifest() -> dict[str, Any]:
    return json.loads((RUN / "run.json").read_text())


@pytest.mark.parametrize("method", ["3sp", "epi"])
@pytest.mark.parametrize("target", [LatencyTarget(fraction=0.6), LatencyTarget(nanoseconds=600_000)])
def test_a_method_comes_down_to_a_latency_that_is_measured(
    method: str,
    target: LatencyTarget,
    small_model: Callable[..., Path],
    engine_by_formula: Callable[[], int],
) -> None:
    small_model()
    outcome = run_method(request_for(method, Targets(latency=target)), SILENT)
    pruning = manifest()["pruning"]
    measured = pruning["latency"]
    assert outcome.shortfall is None
    assert outcome.targets == {"latency": pytest.approx(0.6)}
    assert pruning["achieved"]["latency"] == measured["ratio"] <= 0.6
    assert measured["ratio"] > 0.5
    assert any(one["measured_ns"] == pytest.approx(1e6 * measured["ratio"]) for one in measured["rounds"])
    assert measured["met"]
    assert measured["target"]["ns"] == pytest.approx(600_000)
    assert not any("the share of channels" in note for note in outcome.notes)


def test_a_latency_that_a_method_never_came_down_to_is_its_shortfall(
    small_model: Callable[..., Path], engine_by_formula: Callable[[], int]
) -> None:
    small_model()
    targets = Targets(latency=LatencyTarget(fraction=0.15))
    outcome = run_method(request_for("prunetrain", targets, epochs=3, interval=2, ratio=0.9, dead_below=0.055), SILENT)
    pruning = manifest()["pruning"]
    left = pruning["achieved"]["latency"]
    assert 0.15 * (1 + TOLERANCE) < left < 1
    assert f"{left:.3f} of the latency (target 0.15)" in str(outcome.shortfall)
    assert pruning["latency"]["met"] is False
    assert any("the share of channels" in note for note in outcome.notes)


def test_a_time_that_the_dense_model_keeps_already_is_refused_before_anything_is_written(
    small_model: Callable[..., Path], engine_by_formula: Callable[[], int]
) -> None:
    small_model()
    with pytest.raises(TargetError, match=r"the dense model takes 1.000 ms; ask for less"):
        run_method(request_for("3sp", Targets(latency=LatencyTarget(nanoseconds=1.2e6))), SILENT)
    assert not RUN.exists()


def test_memory_and_latency_hold_together(
    small_model: Callable[..., Path], engine_by_formula: Callable[[], int]
) -> None:
    small_model()
    run_method(request_for("3sp", Targets(memory=0.6, latency=LatencyTarget(fraction=0.9))), SILENT)
    pruning = manifest()["pruning"]
    assert pruning["targets"] == {"memory": 0.6, "latency": 0.9}
    assert pruning["achieved"]["memory"] <= 0.6
    assert pruning["achieved"]["latency"] <= 0.9


def test_a_finished_run_is_not_measured_again(
    small_model: Callable[..., Path], engine_by_formula: Callable[[], int]
) -> None:
    small_model()
    request = request_for("3sp", Targets(latency=LatencyTarget(fraction=0.6)))
    first = run_method(request, SILENT)
    timed = engine_by_formula()
    again = run_method(replace(request, resume=True), SILENT)
    assert again == first
    assert engine_by_formula() == timed
