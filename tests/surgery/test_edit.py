"""A tiny vision transformer with its sizes written in the code, cut as a graph."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prune2deploy.budget.from_mask import plan_from_mask
from prune2deploy.errors import ProofError
from prune2deploy.graph.trace import Trace, trace
from prune2deploy.surgery import shapes
from prune2deploy.surgery.apply import named_tensors
from prune2deploy.surgery.edit import Editor
from prune2deploy.surgery.edited import EditedModule
from prune2deploy.surgery.rewrite import KeptLabels
from prune2deploy.surgery.shapes import check_predicted_shapes
from prune2deploy.surgery.trial import randomised_copy, trial_mask
from prune2deploy.surgery.verify import prove

INPUTS = (torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)),)


class Tiny(nn.Module):
    """Patches, one block of attention with four written heads, a gated MLP with dropout, batch norm, a skipped path."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.pos = nn.Conv2d(1, 16, 2, 2), nn.Parameter(torch.randn(1, 16, 16))
        self.norm, self.qkv, self.proj = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.wide, self.drop, self.narrow = nn.Linear(16, 32), nn.Dropout(0.5), nn.Linear(16, 16)
        self.bn, self.head = nn.BatchNorm1d(16), nn.Linear(16, 10)
        self.again = self.head
        self.register_buffer("table", torch.linspace(0.5, 1.5, 32), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        x = self.embed(x).flatten(2).transpose(1, 2) + self.pos
        q, k, v = self.qkv(self.norm(x)).view(batch, 16, 3, 4, 4).permute(2, 0, 3, 1, 4).unbind(0)
        seen = (q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v
        path = torch.rand(batch, 1, 1) < 0.5 if self.training else torch.ones(batch, 1, 1)
        x = x + self.proj(seen.transpose(1, 2).reshape(batch, 16, 16)) * path
        value, gate = (self.wide(x) * self.table).chunk(2, dim=-1)
        x = x + self.narrow(self.drop(value * gate.sigmoid()))
        return self.again(self.bn(x.mean(1))) + torch.arange(10) * torch.tensor(0.1)


@pytest.fixture(scope="module")
def dense() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return randomised_copy(Tiny())


@pytest.fixture(scope="module")
def traced(dense: nn.Module) -> Trace:
    return trace(dense, INPUTS, sizes_are_free=True)


@pytest.fixture(scope="module")
def editor(dense: nn.Module, traced: Trace) -> Editor:
    return Editor.of(dense, traced, INPUTS)


@pytest.fixture
def edited(dense: nn.Module, traced: Trace, editor: Editor) -> EditedModule:
    return editor.edited_copy(dense, plan_from_mask(traced.graph, trial_mask(traced.graph, range(_count(traced)))))


def _count(traced: Trace) -> int:
    return len(traced.graph.groups)


def test_the_edited_graph_is_proven_and_smaller(dense: nn.Module, traced: Trace, edited: EditedModule) -> None:
    kept = trial_mask(traced.graph, range(_count(traced)))
    proof = prove(traced, dense, edited, kept, INPUTS)
    assert {group.name for group in traced.graph.groups} >= {"embed", "qkv", "wide"}
    assert proof.flops < traced.graph.cost.dense_flops
    assert edited.qkv.weight.shape[0] % 12 == 0
    assert edited.table.numel() == edited.wide.weight.shape[0] < 32


def test_the_batch_size_is_free_in_both_modes(edited: EditedModule) -> None:
    for batch in (1, 2, 7):
        for training in (False, True):
            if batch > 1 or not training:
                assert edited.train(training)(torch.randn(batch, 1, 8, 8)).shape == (batch, 10)


def test_names_are_those_of_the_original_and_shared_tensors_stay_shared(dense: nn.Module, edited: EditedModule) -> None:
    assert set(edited.state_dict()) == set(dense.state_dict())
    assert edited.head.weight is edited.again.weight
    assert len(list(edited.parameters())) == len(list(dense.parameters()))


def test_what_no_channel_touches_is_bit_equal_and_a_copy(dense: nn.Module, edited: EditedModule) -> None:
    own, original = named_tensors(edited), named_tensors(dense)
    untouched = [name for name, tensor in original.items() if own[name].shape == tensor.shape]
    assert "head.bias" in untouched
    for name in untouched:
        assert torch.equal(own[name], original[name])
        assert own[name] is not original[name]


def test_training_mode_drops_out_and_moves_statistics_and_evaluation_does_neither(edited: EditedModule) -> None:
    images = torch.randn(8, 1, 8, 8)
    before = edited.bn.running_mean.clone()
    assert torch.equal(edited.eval()(images), edited(images))
    assert torch.equal(edited.bn.running_mean, before)
    assert not torch.equal(edited.train()(images), edited(images))
    assert not torch.equal(edited.bn.running_mean, before)
    assert int(edited.bn.num_batches_tracked) == 2


def test_a_copy_is_independent_and_the_same(edited: EditedModule) -> None:
    images = torch.randn(3, 1, 8, 8)
    twin = copy.deepcopy(edited)
    assert torch.equal(twin(images), edited(images))
    with torch.no_grad():
        twin.head.bias += 1
    assert not torch.equal(twin(images), edited(images))


def test_it_exports_again_with_a_free_batch(edited: EditedModule) -> None:
    batch = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(edited, (torch.randn(2, 1, 8, 8),), dynamic_shapes=batch, strict=False)
    images = torch.randn(5, 1, 8, 8)
    assert torch.allclose(program.module()(images), edited(images), atol=1e-6)


def test_averaging_takes_all_batches_equally(edited: EditedModule) -> None:
    first, second = torch.randn(16, 1, 8, 8), torch.randn(16, 1, 8, 8) * 3
    means = []
    for batches in ([first], [second], [first, second]):
        with edited.averaging_statistics() as take, torch.no_grad():
            for batch in batches:
                take(batch)
        means.append(edited.bn.running_mean.clone())
    assert edited.batch_norm_count == 1
    assert not torch.allclose(means[0], means[1])
    assert torch.allclose(means[2], (means[0] + means[1]) / 2, atol=1e-6)


def test_one_editor_cuts_models_of_other_weights(dense: nn.Module, traced: Trace, editor: Editor) -> None:
    other = randomised_copy(dense, seed=5)
    kept = trial_mask(traced.graph, [0])
    prove(traced, other, editor.edited_copy(other, plan_from_mask(traced.graph, kept)), kept, INPUTS)


def test_a_wrong_prediction_is_refused_and_the_operator_named(editor: Editor, edited: EditedModule) -> None:
    exported = editor.modes[False]
    everything = KeptLabels(torch.ones(len(exported.channel_of_label), dtype=torch.bool).numpy())
    tensors = dict(edited.named_buffers(remove_duplicate=False)) | dict(edited.named_parameters(remove_duplicate=False))
    with pytest.raises(ProofError, match=r"aten\.\w+\.\w+ gives shape .* was predicted") as refusal:
        check_predicted_shapes(edited.graph(training=False), tensors, editor.inputs, exported.values, everything)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("unused", ["FakeTensorMode", "_passes_on_meta"])
def test_right_shapes_pass_on_the_meta_device_and_where_that_cannot_tell_with_fake_tensors(
    unused: str, traced: Trace, editor: Editor, edited: EditedModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shapes, unused, None if unused == "FakeTensorMode" else lambda *arguments: False)
    kept = np.append(trial_mask(traced.graph, range(_count(traced))), True)
    tensors = dict(edited.named_buffers(remove_duplicate=False)) | dict(edited.named_parameters(remove_duplicate=False))
    for training, exported in editor.modes.items():
        labels = KeptLabels(kept[exported.channel_of_label])
        check_predicted_shapes(edited.graph(training=training), tensors, editor.inputs, exported.values, labels)
