"""The Python interface of the package."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

import prune2deploy as p2d
from prune2deploy.errors import InputError, TargetError
from prune2deploy.surgery.apply import pruned_copy


class TwoBranches(nn.Module):
    """A stem, a residual block and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3, padding=1)
        self.first = nn.Conv2d(64, 64, 3, padding=1)
        self.norm = nn.BatchNorm2d(64)
        self.second = nn.Conv2d(64, 64, 3, padding=1)
        self.head = nn.Linear(64, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        image = functional.relu(self.stem(image))
        image = image + self.second(functional.relu(self.norm(self.first(image))))
        return self.head(functional.relu(image).mean((2, 3)))


def counted_flops(model: nn.Module) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.randn(1, 3, 8, 8))
    return int(counter.get_total_flops())


def test_prune_returns_a_smaller_module_within_the_target_and_leaves_the_given_one_whole() -> None:
    model = TwoBranches().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = p2d.prune(model, torch.randn(2, 3, 8, 8), flops=0.4)
    assert isinstance(result.model, TwoBranches)
    assert counted_flops(result.model) == result.report["flops"]
    assert counted_flops(result.model) <= 0.4 * counted_flops(model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_the_plan_replays_on_the_module_that_it_was_made_from() -> None:
    model = TwoBranches().eval()
    result = p2d.prune(model, torch.randn(1, 3, 8, 8), params=0.5, align=1)
    replayed = pruned_copy(model, result.plan)
    image = torch.randn(3, 3, 8, 8)
    assert torch.equal(replayed(image), result.model.eval()(image))


def test_widths_follow_the_granule_that_is_asked_for() -> None:
    result = p2d.prune(TwoBranches(), torch.randn(1, 3, 8, 8), flops=0.5, align=8)
    assert {row["pruned"] % 8 for row in result.report["layers"]} == {0}


def test_methods_that_need_data_take_batches() -> None:
    torch.manual_seed(0)
    batches = [(torch.randn(8, 3, 8, 8), torch.randint(0, 5, (8,)))]
    result = p2d.prune(TwoBranches(), torch.randn(1, 3, 8, 8), flops=0.5, method="taylor", batches=batches)
    assert 0 < result.report["flops_fraction"] <= 0.5
    with pytest.raises(InputError, match="data"):
        p2d.prune(TwoBranches(), torch.randn(1, 3, 8, 8), flops=0.5, method="taylor")


@pytest.mark.parametrize("flops", [0.0, 1.0, 2.0, -1.0, float("nan")])
def test_a_target_outside_zero_to_one_is_refused(flops: float) -> None:
    with pytest.raises(InputError, match="fraction"):
        p2d.prune(TwoBranches(), torch.randn(1, 3, 8, 8), flops=flops)


def test_a_target_below_the_smallest_network_says_what_can_be_reached() -> None:
    with pytest.raises(TargetError, match=r"smallest one keeps 0\.\d+"):
        p2d.prune(TwoBranches(), torch.randn(1, 3, 8, 8), flops=1e-5)


def test_scope_inside_blocks_keeps_the_residual_stream() -> None:
    result = p2d.prune(TwoBranches(), torch.randn(1, 3, 8, 8), flops=0.7, scope="inside-blocks", align=1)
    assert result.model.stem.out_channels == 64
    assert result.model.second.out_channels == 64
    assert 0.68 < result.report["flops_fraction"] <= 0.7
