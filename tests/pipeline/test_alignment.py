"""The alignment report of ``p2d inspect``: of models, and of every variant of a run."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from prune2deploy.cli.tables import alignment_table, spell_alignment
from prune2deploy.graph.trace import trace
from prune2deploy.pipeline.alignment import alignment_report
from prune2deploy.pipeline.inspect import run_inspect
from prune2deploy.pipeline.outcomes import AlignmentReport
from prune2deploy.pipeline.prune import run_prune
from prune2deploy.pipeline.requests import InspectRequest, PruneRequest, Targets

IMAGES = torch.zeros(1, 3, 4, 4)
POSITIONS = 16


class Uneven(nn.Module):
    """A wide width off every granule, a narrow one, equal blocks, and a head of ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, 100, 1)
        self.narrow = nn.Conv2d(100, 20, 1)
        self.blocks = nn.Sequential(nn.Conv2d(20, 20, 1), nn.Conv2d(20, 20, 1))
        self.head = nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.narrow(self.wide(x))).mean((2, 3)))


def report_of(model: nn.Module, **setting: str | None) -> AlignmentReport:
    graph = trace(model, IMAGES).graph
    return alignment_report(iter([("uneven", model)]), (IMAGES,), graph, **setting)


def test_what_is_lost_is_told_by_layer_with_the_nearest_widths():
    report = report_of(Uneven(), engine="trt", precision="fp16")
    assert (report.engine, report.precision, report.granule) == ("trt", "fp16", 8)
    (variant,) = report.variants
    rows = {row.named: row for row in variant.rows}
    assert list(rows) == ["narrow", "2 layers: blocks.*", "wide", "head"]
    narrow = rows["narrow"]
    assert narrow.flops == 2 * POSITIONS * 100 * 20
    assert narrow.flops_lost == 2 * POSITIONS * (104 * 24 - 100 * 20)
    assert (narrow.input.width, narrow.input.below, narrow.input.above) == (100, 96, 104)
    assert (narrow.output.width, narrow.output.below, narrow.output.above) == (20, 16, 24)
    assert rows["2 layers: blocks.*"].flops_lost == 2 * 2 * POSITIONS * (24 * 24 - 20 * 20)
    assert rows["wide"].flops_lost == 2 * POSITIONS * 3 * 4
    assert rows["head"].flops_lost == 2 * (24 * 16 - 20 * 10)
    assert variant.flops_lost == sum(row.flops_lost for row in variant.rows)
    assert variant.padding_share == variant.flops_lost / (variant.flops + variant.flops_lost)
    assert sum(row.share for row in variant.rows) == pytest.approx(variant.padding_share)
    assert (variant.layers_total, variant.layers_padded) == (5, 5)


def test_each_width_says_whether_it_can_change():
    rows = {row.named: row for row in report_of(Uneven(), engine="trt", precision="fp16").variants[0].rows}
    assert [rows[name].output.state for name in ("wide", "narrow", "head")] == ["prunable", "narrow", "fixed"]
    assert [rows[name].input.state for name in ("wide", "narrow", "head")] == ["fixed", "prunable", "narrow"]


def test_the_flops_are_those_of_the_model():
    model = Uneven()
    assert report_of(model).variants[0].flops == trace(model, IMAGES).graph.cost.dense_flops


@pytest.mark.parametrize(
    ("setting", "granule"),
    [
        ({}, 16),
        ({"engine": "auto", "precision": "fp16"}, 16),
        ({"engine": "trt"}, 16),
        ({"engine": "trt", "precision": "tf32"}, 4),
        ({"engine": "ort-cuda", "precision": "bf16"}, 8),
        ({"precision": "int8"}, 32),
    ],
)
def test_the_granule_is_that_of_engine_and_precision(setting: dict[str, str], granule: int) -> None:
    assert report_of(Uneven(), **setting).granule == granule


def test_attention_over_tokens_is_off_by_its_activations():
    model = nn.Sequential(nn.Flatten(2), nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)).eval()
    images = torch.zeros(1, 5, 4, 4)  # five tokens of 16
    graph = trace(model, images).graph
    report = alignment_report(iter([("encoder", model)]), (images,), graph, engine="trt", precision="fp16")
    (row, other) = report.variants[0].rows
    assert {row.output.width, other.output.width} == {5, 8}
    assert {row.input.state, row.output.state} == {"activation"}
    assert row.flops_lost == other.flops_lost == 2 * 2 * (5 * 8 * 8 - 5 * 8 * 5)


def test_the_model_and_its_mode_are_left_alone():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Dropout()).train()
    statistics = model[1].running_var.clone()
    report_of(model)
    assert model.training
    assert torch.equal(model[1].running_var, statistics)


@pytest.fixture
def run(small_model: Callable[..., Path]) -> Path:
    """A run whose pruned widths were chosen without alignment."""
    run_prune(
        PruneRequest(
            checkpoint=small_model("small_blocks:Blocks?width=64", epochs=None, data=None),
            targets=Targets(flops=0.4),
            alignment=1,
            out=Path("run"),
        )
    )
    return Path("run")


def test_every_variant_of_a_run_is_judged_at_its_own_widths(run: Path) -> None:
    outcome = run_inspect(InspectRequest(subject=str(run), engine="trt", precision="fp16"))
    manifest = json.loads((run / "run.json").read_text())["variants"]
    assert outcome.alignment is not None
    found = {variant.variant: variant for variant in outcome.alignment.variants}
    assert {name: variant.flops for name, variant in found.items()} == {
        name: record["flops"] for name, record in manifest.items()
    }
    assert [row.named for row in found["dense"].rows] == ["head"]
    stem = json.loads((run / "run.json").read_text())["pruning"]["layers"][0]["pruned"]
    assert stem % 8, "the pruned widths happen to be aligned, so that this test shows nothing"
    read = next(row.input for row in found["pruned"].rows if "head" in row.layers)
    assert (read.width, read.above, read.state) == (stem, -(-stem // 8) * 8, "prunable")
    document = outcome.to_document()["alignment"]
    assert json.loads(json.dumps(document))["variants"][1]["variant"] == "pruned"


def test_without_engine_and_precision_there_is_no_report(run: Path) -> None:
    outcome = run_inspect(InspectRequest(subject=str(run)))
    assert outcome.alignment is None
    assert outcome.to_document()["alignment"] is None


def test_the_table_names_widths_neighbours_and_what_holds_them() -> None:
    report = report_of(Uneven(), engine="trt", precision="fp16")
    (variant,) = report.variants
    lost = variant.padding_share
    assert spell_alignment(report, variant) == (
        f"uneven on trt at fp16 (granule 8): {lost:.1%} of the FLOPs go into padding, in 5 of 5 layers"
    )
    table = alignment_table(variant)
    assert table.rows[0][1:] == ("narrow", "convolution", "100 (96, 104)", "20 (16, 24)", "prunable, narrow")
    assert table.rows[2][1:] == ("wide", "convolution", "3", "100 (96, 104)", "prunable")
    assert "under four granules" in table.note


def test_a_long_table_is_cut_and_says_what_it_left_out() -> None:
    model = nn.Sequential(*(nn.Conv2d(3 + index, 4 + index, 1) for index in range(20)))
    table = alignment_table(report_of(model).variants[0])
    assert len(table.rows) == 12
    assert "8 more rows" in table.note
    assert "--json" in table.note


def test_an_aligned_model_is_told_so() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1))
    report = report_of(model)
    assert report.variants[0].rows == ()
    assert spell_alignment(report, report.variants[0]) == (
        "uneven on any engine at fp32 (granule 16): nothing is padded, all 2 layers are aligned"
    )
