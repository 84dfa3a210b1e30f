import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import prune2deploy as p2d
from prune2deploy.budget.plan import KeptIndices, PrunePlan, fingerprint_of
from prune2deploy.checkpoint.bundle import (
    MANIFEST_FILE,
    WEIGHTS_FILE,
    is_bundle,
    load_bundle,
    read_manifest,
    save_bundle,
    weights_digest,
)
from prune2deploy.errors import CheckpointError, InputError, StorageError
from prune2deploy.model.spec import ModelSpec, build_model
from prune2deploy.surgery.apply import pruned_copy, shapes_of

SPEC = ModelSpec.parse("zoo:resnet20?num_classes=4")
KEPT = (0, 2, 3, 9)


def plan_for(model: nn.Module) -> PrunePlan:
    """Narrow the inner width of the first block."""
    places = [("layer1.0.conv1.weight", 0), ("layer1.0.conv2.weight", 1)]
    places += [(f"layer1.0.bn1.{name}", 0) for name in ("weight", "bias", "running_mean", "running_var")]
    return PrunePlan(
        fingerprint=fingerprint_of(shapes_of(model)),
        entries=tuple(KeptIndices(tensor=name, dim=dim, dense_size=16, kept=KEPT) for name, dim in places),
        provenance={"criterion": "l2"},
    )


def pruned_model() -> tuple[nn.Module, PrunePlan]:
    dense = build_model(SPEC, seed=3)
    plan = plan_for(dense)
    return pruned_copy(dense, plan).eval(), plan


def saved(path: Path) -> nn.Module:
    model, plan = pruned_model()
    save_bundle(
        path,
        model,
        spec=SPEC,
        plan=plan,
        input_shape=(3, 32, 32),
        class_names=("a", "b", "c", "d"),
        data="digits",
        normalization=((0.5,) * 3, (0.2,) * 3),
        provenance={"variant": "pruned"},
        metrics={"accuracy": 0.97},
    )
    return model


@pytest.mark.parametrize("name", ["bundle", "bundle.safetensors"])
def test_a_bundle_comes_back_bit_by_bit(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    model = saved(path)
    bundle = load_bundle(path)
    loaded = bundle.model
    assert not loaded.training
    expected = model.state_dict()
    assert list(loaded.state_dict()) == list(expected)
    assert all(torch.equal(tensor, expected[key]) for key, tensor in loaded.state_dict().items())
    assert loaded.layer1[0].conv1.out_channels == len(KEPT)
    inputs = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(inputs), model(inputs))
    manifest = bundle.manifest
    assert (manifest.class_count, manifest.class_names) == (4, ("a", "b", "c", "d"))
    assert manifest.normalization == ((0.5,) * 3, (0.2,) * 3)
    assert manifest.plan == plan_for(build_model(SPEC, seed=0))
    assert manifest.metrics == {"accuracy": 0.97}
    assert manifest.weights_sha256 == weights_digest(expected)
    assert bundle.spec == SPEC
    assert read_manifest(path) == manifest
    assert is_bundle(path)


def test_a_fresh_process_loads_a_bundle_with_p2d_load(tmp_path: Path) -> None:
    model = saved(tmp_path / "bundle")
    torch.save(model.state_dict(), tmp_path / "expected.pt")
    script = f"""
import sys
import prune2deploy as p2d
assert "torch" not in sys.modules, "importing the package must be cheap"
model = p2d.load({str(tmp_path / "bundle")!r})
import torch
expected = torch.load({str(tmp_path / "expected.pt")!r})
assert model.layer1[0].conv1.weight.shape[0] == {len(KEPT)}
assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
"""
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


def test_a_loaded_model_trains_and_leaves_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    saved(path)
    before = (path / WEIGHTS_FILE).read_bytes()
    model = p2d.load(path).train()
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert (path / WEIGHTS_FILE).read_bytes() == before


def test_the_random_state_of_the_caller_is_left_alone(tmp_path: Path) -> None:
    saved(tmp_path / "bundle")
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    p2d.load(tmp_path / "bundle")
    assert torch.equal(torch.rand(3), expected)


def test_a_dense_half_precision_model_keeps_its_type(tmp_path: Path) -> None:
    model = build_model(SPEC, seed=0).to(torch.bfloat16)
    save_bundle(tmp_path / "dense", model, spec=SPEC, plan=None, input_shape=(3, 32, 32))
    loaded = p2d.load(tmp_path / "dense")
    pairs = zip(model.parameters(), loaded.parameters(), strict=True)
    assert all(torch.equal(a, b) and b.dtype == torch.bfloat16 for a, b in pairs)
    assert load_bundle(tmp_path / "dense").manifest.plan is None


@pytest.mark.parametrize(
    "text", ["torchvision:regnet_y_400mf", "torchvision:swin_t", "timm:convnext_atto", "torchvision:googlenet"]
)
def test_architectures_whose_constructors_compute_come_back_too(tmp_path: Path, text: str) -> None:
    spec = ModelSpec.parse(text)
    model = build_model(spec, seed=0).eval()
    save_bundle(tmp_path / "bundle", model, spec=spec, plan=None, input_shape=(3, 64, 64))
    inputs = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(p2d.load(tmp_path / "bundle")(inputs), model(inputs))


USER_MODULE = """
import torch
from torch import nn

class Tied(nn.Module):
    def __init__(self, tie=True):
        super().__init__()
        self.embedding = nn.Embedding(6, 4)
        self.head = nn.Linear(4, 6, bias=False)
        if tie:
            self.head.weight = self.embedding.weight
        self.register_buffer("scale", torch.empty(1).fill_(3.0), persistent=False)

    def forward(self, tokens):
        return self.head(self.embedding(tokens)) * self.scale
"""


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "tied_network_of_a_user.py").write_text(USER_MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "tied_network_of_a_user:Tied"


def test_tied_weights_and_values_outside_the_state_dict_survive(tmp_path: Path, user_module: str) -> None:
    spec = ModelSpec.parse(user_module)
    model = build_model(spec, seed=0)
    manifest = save_bundle(tmp_path / "bundle", model, spec=spec, plan=None, input_shape=(1, 1, 1))
    assert manifest.aliases == {"head.weight": "embedding.weight"}
    assert manifest.tensor_count == 1
    loaded = p2d.load(tmp_path / "bundle")
    assert loaded.head.weight is loaded.embedding.weight
    tokens = torch.tensor([[0, 5]])
    assert torch.equal(loaded(tokens), model(tokens))


def test_a_model_that_its_spec_would_not_give_back_is_not_written(tmp_path: Path, user_module: str) -> None:
    path = tmp_path / "bundle"
    model, _plan = pruned_model()
    with pytest.raises(InputError, match="not what its spec and plan give"):
        save_bundle(path, model, spec=SPEC, plan=None, input_shape=(3, 32, 32))
    untied = build_model(ModelSpec.parse(f"{user_module}?tie=false"), seed=0)
    with pytest.raises(InputError, match="one tensor in the architecture and two in the model"):
        save_bundle(path, untied, spec=ModelSpec.parse(user_module), plan=None, input_shape=(1, 1, 1))
    assert not path.exists()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_bundle_that_was_cut_off_is_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "bundle"
    saved(path)
    content = (path / WEIGHTS_FILE).read_bytes()
    (path / WEIGHTS_FILE).write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError) as caught:
        p2d.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["bundle", "bundle.safetensors"])
def test_every_flipped_bit_is_noticed(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    saved(path)
    file = path / WEIGHTS_FILE if path.is_dir() else path
    content = file.read_bytes()
    header_end = 8 + int.from_bytes(content[:8], "little")
    # Spaces pad the header, and a flip among those that JSON skips changes nothing that is read.
    header = content[:header_end].rstrip(b" ")
    for position in [*range(0, len(header), max(len(header) // 15, 1)), *range(header_end, len(content), 190_001)]:
        damaged = bytearray(content)
        damaged[position] ^= 1 << (position % 8)
        file.write_bytes(bytes(damaged))
        with pytest.raises(CheckpointError) as caught:
            p2d.load(path)
        assert "\n" not in str(caught.value), position


def test_a_damaged_manifest_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    saved(path)
    manifest = path / MANIFEST_FILE
    text = manifest.read_text()
    for damaged in ("{", "[]", text.replace("0.97", "0.98"), text.replace("resnet20", "resnet32")):
        manifest.write_text(damaged)
        with pytest.raises(CheckpointError):
            p2d.load(path)
    manifest.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        p2d.load(path)
    assert isinstance(p2d.load(path / WEIGHTS_FILE), nn.Module), "the weights file is whole by itself"


def test_a_newer_schema_is_refused_with_the_version_that_made_it(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    saved(path)
    document = json.loads((path / MANIFEST_FILE).read_text())
    document["schema_version"] = 2
    document["versions"]["prune2deploy"] = "9.1"
    (path / MANIFEST_FILE).write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=r"schema version 2, this p2d reads 1.*version 9\.1"):
        p2d.load(path)


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        p2d.load(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="is no bundle"):
        p2d.load(tmp_path / "empty")
    assert not is_bundle(tmp_path / "empty")
    from safetensors.torch import save_file

    foreign = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.ones(2)}, foreign)
    assert not is_bundle(foreign)
    with pytest.raises(CheckpointError, match="no bundle of prune2deploy"):
        p2d.load(foreign)


def test_an_earlier_bundle_survives_a_write_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bundle"
    saved(path)
    before = (path / WEIGHTS_FILE).read_bytes()

    def full_disk(*_arguments: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("prune2deploy.checkpoint.bundle.save_file", full_disk)
    with pytest.raises(StorageError, match="No space left"):
        saved(path)
    assert (path / WEIGHTS_FILE).read_bytes() == before
    assert sorted(file.name for file in path.iterdir()) == [MANIFEST_FILE, WEIGHTS_FILE]
    p2d.load(path)
