"""``p2d inspect``, and what the user chooses to keep: causes with layers, lines and shares; inexact cuts; names."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import prune2deploy as p2d
from prune2deploy.budget.from_mask import plan_from_mask
from prune2deploy.budget.plan import PrunePlan
from prune2deploy.cli.tables import frozen_table, groups_table
from prune2deploy.errors import InputError
from prune2deploy.graph.frozen import frozen_flops
from prune2deploy.graph.trace import trace
from prune2deploy.pipeline.cutting import inexact_cuts, inexact_note
from prune2deploy.pipeline.frozen import frozen_rows, named_layers, readable_source
from prune2deploy.pipeline.inspect import run_inspect
from prune2deploy.pipeline.outcomes import GroupRow
from prune2deploy.pipeline.requests import InspectRequest
from prune2deploy.report.tables import frozen_table as report_frozen_table
from prune2deploy.report.tables import widths_table

IMAGES = torch.zeros(1, 3, 8, 8)


class Sorting(nn.Module):
    """A block whose middle channels are sorted, so that none of them can leave."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(x).sort(1).values)


class Sorted(nn.Module):
    """A stem, equal blocks that keep a width each, and a head."""

    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.blocks = nn.Sequential(*(Sorting() for _ in range(blocks)))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Normed(nn.Module):
    """ConvNeXt in small: a layer norm over a stream of channels, and a free width inside."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 2, 2)
        self.norm, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        x = x + self.down(self.up(self.norm(x)).relu())
        return self.head(x.mean((1, 2)))


def test_equal_blocks_make_one_cause_with_its_line_and_share() -> None:
    graph = trace(Sorted(), IMAGES).graph
    first, second = frozen_rows(graph)
    assert first.named == "3 layers: blocks.*.up"
    assert first.operator.startswith("aten.sort")
    line = next(number for number, text in enumerate(Path(__file__).read_text().splitlines(), 1) if ".sort(1)" in text)
    assert first.source.endswith(f"test_inspect.py:{line}")
    assert not first.source.startswith(str(Path.cwd()))
    one_up = 2 * 64 * 8 * 16
    assert first.flops == 3 * one_up
    assert (second.named, second.reason, second.flops) == ("head", "is an output of the model", 2 * 8 * 4)
    assert first.flops_fraction == first.flops / graph.cost.dense_flops


def test_shares_of_frozen_flops_are_disjoint_and_complete() -> None:
    graph = trace(Sorted(), IMAGES).graph
    everything = graph.without_groups(dict.fromkeys(range(len(graph.groups)), "must stay"))
    held = frozen_flops(everything)
    assert sum(held.values()) == graph.cost.dense_flops
    assert held["must stay", ""] == sum(graph.cost.flops_by_layer(graph.everything()).values()) - sum(
        frozen_flops(graph).values()
    )


def test_a_part_of_a_layer_holds_its_part_of_the_flops() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            kept, free = self.stem(x).split([4, 4], 1)
            return kept, self.head(free)

    graph = trace(Half(), IMAGES, sizes_are_free=True).graph
    assert frozen_flops(graph)["is an output of the model", "output"] == 64 * 2 * (3 * 8 // 2 + 4 * 2)


def test_products_without_a_weight_count_once_nothing_of_them_can_shrink() -> None:
    class Similar(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x).flatten(2)
            return x @ x.transpose(1, 2)

    graph = trace(Similar(), IMAGES).graph
    assert sum(frozen_flops(graph).values()) == graph.cost.dense_flops == 2 * 64 * (3 * 8 + 8 * 8)


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ((), ""),
        (("fc",), "fc"),
        (("fc", "aux.fc"), "2 layers: fc, aux.fc"),
        (("blocks.0.attn.qkv", "blocks.1.attn.qkv", "blocks.11.attn.qkv"), "3 layers: blocks.*.attn.qkv"),
        (("stages.1.0.conv", "stages.1.2.conv", "head"), "3 layers: stages.1.*.conv, head"),
        (("a", "b", "c", "d", "e"), "5 layers: a, b, c and 2 more"),
    ],
)
def test_layers_are_named_by_what_they_have_in_common(layers: tuple[str, ...], words: str) -> None:
    assert named_layers(layers) == words


def test_source_lines_are_named_from_their_package() -> None:
    assert readable_source(f"blocks.0 ({nn.__file__}:12)") == "torch/nn/__init__.py:12"
    assert readable_source(f"{Path.cwd() / 'model.py'}:7") == "model.py:7"
    assert readable_source("blocks.0 (/elsewhere (old)/model.py:7)") == "/elsewhere (old)/model.py:7"
    assert readable_source("blocks.0.conv") == ""


def test_the_tables_show_share_layers_and_cause() -> None:
    rows = frozen_rows(trace(Sorted(), IMAGES).graph)
    shown = frozen_table(rows)
    assert shown.columns == ("of FLOPs", "keeps its width", "because")
    assert shown.rows[0][:2] == (f"{rows[0].flops_fraction:.1%}", "3 layers: blocks.*.up")
    assert "[aten.sort" in shown.rows[0][2]
    assert "pipeline/test_inspect.py:" in shown.rows[0][2]
    assert shown.rows[1][2] == "is an output of the model"


def test_inexact_widths_are_marked_and_explained() -> None:
    rows = [GroupRow(name="stem", width=8, channels=8, exact=exact, stream=True) for exact in (True, False)]
    table = groups_table(rows)
    assert [row[-1] for row in table.rows] == ["residual stream", "residual stream, inexact"]
    assert table.note.startswith("inexact: ")
    assert groups_table(rows[:1]).note == ""


def test_inspect_gives_one_document_with_shares() -> None:
    document = json.loads(json.dumps(run_inspect(InspectRequest(subject="resnet20")).to_document()))
    (row,) = document["frozen"]
    assert (row["reason"], row["layers"], row["named"]) == ("is an output of the model", ["fc"], "fc")
    assert row["flops"] == 2 * 64 * 10
    assert row["flops_fraction"] == row["flops"] / document["flops"]


def test_inexact_cuts_are_marked_wherever_a_cut_is_told() -> None:
    result = p2d.prune(Normed(), IMAGES, flops=0.5, align=1)
    assert isinstance(result.plan, PrunePlan)
    assert result.plan.provenance["inexact"] == ["stem"] == result.report["inexact"]
    assert any(note.startswith("1 group was cut inexactly (stem): ") for note in result.report["notes"])
    assert [(row["name"], row["exact"]) for row in result.report["layers"]] == [("stem", False), ("up", True)]
    table = widths_table(result.report)
    assert [row[-1] for row in table.rows] == ["inexact", "exact"]


def test_exact_only_refuses_inexact_cuts_and_says_so() -> None:
    result = p2d.prune(Normed(), IMAGES, flops=0.9, align=1, exact_only=True)
    assert [row["name"] for row in result.report["layers"]] == ["up"]
    assert result.report["inexact"] == []
    assert not any("inexactly" in note for note in result.report["notes"])
    reasons = {row["reason"]: row["named"] for row in result.report["frozen"]}
    assert [named for reason, named in reasons.items() if "--exact-only" in reason] == ["2 layers: stem, down"]
    cells = [cell for row in report_frozen_table(result.report).rows for cell in row]
    assert "2 layers: stem, down" in cells


def test_a_cut_that_leaves_normed_channels_whole_is_exact() -> None:
    graph = trace(Normed(), IMAGES).graph
    kept = graph.everything()
    kept[graph.groups[1].channels[:4]] = False
    assert inexact_cuts(graph, kept) == []
    assert inexact_note([]) == []
    assert plan_from_mask(graph, kept).entries


@pytest.mark.parametrize("pattern", ["blocks.0.up", "blocks.0", "blocks.*.down", "stem.weight", "head"])
def test_a_protected_name_keeps_its_width(pattern: str) -> None:
    model = nn.Sequential()
    model.add_module("stem", nn.Conv2d(3, 8, 1))
    model.add_module("blocks", nn.Sequential(nn.Sequential()))
    model.blocks[0].add_module("up", nn.Conv2d(8, 8, 1))
    model.blocks[0].add_module("down", nn.Conv2d(8, 8, 1))
    model.add_module("head", nn.Conv2d(8, 2, 1))
    result = p2d.prune(model, IMAGES, flops=0.7, align=1, protect=[pattern])
    names = {row["name"] for row in result.report["layers"]}
    lost = {"blocks.0.up": {"blocks.0.up"}, "blocks.0": {"blocks.0.up", "blocks.0.down"}}
    lost |= {"blocks.*.down": {"blocks.0.down"}, "stem.weight": {"stem"}, "head": set()}
    assert names == {"stem", "blocks.0.up", "blocks.0.down"} - lost[pattern]


@pytest.mark.parametrize("option", ["protect", "only"])
def test_a_name_of_nothing_is_refused_with_near_names(option: str) -> None:
    with pytest.raises(InputError) as refused:
        p2d.prune(Normed(), IMAGES, flops=0.5, **{option: ["stm"]})
    message = str(refused.value)
    assert f"--{option} stm" in message
    assert "names no layer of this model" in message
    assert "did you mean stem?" in message
    assert "\n" not in message


def test_only_what_cannot_be_cut_is_refused() -> None:
    with pytest.raises(InputError, match="names layers, but none that can be cut"):
        p2d.prune(Normed(), IMAGES, flops=0.5, only=["head"])
