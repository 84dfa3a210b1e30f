"""Each kind of size that stands in a graph, in a network small enough to see."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from prune2deploy.budget.from_mask import plan_from_mask
from prune2deploy.graph.trace import trace
from prune2deploy.surgery.edit import edited_copy
from prune2deploy.surgery.trial import randomised_copy, trial_mask
from prune2deploy.surgery.verify import prove

Middle = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    def __init__(self, middle: Middle, *, out: int = 12) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(3, 12, 1), nn.GroupNorm(3, 12), nn.Conv2d(out, 4, 1)
        self.grouped = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self, self.first(x).relu())).mean((2, 3))


def _chunks(net: Net, x: Tensor) -> Tensor:
    one, two = x.chunk(2, 1)
    return torch.cat([two, one * 2], 1)


CASES = {
    "view": (lambda net, x: x.view(-1, 12, 36).view(-1, 12, 6, 6), 12),
    "unflatten": (lambda net, x: x.unflatten(1, (3, 4)).flatten(1, 2), 12),
    "chunk": (_chunks, 12),
    "split of written sizes": (lambda net, x: torch.cat(x.split([5, 7], 1)[::-1], 1), 12),
    "slice": (lambda net, x: x[:, 2:9] * 2, 7),
    "narrow": (lambda net, x: x.narrow(1, 3, 6), 6),
    "padding along channels": (lambda net, x: functional.pad(x, (0, 0, 0, 0, 2, 2)), 16),
    "depthwise groups": (lambda net, x: net.grouped(x), 12),
    "zeros of a written size": (lambda net, x: x + x.new_zeros(1, 12, 1, 1), 12),
    "expand": (lambda net, x: x.mean((2, 3), keepdim=True).expand(-1, 12, 6, 6), 12),
    "batch times channels": (lambda net, x: x.reshape(x.shape[0] * 12, 1, 6, 6).relu().reshape(-1, 12, 6, 6), 12),
}


@pytest.mark.parametrize("name", CASES)
def test_a_size_in_the_code_follows_the_cut(name: str) -> None:
    middle, out = CASES[name]
    model = randomised_copy(Net(middle, out=out))
    inputs = (torch.randn(1, 3, 6, 6),)
    traced = trace(model, inputs, sizes_are_free=True)
    assert "first" in {group.name for group in traced.graph.groups}
    kept = trial_mask(traced.graph, range(len(traced.graph.groups)))
    edited = edited_copy(model, traced, plan_from_mask(traced.graph, kept), inputs)
    assert edited.first.weight.shape[0] < 12
    prove(traced, model, edited, kept, inputs)
    assert edited(torch.randn(3, 3, 6, 6)).shape == (3, 4)
