"""Prune once, get a family: widths times factors, as further variants of the run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import prune2deploy as p2d
from prune2deploy.errors import InputError
from prune2deploy.graph.trace import trace
from prune2deploy.pipeline.export import run_export
from prune2deploy.pipeline.family import member_of, run_family
from prune2deploy.pipeline.prune import run_prune
from prune2deploy.pipeline.report import run_report
from prune2deploy.pipeline.requests import (
    ExportRequest,
    FamilyRequest,
    PruneRequest,
    ReportRequest,
    Targets,
    TrainingChoices,
)
from prune2deploy.training import loop

RUN = Path("run")


@pytest.fixture
def pruned(small_model: Callable[..., Path]) -> None:
    """A run with dense and pruned, at 0.6 of the FLOPs."""
    run_prune(
        PruneRequest(
            checkpoint=small_model(),
            targets=Targets(flops=0.6),
            variants=("dense", "pruned"),
            training=TrainingChoices(epochs=1, batch_size=20, learning_rate=0.001),
            alignment=1,
            seed=4,
            out=RUN,
        )
    )


def manifest() -> dict[str, Any]:
    return json.loads((RUN / "run.json").read_text())


def digest(name: str) -> dict[str, torch.Tensor]:
    return dict(p2d.load(RUN / name).state_dict())


def test_members_join_the_run_and_are_trained_as_its_variants_from_scratch_would_be(pruned: None) -> None:
    outcome = run_family(FamilyRequest(run=RUN, factors=(0.5, 1.5)))
    assert [row.name for row in outcome.variants] == ["dense", "pruned", "family-0.5", "family-1.5"]
    held = manifest()
    assert held["finished"]
    for layer in held["pruning"]["layers"]:
        assert layer["family-0.5"] == pytest.approx(0.5 * layer["pruned"], abs=0.5)
        assert layer["family-1.5"] == pytest.approx(min(layer["dense"], 1.5 * layer["pruned"]), abs=0.5)
    small, record = digest("family-0.5"), held["variants"]["family-0.5"]
    assert (
        sum(tensor.numel() for name, tensor in small.items() if "running" not in name and "num_" not in name)
        == (record["parameters"])
    )
    assert len(record["training"]["history"]) == 3  # two epochs of dense, one of fine-tuning
    assert record["training"]["recipe"]["learning_rate"] == 0.1  # not that of the fine-tuning
    assert record["training"]["recipe"]["seed"] == 4
    capped = [layer for layer in held["pruning"]["layers"] if 1.5 * layer["pruned"] > layer["dense"]]
    share = len(capped) / len(held["pruning"]["layers"])
    assert any(f"in {share:.0%} of the groups" in note for note in outcome.notes) == bool(capped)
    exported = run_export(ExportRequest(run=RUN))
    assert {file.variant for file in exported.files} == {"dense", "pruned", "family-0.5", "family-1.5"}
    assert "family-0.5" in run_report(ReportRequest(run=RUN)).files[0].read_text()


def test_a_factor_that_gives_the_widths_of_another_variant_says_so(pruned: None) -> None:
    outcome = run_family(FamilyRequest(run=RUN, factors=(1.0, 50.0)))
    assert "family-1 has the widths of pruned" in outcome.notes
    assert "family-50 has the widths of dense" in outcome.notes
    assert "family-50 cannot get wider than dense in 100% of the groups, so these stay as wide" in outcome.notes
    assert outcome.variants[-1].flops == outcome.variants[0].flops


def test_what_the_run_holds_is_not_made_again_and_what_was_interrupted_goes_on(
    pruned: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_family(FamilyRequest(run=RUN, factors=(0.75,)))
    whole = digest("family-0.75")
    document = manifest()
    del document["variants"]["family-0.75"]  # as if it had never been
    (RUN / "training/family-0.75.pt").unlink()
    (RUN / "run.json").write_text(json.dumps(document))

    save, saved = loop.TrainingState.save, []

    def save_and_stop(self: Any, path: Path) -> None:
        save(self, path)
        saved.append(path.name)
        if len(saved) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop.TrainingState, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            run_family(FamilyRequest(run=RUN, factors=(0.75,)))
    assert "family-0.75" not in manifest()["variants"]
    outcome = run_family(FamilyRequest(run=RUN, factors=(0.75,), resume=True))
    assert manifest()["variants"]["family-0.75"]["training"]["resumed_at"] == 2
    assert all(torch.equal(tensor, digest("family-0.75")[name]) for name, tensor in whole.items())

    before = (RUN / "run.json").read_bytes()
    monkeypatch.setattr("prune2deploy.pipeline.family.open_subject", None)
    again = run_family(FamilyRequest(run=RUN, factors=(0.75,)))
    assert again == outcome
    assert (RUN / "run.json").read_bytes() == before


def test_a_run_without_a_pruned_model_is_refused(small_model: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match="not a run folder"):
        run_family(FamilyRequest(run=small_model()))
    run_prune(
        PruneRequest(
            checkpoint=Path("given"), targets=Targets(flops=0.6), data=None, training=TrainingChoices(epochs=1), out=RUN
        )
    )
    document = manifest()
    del document["variants"]["pruned"]
    (RUN / "run.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"holds no pruned model \(dense, reduced\)"):
        run_family(FamilyRequest(run=RUN))


def test_the_command_prints_the_family_and_where_it_lies(pruned: None, run_p2d: Callable[..., Any]) -> None:
    result = run_p2d("family", "run", "--factors", "0.5")
    assert result.exit_code == 0, result.stderr
    assert "family-0.5" in result.stdout
    assert "run: run" in result.stdout
    assert run_p2d("family", "nowhere").exit_code == 2


class Wide(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Conv2d(3, 64, 3), torch.nn.Conv2d(64, 128, 3)
        self.third, self.head = torch.nn.Conv2d(128, 12, 3), torch.nn.Linear(12, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.third(self.second(self.first(image))).mean((2, 3)))


@pytest.mark.parametrize(
    ("factor", "expected", "capped"),
    [
        (0.5, [16, 48, 4], ()),  # 24 lies between 16 and 32, 4.5 between 4 and 5: the smaller
        (0.01, [16, 16, 1], ()),
        (1.0, [48, 96, 9], ()),
        (1.5, [64, 128, 12], ("first", "second", "third")),
        (1.3, [64, 128, 12], ()),
    ],
)
def test_widths_are_the_nearest_aligned_ones_between_one_granule_and_dense(
    factor: float, expected: list[int], capped: tuple[str, ...]
) -> None:
    graph = trace(Wide(), torch.zeros(1, 3, 8, 8)).graph
    kept = graph.everything()
    for group, width in zip(graph.groups, (48, 96, 9), strict=True):
        kept[np.random.default_rng(0).permutation(group.channels)[width:]] = False
    member = member_of(graph, kept, factor, granule=16)
    assert list(graph.kept_widths(member.kept)) == expected
    assert member.capped == capped
    assert member.name == f"family-{factor:g}"
