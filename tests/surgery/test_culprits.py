"""The search for the groups that break the code: what failures name, cuts without data, models sliced for a while."""

import copy
from collections.abc import Collection

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from prune2deploy.budget.from_mask import plan_from_mask
from prune2deploy.graph.trace import Trace, trace
from prune2deploy.surgery import trial
from prune2deploy.surgery.culprits import find_named
from prune2deploy.surgery.double import evaluated_in_double
from prune2deploy.surgery.dry_run import DryRun
from prune2deploy.surgery.evaluation_mode import evaluated
from prune2deploy.surgery.sliced import sliced
from prune2deploy.surgery.suspects import Suspects
from prune2deploy.surgery.trial import randomised_copy, trial_mask, without_culprits

INPUTS = (torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(0)),)


class Block(nn.Module):
    """``inner`` passes a view with its width written out; ``free`` does not."""

    def __init__(self) -> None:
        super().__init__()
        self.free, self.inner, self.out = nn.Conv2d(8, 12, 1), nn.Conv2d(12, 16, 1), nn.Conv2d(16, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.inner(self.free(x).relu())
        inner = inner.view(-1, 4, 4, 36).flatten(1, 2)
        return x + self.out(inner.view(-1, 16, 6, 6).relu())


class Blocks(nn.Module):
    def __init__(self, scaled: bool = False) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 8, 1), nn.Sequential(*[Block() for _ in range(3)])
        self.head, self.scaled = nn.Linear(8, 2), scaled

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.scaled:
            x = x * x.shape[1] ** -0.5  # runs at any width, and computes something else
        return self.head(self.blocks(x).mean((2, 3)))


@pytest.fixture
def model() -> Blocks:
    return Blocks().eval()


@pytest.fixture
def traced(model: Blocks) -> Trace:
    return trace(model, INPUTS)


def group(traced: Trace, name: str) -> int:
    return next(one.index for one in traced.graph.groups if one.name == name)


def everything(traced: Trace) -> range:
    return range(len(traced.graph.groups))


def test_one_failure_names_the_groups_of_all_blocks(model: Blocks, traced: Trace) -> None:
    failure = DryRun(model, INPUTS).failure(plan_from_mask(traced.graph, trial_mask(traced.graph, everything(traced))))
    assert isinstance(failure, RuntimeError)
    named = Suspects(traced).named_by(failure)
    assert named == {group(traced, f"blocks.{number}.inner") for number in range(3)}


def test_an_error_from_elsewhere_names_nothing(traced: Trace) -> None:
    with pytest.raises(ValueError, match="no line of the model") as raised:
        int("no line of the model")
    assert Suspects(traced).named_by(raised.value) == set()


def test_a_dry_run_tells_the_cuts_that_fail_from_those_that_do_not(model: Blocks, traced: Trace) -> None:
    dry = DryRun(model, INPUTS)
    assert dry.works
    free, inner = group(traced, "blocks.1.free"), group(traced, "blocks.1.inner")
    assert dry.failure(plan_from_mask(traced.graph, trial_mask(traced.graph, [inner]))) is not None
    assert dry.failure(plan_from_mask(traced.graph, trial_mask(traced.graph, [free]))) is None
    assert dry.failure(plan_from_mask(traced.graph, trial_mask(traced.graph, []))) is None


def test_a_model_that_needs_data_to_run_has_no_dry_run() -> None:
    class Looks(Blocks):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if x.sum().item() > 0 else -x)

    assert not DryRun(Looks(), INPUTS).works


@pytest.mark.parametrize("dry", [True, False])
def test_what_shapes_do_not_show_is_found_by_arithmetic(dry: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not dry:
        monkeypatch.setattr(trial.DryRun, "works", False)
    model = Blocks(scaled=True)
    traced = trace(model, INPUTS)
    graph = without_culprits(traced, randomised_copy(model), INPUTS).graph
    assert {one.name for one in graph.groups} == {f"blocks.{number}.free" for number in range(3)}


def test_few_dry_runs_and_one_with_data_find_the_groups_of_all_blocks(
    model: Blocks, traced: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"dry": 0, "real": 0}
    dry, real = DryRun.failure, trial.cut_failure

    def counting_dry(*arguments: object) -> Exception | None:
        asked["dry"] += 1
        return dry(*arguments)

    def counting_real(*arguments: object) -> Exception | None:
        asked["real"] += 1
        return real(*arguments)

    monkeypatch.setattr(DryRun, "failure", counting_dry)
    monkeypatch.setattr(trial, "cut_failure", counting_real)
    graph = without_culprits(traced, randomised_copy(model), INPUTS).graph
    assert "blocks.0.inner" not in {one.name for one in graph.groups}
    assert asked == {"dry": 5, "real": 1}


def test_a_model_sliced_for_a_while_is_afterwards_what_it_was(model: Blocks, traced: Trace) -> None:
    before = {name: id(one) for name, one in model.state_dict(keep_vars=True).items()}
    widths = [one.out_channels for one in model.modules() if isinstance(one, nn.Conv2d)]
    mask = trial_mask(traced.graph, [group(traced, "blocks.0.free")])
    with sliced(model, plan_from_mask(traced.graph, mask)) as narrower:
        assert narrower is model
        assert model.blocks[0].free.weight.shape[0] == model.blocks[0].free.out_channels < 12
        assert model.blocks[1].free.weight.shape[0] == 12
        model.blocks[0].remembered = 3
    assert {name: id(one) for name, one in model.state_dict(keep_vars=True).items()} == before
    assert [one.out_channels for one in model.modules() if isinstance(one, nn.Conv2d)] == widths
    assert not hasattr(model.blocks[0], "remembered")


def test_in_double_precision_a_model_gives_what_its_double_copy_gives_and_keeps_its_own() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.scale = nn.Parameter(torch.rand(8))
            self.register_buffer("seen", torch.zeros(8))

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.conv(x)).flatten(2).transpose(1, 2) * self.scale.to(self.conv.weight.dtype)
            self.seen.add_(x.mean((0, 1)))
            return self.attention(x, x, x)[0] + self.seen

    model = randomised_copy(Mixed())
    before = copy.deepcopy(model.state_dict())
    (output,) = evaluated_in_double(model, INPUTS)
    (expected,) = evaluated(copy.deepcopy(model).double(), (INPUTS[0].double(),))
    assert output.dtype is torch.float64
    assert torch.allclose(output, expected, rtol=1e-12, atol=1e-12)
    assert all(tensor.dtype is torch.float32 for tensor in model.state_dict().values() if tensor.is_floating_point())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    sets=st.lists(st.sets(st.integers(0, 9), min_size=1, max_size=4), max_size=4),
    named=st.sets(st.integers(0, 9)),
)
def test_whatever_failures_name_nothing_fails_without_those_found_and_each_is_part_of_a_failure(
    sets: list[set[int]], named: set[int]
) -> None:
    def failure(groups: Collection[int]) -> Exception | None:
        return ValueError() if any(one <= set(groups) for one in sets) else None

    found = find_named(range(10), failure, lambda error: named)
    assert failure([index for index in range(10) if index not in found]) is None
    assert all(any(index in one for one in sets) for index in found)
