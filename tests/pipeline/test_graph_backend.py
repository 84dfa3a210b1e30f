"""A network whose code holds its sizes, through the whole chain: cut as a graph, trained, stored, loaded, exported."""

import sys
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import prune2deploy as p2d
from prune2deploy.budget.plan import PrunePlan
from prune2deploy.checkpoint.bundle import load_bundle, read_manifest, save_bundle
from prune2deploy.checkpoint.manifest import BundleManifest, _digest
from prune2deploy.engines.parity import GATES
from prune2deploy.errors import CheckpointError, InputError
from prune2deploy.export.onnx_from_model import export_onnx
from prune2deploy.model.initialise import reinitialise
from prune2deploy.model.spec import ModelSpec, build_model
from prune2deploy.pipeline.backends import find_channels
from prune2deploy.pipeline.cutting import cut_uniformly
from prune2deploy.pipeline.gates import opened
from prune2deploy.pipeline.inspect import run_inspect
from prune2deploy.pipeline.prune import run_prune
from prune2deploy.pipeline.requests import InspectRequest, PruneRequest, Targets, TrainingChoices
from prune2deploy.run import RunFolder
from prune2deploy.surgery.edited import EditedModule
from prune2deploy.training.recalibrate import recalibrate_batchnorm

NETWORK = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

class WrittenHeads(nn.Module):
    def __init__(self, fixed_batch=False):
        super().__init__()
        self.fixed_batch = fixed_batch
        self.embed, self.bn = nn.Conv2d(1, 32, 2, 2), nn.BatchNorm2d(32)
        self.norm, self.qkv, self.proj = nn.LayerNorm(32), nn.Linear(32, 96), nn.Linear(32, 32)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.drop, self.head = nn.Dropout(0.2), nn.Linear(32, 10)
        nn.init.kaiming_normal_(self.depthwise.weight, mode="fan_out")

    def forward(self, x):
        batch = 1 if self.fixed_batch else x.shape[0]
        x = self.depthwise(self.bn(self.embed(x)).relu()).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm(x)).view(batch, 16, 3, 8, 4).permute(2, 0, 3, 1, 4).unbind(0)
        seen = (q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v
        x = x + self.proj(seen.transpose(1, 2).reshape(batch, 16, 32))
        return self.head(self.drop(x.mean(1)))
"""
SPEC = "network_with_written_heads:WrittenHeads"
IMAGES = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("written")
    (path / "network_with_written_heads.py").write_text(NETWORK)
    sys.path.insert(0, str(path))
    yield path
    sys.path.remove(str(path))


def request(folder: Path, **choices: object) -> PruneRequest:
    return PruneRequest(
        checkpoint=folder / "dense.pth",
        targets=Targets(flops=0.5),
        model=SPEC,
        input_shape=(1, 8, 8),
        data="digits",
        alignment=1,
        training=TrainingChoices(epochs=3, optimizer="adamw", learning_rate=0.01),
        **choices,
    )


@pytest.fixture(scope="module")
def run(folder: Path) -> RunFolder:
    model = build_model(ModelSpec.parse(SPEC), seed=3)
    torch.save(model.state_dict(), folder / "dense.pth")
    outcome = run_prune(request(folder, out=folder / "run", variants=("dense", "pruned")))
    return RunFolder.open(outcome.run)


def test_auto_edits_the_graph_where_sizes_are_written_and_says_so(run: RunFolder) -> None:
    pruning = run.manifest.pruning
    assert pruning["backend"] == "graph"
    assert pruning["plan"]["provenance"]["backend"] == "graph"
    assert any("graph is edited" in note for note in run.manifest.notes)
    assert pruning["achieved"]["flops"] <= 0.5
    widths = {row["name"]: row for row in pruning["layers"]}
    assert widths["qkv"]["pruned"] < 96


def test_the_bundle_comes_back_bit_by_bit_as_an_edited_graph(run: RunFolder) -> None:
    path = run.bundle_path("pruned")
    assert read_manifest(path).backend == "graph"
    assert read_manifest(run.bundle_path("dense")).backend == "module"
    first, second = p2d.load(path), p2d.load(path)
    assert isinstance(first, EditedModule)
    assert not first.training
    with torch.no_grad():
        assert torch.equal(first(IMAGES), second(IMAGES))
        assert first(IMAGES).shape == (5, 10)
    stored = run.manifest.variants["pruned"]
    assert sum(parameter.numel() for parameter in first.parameters()) == stored.parameters


def test_fine_tuning_learns(run: RunFolder) -> None:
    accuracies = run.manifest.variants["pruned"].accuracies
    assert accuracies["final"] > accuracies["after_pruning"]


def test_recalibration_renews_the_statistics_and_nothing_else(run: RunFolder) -> None:
    model = p2d.load(run.bundle_path("pruned"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images = TensorDataset(torch.randn(64, 1, 8, 8) * 3, torch.zeros(64, dtype=torch.int64))
    done = recalibrate_batchnorm(model, images, batch_size=32)
    assert (done.norms, done.images) == (1, 64)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"bn.running_mean", "bn.running_var"}
    assert not model.training


def test_it_exports_to_onnx_with_a_free_batch_and_equal_outputs(run: RunFolder, tmp_path: Path) -> None:
    model = p2d.load(run.bundle_path("pruned"))
    export_onnx(model, tmp_path / "net.onnx", input_shape=(1, 8, 8))
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    for images in (IMAGES, IMAGES[:1]):
        (scores,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        with torch.no_grad():
            assert torch.allclose(torch.from_numpy(scores), model(images), atol=1e-4)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_an_edited_graph_exports_in_half_precision(run: RunFolder, precision: str, tmp_path: Path) -> None:
    model = p2d.load(run.bundle_path("pruned"))
    file = export_onnx(model, tmp_path / "net.onnx", input_shape=(1, 8, 8), precision=precision)
    weights = [tensor for tensor in onnx.load(file.path).graph.initializer if len(tensor.dims)]
    kind = onnx.TensorProto.FLOAT16 if precision == "fp16" else onnx.TensorProto.BFLOAT16
    assert {tensor.data_type for tensor in weights} <= {kind, onnx.TensorProto.INT64}
    with torch.no_grad():
        expected = model(IMAGES)
    with opened(file.path, precision) as built:
        built.bind({"input": IMAGES.numpy()})
        built.run()
        error = torch.from_numpy(built.read()["output"]) - expected
    assert error.norm() / expected.norm() < GATES[precision]


def test_fresh_weights_have_the_spread_of_the_narrower_layers(run: RunFolder) -> None:
    dense = build_model(ModelSpec.parse(SPEC), seed=0).eval()
    channels = find_channels(dense, (IMAGES[:1],))
    cut = cut_uniformly(dense, channels, (IMAGES[:1],), flops=run.manifest.variants["pruned"].flops, granule=1)
    model = cut.model
    with torch.no_grad():
        model.bn.running_var.mul_(3)
    assert isinstance(model, EditedModule)
    assert model.depthwise.groups == model.depthwise.weight.shape[0] < 32
    done = reinitialise(model, ModelSpec.parse(SPEC), seed=0)
    assert {"depthwise.weight", "qkv.weight"} <= set(done.replayed)
    inputs = model.qkv.weight.shape[1]
    assert float(model.qkv.weight.detach().abs().max()) <= inputs**-0.5
    assert float(model.qkv.weight.detach().abs().max()) > 0.95 * inputs**-0.5
    assert torch.equal(model.bn.running_var, torch.ones_like(model.bn.running_var))
    assert int(model.bn.num_batches_tracked) == 0


def test_what_was_edited_is_not_pruned_again(run: RunFolder, folder: Path) -> None:
    again = PruneRequest(checkpoint=run.bundle_path("pruned"), targets=Targets(flops=0.5), out=folder / "again")
    with pytest.raises(InputError, match="prune the dense model again"):
        run_prune(again)
    assert not (folder / "again").exists()
    with pytest.raises(InputError, match="prune the dense model again"):
        p2d.prune(p2d.load(run.bundle_path("pruned")), IMAGES, flops=0.5)


def test_inspect_tells_the_backend_and_the_widths_of_the_run(run: RunFolder) -> None:
    outcome = run_inspect(InspectRequest(subject=str(run.path)))
    assert outcome.backend == "graph"
    assert outcome.to_document()["backend"] == "graph"
    assert {row.name: row.pruned_width for row in outcome.groups}["qkv"] < 96


def test_module_slicing_leaves_alone_what_graph_editing_cuts(folder: Path) -> None:
    model = build_model(ModelSpec.parse(SPEC), seed=0).eval()
    sliced = find_channels(model, (IMAGES[:1],), backend="module")
    assert sliced.backend == "module"
    assert "qkv" not in {group.name for group in sliced.graph.groups}
    [code] = [one for one in sliced.graph.frozen if one.place.startswith("qkv ")]
    assert ".py:" in code.place


def test_auto_edits_without_looking_for_the_groups_that_break_the_code(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prune2deploy.pipeline.backends.without_culprits", None)
    channels = find_channels(build_model(ModelSpec.parse(SPEC), seed=0).eval(), (IMAGES[:1],))
    assert channels.backend == "graph"
    assert channels.notes == (
        "the exported graph is edited instead of slicing modules: sizes written in the code keep channels in place",
    )


class Blurred(nn.Module):
    """A fixed kernel that no state_dict holds: slicing has no name for it, editing cuts it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 2)
        self.register_buffer("kernel", torch.full((8, 1, 2, 2), 0.25), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.conv2d(self.first(x).relu(), self.kernel, groups=8)
        return self.head(self.second(x).relu().mean((2, 3)))


def test_where_slicing_is_exact_too_the_note_says_how_much_editing_gains() -> None:
    channels = find_channels(Blurred(), (IMAGES[:1],))
    assert channels.backend == "graph"
    assert "more of the FLOPs" in channels.notes[0]


def test_where_the_graph_cannot_be_edited_auto_slices_and_graph_refuses(folder: Path) -> None:
    model = build_model(ModelSpec.parse(f"{SPEC}?fixed_batch=true"), seed=0).eval()
    channels = find_channels(model, (IMAGES[:1],))
    assert channels.backend == "module"
    assert "cannot be done here" in channels.notes[0]
    with pytest.raises(InputError, match=r"export|fails"):
        find_channels(model, (IMAGES[:1],), backend="graph")


def test_older_bundles_are_of_sliced_modules_and_an_unknown_backend_is_refused(run: RunFolder) -> None:
    document = read_manifest(run.bundle_path("pruned")).to_document()
    del document["backend"], document["manifest_sha256"]
    older = BundleManifest.from_document({**document, "manifest_sha256": _digest(document)}, where="older")
    assert older.backend == "module"
    document["backend"] = "other"
    with pytest.raises(CheckpointError, match="backend"):
        BundleManifest.from_document({**document, "manifest_sha256": _digest(document)}, where="newer")


def test_layers_are_protected_and_chosen_by_name() -> None:
    model = nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3))
    model = nn.Sequential(model, nn.ReLU(), nn.Conv2d(32, 4, 1))
    protected = p2d.prune(model, IMAGES, flops=0.8, align=1, protect=["0.0", "0.4*"])
    assert isinstance(protected.plan, PrunePlan)
    assert {row["name"] for row in protected.report["layers"]} == {"0.2"}
    assert any("protected" in row["reason"] for row in protected.report["frozen"])
    chosen = p2d.prune(model, IMAGES, flops=0.8, align=1, only=["0.[24]"])
    assert {row["name"] for row in chosen.report["layers"]} == {"0.2", "0.4"}
    with pytest.raises(InputError, match="names no layer"):
        p2d.prune(model, IMAGES, flops=0.8, protect=["nowhere.*"])


def test_exact_only_leaves_normed_channels_alone() -> None:
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 32), nn.LayerNorm(32), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)
    )
    result = p2d.prune(model, IMAGES, flops=0.9, align=1, exact_only=True)
    assert {row["name"] for row in result.report["layers"]} == {"3"}
    assert result.model[1].weight.shape == (32, 64)


def test_the_bundle_of_an_edited_graph_needs_its_plan(run: RunFolder, tmp_path: Path) -> None:
    bundle = load_bundle(run.bundle_path("pruned"))
    with pytest.raises(InputError, match="no plan"):
        save_bundle(tmp_path / "bare", bundle.model, spec=bundle.spec, plan=None, input_shape=(1, 8, 8))
