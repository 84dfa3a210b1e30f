"""``p2d prune`` where the fine-tuning itself cuts, with a teacher, with moving averages."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import prune2deploy as p2d
from prune2deploy.budget.plan import PrunePlan
from prune2deploy.errors import InputError, TargetError
from prune2deploy.pipeline import comparisons, making
from prune2deploy.pipeline.export import run_export
from prune2deploy.pipeline.prune import run_prune
from prune2deploy.pipeline.requests import ExportRequest, PruneRequest, Targets, TrainingChoices
from prune2deploy.surgery.apply import pruned_copy
from prune2deploy.training import loop

TRAINING = TrainingChoices(epochs=3, batch_size=10)


def request_for(checkpoint: Path, **changes: Any) -> PruneRequest:
    asked: dict[str, Any] = {
        "checkpoint": checkpoint,
        "targets": Targets(flops=0.6),
        "variants": ("dense", "pruned"),
        "training": TRAINING,
        "alignment": 1,
        "cuts": 3,
        "out": Path("run"),
    }
    return PruneRequest(**{**asked, **changes})


def manifest_of(run: str = "run") -> dict[str, Any]:
    return json.loads(Path(run, "run.json").read_text())


def weights_of(run: str, variant: str = "pruned") -> dict[str, torch.Tensor]:
    return p2d.load(Path(run) / variant).state_dict()


def test_the_fine_tuning_cuts_down_to_the_target_and_the_whole_plan_is_proven(
    small_model: Callable[..., Path],
) -> None:
    outcome = run_prune(request_for(small_model(), variants=("dense", "pruned", "scratch")))
    manifest = manifest_of()
    pruning, record = manifest["pruning"], manifest["variants"]["pruned"]
    assert manifest["finished"]
    assert outcome.method == "fisher"
    assert 0.97 * 0.6 <= outcome.achieved["flops"] <= 0.6
    cuts = pruning["findings"]["cuts"]
    assert [cut["step"] for cut in cuts] == [3, 6, 9]
    assert record["flops"] / manifest["variants"]["dense"]["flops"] == cuts[-1]["flops"] == outcome.achieved["flops"]
    assert pruning["proof_relative_error"] < 1e-4
    assert list(record["accuracies"]) == ["before_pruning", "after_last_cut", "final"]
    assert record["accuracies"]["after_last_cut"] == record["training"]["history"][cuts[-1]["epoch"] - 1]["accuracy"]
    assert record["accuracies"]["before_pruning"] == manifest["variants"]["dense"]["accuracies"]["final"]
    assert any("modules are sliced" in note for note in manifest["notes"])
    plan = PrunePlan.from_document(pruning["plan"])
    shapes = {name: tensor.shape for name, tensor in pruned_copy(p2d.load("run/dense"), plan).state_dict().items()}
    for variant in ("pruned", "scratch"):
        assert {name: tensor.shape for name, tensor in weights_of("run", variant).items()} == shapes
    exported = run_export(ExportRequest(run=Path("run")))
    assert {file.variant for file in exported.files} == {"dense", "pruned", "scratch"}


@pytest.mark.parametrize("criterion", ["l2", "taylor"])
def test_any_criterion_can_be_iterated(small_model: Callable[..., Path], criterion: str) -> None:
    outcome = run_prune(request_for(small_model(), method=criterion, cuts=None, every_steps=4))
    assert outcome.method == criterion
    assert [cut["step"] for cut in manifest_of()["pruning"]["findings"]["cuts"]] == [4, 8]
    assert outcome.achieved["flops"] <= 0.6


@pytest.mark.parametrize("moment", ["between cuts", "before the plan is kept"])
def test_a_killed_gradual_pruning_goes_on_to_the_same_plan_and_weights(
    small_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    checkpoint = small_model()
    run_prune(request_for(checkpoint, out=Path("whole")))

    with monkeypatch.context() as patch:
        if moment == "between cuts":
            save = loop.TrainingState.save

            def save_and_stop(self: Any, path: Path) -> None:
                save(self, path)
                if len(self.history) == 1:
                    raise KeyboardInterrupt

            patch.setattr(loop.TrainingState, "save", save_and_stop)
        else:
            patch.setattr("prune2deploy.pipeline.gradual.proven", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_prune(request_for(checkpoint))
    assert manifest_of()["pruning"] == {}
    run_prune(request_for(checkpoint, resume=True))
    whole, resumed = manifest_of("whole"), manifest_of()
    assert resumed["pruning"] == whole["pruning"]
    assert resumed["notes"] == whole["notes"]
    for name, tensor in weights_of("whole").items():
        assert torch.equal(tensor, weights_of("run")[name])


def _interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cuts": 10}, "--cuts 9 or less"),
        ({"cuts": None, "every_steps": 100}, "--every-steps 9 or less"),
        ({"backend": "graph"}, "only sliced modules"),
        ({"training": TrainingChoices(epochs=3, batch_size=10, compile="inductor")}, "cannot be heard"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    small_model: Callable[..., Path], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run_prune(request_for(small_model(), **changes))
    assert not Path("run").exists()


def test_cuts_and_teachers_need_data(small_model: Callable[..., Path]) -> None:
    checkpoint = small_model(data=None)
    with pytest.raises(InputError, match="there is no data"):
        run_prune(request_for(checkpoint))
    with pytest.raises(InputError, match="nothing to train on"):
        run_prune(request_for(checkpoint, cuts=None, distill=True))
    with pytest.raises(InputError, match="each say when to cut"):
        request_for(checkpoint, every_steps=3)


def test_an_unreachable_target_is_refused_before_anything_is_written(small_model: Callable[..., Path]) -> None:
    with pytest.raises(TargetError, match="no plan reaches the target"):
        run_prune(request_for(small_model(), targets=Targets(flops=0.0001)))
    assert not Path("run").exists()


def test_distilling_averaging_and_parts_of_batches_reach_every_variant_that_is_trained(
    small_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    teachers = []

    def watched(*arguments: Any, **options: Any) -> Any:
        teachers.append(options["teacher"])
        return loop.train(*arguments, **options)

    monkeypatch.setattr(making, "train", watched)
    monkeypatch.setattr(comparisons, "train", watched)
    training = TrainingChoices(epochs=1, batch_size=10, ema_decay=0.9, micro_batches=2)
    asked = request_for(
        small_model(), cuts=None, distill=True, training=training, variants=("dense", "pruned", "reduced", "scratch")
    )
    run_prune(asked)
    manifest = manifest_of()
    assert len(teachers) == 3
    dense = weights_of("run", "dense")
    for teacher in teachers:
        assert all(torch.equal(tensor, dense[name]) for name, tensor in teacher.state_dict().items())
    for name in ("pruned", "reduced", "scratch"):
        recipe = manifest["variants"][name]["training"]["recipe"]
        assert (recipe["ema_decay"], recipe["micro_batches"]) == (0.9, 2)
    assert manifest["options"]["distill"] is True


def test_a_flop_penalty_is_kept_with_the_plan_and_changes_it(small_model: Callable[..., Path]) -> None:
    checkpoint = small_model(data=None)
    run_prune(request_for(checkpoint, cuts=None, out=Path("plain")))
    run_prune(request_for(checkpoint, cuts=None, flop_penalty=100.0))
    plain, priced = (PrunePlan.from_document(manifest_of(run)["pruning"]["plan"]) for run in ("plain", "run"))
    assert plain.entries != priced.entries
    assert priced.provenance["flop_penalty"] == 100.0
    assert "flop_penalty" not in plain.provenance
