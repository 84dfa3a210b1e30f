import copy
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prune2deploy.budget.from_mask import plan_from_mask
from prune2deploy.errors import ProofError
from prune2deploy.graph.channels import ChannelMask
from prune2deploy.graph.trace import Trace, trace
from prune2deploy.surgery.apply import pruned_copy
from prune2deploy.surgery.equality import relative_error
from prune2deploy.surgery.gated import gated_outputs
from prune2deploy.surgery.trial import randomised_copy
from prune2deploy.surgery.verify import Proof, prove


class Network(nn.Module):
    """Groups: stem (12 channels, a stream), inside (10), wide (16)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12)
        self.inside, self.back = nn.Conv2d(12, 10, 1), nn.Conv2d(10, 12, 1)
        self.wide, self.dropout, self.out = nn.Conv2d(12, 16, 1), nn.Dropout(0.5), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.back(self.inside(x).relu())
        return self.out(self.dropout(self.wide(x).relu().mean((2, 3))))


class Case:
    """A dense network, a correct cut of all its groups, and the proof of whatever is made of it."""

    def __init__(self, model: nn.Module) -> None:
        self.inputs = (torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(0)),)
        self.dense = randomised_copy(model)
        self.trace: Trace = trace(model, self.inputs)
        self.kept = self.mask()
        self.pruned = self.cut(self.kept)

    def mask(self, *, first: int = 3) -> ChannelMask:
        kept = self.trace.graph.everything()
        for group in self.trace.graph.groups:
            kept[group.channels[:first]] = False
        return kept

    def cut(self, kept: ChannelMask) -> nn.Module:
        return pruned_copy(self.dense, plan_from_mask(self.trace.graph, kept))

    def prove(self) -> Proof:
        return prove(self.trace, self.dense, self.pruned, self.kept, self.inputs, what="pruned")


@pytest.fixture
def case() -> Case:
    return Case(Network())


def test_a_right_cut_is_proven_with_its_cost(case: Case) -> None:
    proof = case.prove()
    assert proof.relative_error < 1e-5
    assert proof.parameters == sum(parameter.numel() for parameter in case.pruned.parameters())
    assert proof.flops == 2 * (9 * 3 * 9 * 16 + 9 * 7 * 16 * 2 + 9 * 13 * 16 + 13 * 3)


def test_a_perturbed_weight_is_refused_naming_the_tensor_and_its_group(case: Case) -> None:
    with torch.no_grad():
        case.pruned.inside.weight[2, 3] += 0.05
    with pytest.raises(
        ProofError,
        match=r"pruned: .*relative error .*; not sliced .*: inside\.weight, in the groups of stem, inside",
    ):
        case.prove()


def test_the_wrong_index_is_refused_naming_the_group(case: Case) -> None:
    other = case.kept.copy()
    wide = case.trace.graph.groups[-1]
    other[wide.channels] = np.roll(other[wide.channels], 1)
    case.pruned = case.cut(other)
    with pytest.raises(ProofError, match=r"wide\.weight, wide\.bias, out\.weight, in the group of wide;"):
        case.prove()


def test_two_swapped_channels_are_refused(case: Case) -> None:
    with torch.no_grad():
        case.pruned.norm.weight[[0, 1]] = case.pruned.norm.weight[[1, 0]]
    with pytest.raises(ProofError, match=r"dense model: norm\.weight, in the group of stem;"):
        case.prove()


def test_statistics_that_were_moved_are_refused(case: Case) -> None:
    case.pruned.norm.running_var.mul_(1.01)
    with pytest.raises(ProofError, match=r"dense model: norm\.running_var, in the group of stem;"):
        case.prove()


class Amplifying(Network):
    """Blows rounding up, as deep networks do."""

    def forward(self, x: Tensor) -> Tensor:
        return (3e4 * super().forward(x)).sin()


def test_rounding_that_a_network_amplifies_is_no_fault() -> None:
    case = Case(Amplifying())
    with torch.no_grad():
        single = [case.pruned(*case.inputs)]
    assert relative_error(gated_outputs(case.trace, case.dense, case.kept, case.inputs), single) > 1e-4
    assert case.prove().relative_error < 1e-6


def test_an_error_that_a_network_amplifies_is_one() -> None:
    case = Case(Amplifying())
    with torch.no_grad():
        case.pruned.inside.weight[2, 3] += 0.05
    with pytest.raises(ProofError, match=r"relative error .*inside\.weight"):
        case.prove()


class InsistsOnSinglePrecision(Amplifying):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float())


def test_a_network_that_cannot_run_in_double_precision_is_judged_in_single() -> None:
    case = Case(InsistsOnSinglePrecision())
    with torch.no_grad():
        case.pruned.inside.weight[2, 3] += 0.5
    with pytest.raises(ProofError, match=r"relative error .*inside\.weight"):
        case.prove()


def test_a_changed_output_shape_is_refused_as_such(case: Case) -> None:
    case.pruned.out = nn.Linear(13, 2)
    with pytest.raises(ProofError, match=r"output 0 has shape \(1, 2\) instead of \(1, 3\)"):
        case.prove()


def test_outputs_that_are_not_finite_are_refused_as_such(case: Case) -> None:
    with torch.no_grad():
        case.pruned.out.weight[0, 0] = torch.nan
    with pytest.raises(
        ProofError, match=r"its outputs are not finite; not sliced .*: out\.weight, in the group of wide;"
    ):
        case.prove()


def test_a_dense_model_that_overflows_is_blamed_itself(case: Case) -> None:
    with torch.no_grad():
        case.dense.out.weight.fill_(torch.inf)
    with pytest.raises(ProofError, match="the dense model itself gives outputs that are not finite"):
        case.prove()


def test_a_pruned_model_that_does_not_run_is_refused_with_its_error(case: Case) -> None:
    case.pruned.wide = nn.Conv2d(7, 13, 1)
    with pytest.raises(
        ProofError, match=r"does not run: .*channels.*: wide\.weight, wide\.bias, in the group of wide;"
    ):
        case.prove()


class WrittenSize(Network):
    """Computes something else, without failing, when ``wide`` loses channels."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.back(self.inside(x).relu())
        wide = self.wide(x).relu().mean((2, 3))
        return self.out(wide * (wide.shape[1] / 16))


def test_code_that_computes_something_else_is_traced_to_its_group() -> None:
    with pytest.raises(ProofError, match=r"relative error [^;]+; in the group of wide; nothing was saved"):
        Case(WrittenSize()).prove()


class OnlyInTraining(Network):
    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        if self.training:
            x = x * torch.ones(12).view(1, 12, 1, 1)
        x = x + self.back(self.inside(x).relu())
        return self.out(self.wide(x).relu().mean((2, 3)))


def test_a_training_step_that_fails_is_refused() -> None:
    with pytest.raises(ProofError, match=r"a training step fails: The size of tensor a \(9\)"):
        Case(OnlyInTraining()).prove()


def test_a_model_that_never_trains_can_be_cut_all_the_same() -> None:
    class Served(Network):
        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    assert Case(Served()).prove().relative_error < 1e-5


def test_a_cost_that_was_not_predicted_is_refused(case: Case) -> None:
    case.pruned.unexpected = nn.Parameter(torch.zeros(7))
    with pytest.raises(ProofError, match=r"predicted \d+ FLOPs and (\d+) parameters, counted \d+ and \d+") as caught:
        case.prove()
    predicted, counted = map(int, re.findall(r"(\d+)(?: parameters|;)", str(caught.value)))
    assert counted == predicted + 7


def test_flops_that_were_not_predicted_are_refused(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = case.pruned.forward
    monkeypatch.setattr(case.pruned, "forward", lambda x: forward(x) + 0 * (x @ x).mean())
    with pytest.raises(ProofError, match="predicted"):
        case.prove()


class Restless(Network):
    """Writes to its buffers and its input, and replaces a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return super().forward(x.mul_(0.5))


@pytest.mark.parametrize("kind", [Network, Restless])
def test_a_proof_leaves_everything_as_it_was(kind: Callable[[], nn.Module]) -> None:
    case = Case(kind())
    case.dense.train()
    case.pruned.train()
    case.pruned.norm.eval()
    for model in (case.dense, case.pruned):
        model.out.weight.grad = torch.ones_like(model.out.weight)
    before = [copy.deepcopy(model.state_dict()) for model in (case.dense, case.pruned)]
    image, random_state = case.inputs[0].clone(), torch.get_rng_state()
    case.prove()
    for model, state in zip((case.dense, case.pruned), before, strict=True):
        assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
        assert model.training
        assert (model.out.weight.grad == 1).all()
        assert model.stem.weight.grad is None
        assert all(parameter.requires_grad for parameter in model.parameters())
    assert not case.pruned.norm.training
    assert torch.equal(case.inputs[0], image)
    assert torch.equal(torch.get_rng_state(), random_state)
