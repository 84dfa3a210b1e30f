"""A family of latencies in one run: what the manifest keeps of it, and the chain from there."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import prune2deploy as p2d
from prune2deploy.errors import InputError, TargetError
from prune2deploy.pipeline import making
from prune2deploy.pipeline.export import run_export
from prune2deploy.pipeline.family import run_family
from prune2deploy.pipeline.inspect import run_inspect
from prune2deploy.pipeline.latency.pareto import family_record, member_name
from prune2deploy.pipeline.prune import run_prune
from prune2deploy.pipeline.report import run_report
from prune2deploy.pipeline.requests import (
    ExportRequest,
    FamilyRequest,
    InspectRequest,
    PruneRequest,
    ReportRequest,
    Targets,
    TrainingChoices,
)

RUN = Path("run")
MEMBERS = ["pruned-0.8", "pruned-0.5"]


def request_for(checkpoint: Path, **changes: Any) -> PruneRequest:
    fields: dict[str, Any] = {
        "targets": Targets(),
        "pareto": (0.8, 0.5),
        "variants": ("dense", "pruned"),
        "engine": "ort-cpu",
        "threads": 1,
        "training": TrainingChoices(epochs=1, batch_size=20, learning_rate=0.001),
        "alignment": 1,
        "solver_seconds": 5.0,
        "seed": 4,
        "out": RUN,
    }
    return PruneRequest(checkpoint=checkpoint, **(fields | changes))


def manifest() -> dict[str, Any]:
    return json.loads((RUN / "run.json").read_text())


def test_every_member_meets_its_latency_and_is_fine_tuned(
    small_model: Callable[..., Path], engine_by_formula: Callable[[], int]
) -> None:
    outcome = run_prune(request_for(small_model()))
    held = manifest()
    assert held["finished"]
    assert list(held["variants"]) == ["dense", *MEMBERS]
    assert list(outcome.family) == MEMBERS
    assert outcome.latency is None
    for name, target in zip(MEMBERS, (0.8, 0.5), strict=True):
        member, record = held["pruning"]["family"][name], held["variants"][name]
        assert member["latency"]["met"]
        assert 0.9 * target < member["achieved"]["latency"] == member["latency"]["ratio"] <= target
        assert member["targets"] == {"latency": target}
        assert list(record["accuracies"]) == ["before_pruning", "after_pruning", "after_recalibration", "final"]
        assert len(record["training"]["history"]) == 1
        weights = p2d.load(RUN / name).state_dict()
        (stem,) = (layer for layer in held["pruning"]["layers"] if layer["name"] == "stem")
        assert weights["stem.weight"].shape[0] == stem[name] <= stem["dense"] == 16
    assert held["variants"]["pruned-0.5"]["flops"] < held["variants"]["pruned-0.8"]["flops"]


def test_other_targets_hold_for_every_member(
    small_model: Callable[..., Path], engine_by_formula: Callable[[], int]
) -> None:
    run_prune(request_for(small_model(), targets=Targets(parameters=0.4)))
    for member in manifest()["pruning"]["family"].values():
        assert member["achieved"]["parameters"] <= 0.4 == member["targets"]["parameters"]


def test_a_family_is_exported_and_reported_like_any_run(
    small_model: Callable[..., Path], engine_by_formula: Callable[[], int]
) -> None:
    run_prune(request_for(small_model()))
    exported = run_export(ExportRequest(run=RUN))
    assert [file.variant for file in exported.files] == ["dense", *MEMBERS]
    run_report(ReportRequest(run=RUN))
    page = (RUN / "report" / "report.md").read_text()
    assert "Of 2 latency targets" in page
    assert "| layer | dense | pruned-0.8 | pruned-0.5 |" in page
    assert run_inspect(InspectRequest(subject=str(RUN))).groups[0].pruned_width is None
    with pytest.raises(InputError, match=r"holds several pruned models \(dense, pruned-0.8, pruned-0.5\)"):
        run_family(FamilyRequest(run=RUN))


def test_an_interrupted_family_goes_on_with_the_member_that_is_missing(
    small_model: Callable[..., Path], engine_by_formula: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    train, trained = making.train, []

    def interrupted(*arguments: Any, **options: Any) -> Any:
        trained.append(options["description"])
        if len(trained) == 2:
            raise KeyboardInterrupt
        return train(*arguments, **options)

    monkeypatch.setattr(making, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_prune(request_for(small_model()))
    before, timed = manifest(), engine_by_formula()
    assert list(before["variants"]) == ["dense", "pruned-0.8"]
    assert not before["finished"]
    run_prune(request_for(Path("given"), resume=True))
    after = manifest()
    assert list(after["variants"]) == ["dense", *MEMBERS]
    assert trained == [f"fine-tuning {name}" for name in (*MEMBERS, "pruned-0.5")]
    assert after["pruning"] == before["pruning"]
    assert after["variants"]["pruned-0.8"] == before["variants"]["pruned-0.8"]
    assert engine_by_formula() == timed
    with pytest.raises(InputError, match=r"other options .*pareto"):
        run_prune(request_for(Path("given"), resume=True, pareto=(0.8, 0.6)))


def test_a_share_that_cannot_be_reached_is_named_and_nothing_is_written(
    small_model: Callable[..., Path], engine_by_formula: Callable[[], int]
) -> None:
    with pytest.raises(TargetError, match=r"pruned-0.05: "):
        run_prune(request_for(small_model(), pareto=(0.8, 0.05)))
    assert not RUN.exists()


def record(widths: tuple[int, int], **own: Any) -> dict[str, Any]:
    layers = [
        {"name": name, "exact": True, "dense": 64, "flops_dense": 10, "pruned": width, "flops_pruned": width}
        for name, width in zip(("a", "b"), widths, strict=True)
    ]
    shared = {"method": "l2", "backend": "module", "attention": "heads", "ranking": "optimal", "frozen": []}
    return {**shared, "layers": layers, "plan": {"of": widths}, "targets": {"latency": 0.5}, **own}


@pytest.mark.parametrize(("fraction", "name"), [(0.8, "pruned-0.8"), (0.65, "pruned-0.65"), (0.5, "pruned-0.5")])
def test_a_member_is_named_by_its_share_of_the_latency(fraction: float, name: str) -> None:
    assert member_name(fraction) == name


def test_a_family_keeps_what_is_shared_once_and_the_rest_by_member() -> None:
    members = {
        "pruned-0.8": record((48, 64), alignment=16, latency={"met": True}),
        "pruned-0.5": record((32, 16), alignment=8, latency={"met": False}),
    }
    kept = family_record(members)
    assert {name: kept[name] for name in ("method", "ranking", "alignment")} == {
        "method": "l2",
        "ranking": "optimal",
        "alignment": 8,
    }
    assert "plan" not in kept
    assert "latency" not in kept
    assert kept["family"]["pruned-0.8"] == {
        "targets": {"latency": 0.5},
        "alignment": 16,
        "plan": {"of": (48, 64)},
        "latency": {"met": True},
    }
    assert kept["layers"][1] == {
        "name": "b",
        "exact": True,
        "dense": 64,
        "flops_dense": 10,
        "pruned-0.8": 64,
        "flops_pruned-0.8": 64,
        "pruned-0.5": 16,
        "flops_pruned-0.5": 16,
    }
