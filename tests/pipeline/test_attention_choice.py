"""``--attention head-dim`` through the chain: cut, recorded, stored, loaded and inspected."""

import sys
from collections.abc import Iterator

import pytest
import torch
from torch import nn

import prune2deploy as p2d
from prune2deploy.budget.plan import PrunePlan
from prune2deploy.errors import InputError
from prune2deploy.model.spec import ModelSpec, build_model
from prune2deploy.pipeline.inspect import run_inspect
from prune2deploy.pipeline.prune import run_prune
from prune2deploy.pipeline.requests import InspectRequest, PruneRequest, Targets
from prune2deploy.run import RunFolder
from prune2deploy.surgery.edited import EditedModule

NETWORK = """
import torch
from torch import nn

class ScaledByItsHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.qkv, self.proj = nn.Conv2d(1, 32, 2, 2), nn.Linear(32, 96), nn.Linear(32, 32)
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(x).view(x.shape[0], 16, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
        seen = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1) @ v
        x = x + self.proj(seen.transpose(1, 2).flatten(2))
        return self.head(x.mean(1))
"""
SPEC = "network_scaled_by_its_heads:ScaledByItsHeads"
IMAGES = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunFolder]:
    folder = tmp_path_factory.mktemp("scaled")
    (folder / "network_scaled_by_its_heads.py").write_text(NETWORK)
    sys.path.insert(0, str(folder))
    torch.save(build_model(ModelSpec.parse(SPEC), seed=3).state_dict(), folder / "dense.pth")
    request = PruneRequest(
        checkpoint=folder / "dense.pth",
        targets=Targets(flops=0.6),
        model=SPEC,
        input_shape=(1, 8, 8),
        only=("qkv",),
        attention="head-dim",
        alignment=1,
        out=folder / "run",
    )
    yield RunFolder.open(run_prune(request).run)
    sys.path.remove(str(folder))


def test_positions_leave_every_head_and_the_run_tells_so(run: RunFolder) -> None:
    pruning = run.manifest.pruning
    assert (pruning["attention"], pruning["backend"]) == ("head-dim", "graph")
    assert pruning["plan"]["provenance"]["attention"] == "head-dim"
    plan = PrunePlan.from_document(pruning["plan"], where="the run")
    [entry] = [one for one in plan.entries if (one.tensor, one.dim) == ("qkv.weight", 0)]
    kept = [index % 8 for index in entry.kept]
    positions = kept[: len(kept) // 12]
    assert 0 < len(positions) < 8
    assert kept == 12 * positions


@pytest.mark.parametrize("variant", ["pruned", "reduced"])
def test_its_bundles_are_built_again_by_what_they_record(run: RunFolder, variant: str) -> None:
    first, second = p2d.load(run.bundle_path(variant)), p2d.load(run.bundle_path(variant))
    assert isinstance(first, EditedModule)
    assert first.qkv.weight.shape[0] % 12 == 0
    with torch.no_grad():
        assert torch.equal(first(IMAGES), second(IMAGES))


def test_inspecting_the_run_finds_the_widths_of_its_plan(run: RunFolder) -> None:
    [row] = [row for row in run_inspect(InspectRequest(subject=str(run.path))).groups if row.name == "qkv"]
    assert (row.width, row.channels) == (96, 8)
    assert row.pruned_width is not None
    assert row.pruned_width < 96


def test_no_other_part_of_attentions_can_be_named() -> None:
    with pytest.raises(InputError, match="choose heads or head-dim"):
        p2d.prune(nn.Linear(4, 4), torch.zeros(1, 4), flops=0.5, attention="tokens")
