import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prune2deploy.graph.trace import trace
from prune2deploy.surgery.gated import gated_outputs


class TwoReaders(nn.Module):
    """One layer read by two, and passed on through a function that does not keep zero."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.left, self.right = nn.Linear(6, 3), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.first(x).exp()
        return self.left(x), self.right(x)


def test_channels_are_zero_where_they_are_read_and_nowhere_else() -> None:
    model, x = TwoReaders(), torch.randn(1, 4)
    traced = trace(model, x)
    kept = traced.graph.everything()
    kept[[1, 4]] = False
    left, right = gated_outputs(traced, model, kept, (x,))
    gate = torch.from_numpy(kept.astype(np.float32))
    read = model.first(x).exp() * gate
    torch.testing.assert_close(left, model.left(read))
    torch.testing.assert_close(right, model.right(read))


def test_without_a_cut_the_outputs_are_the_dense_ones() -> None:
    model, x = TwoReaders(), torch.randn(1, 4)
    traced = trace(model, x)
    outputs = gated_outputs(traced, model, traced.graph.everything(), (x,))
    for output, expected in zip(outputs, model(x), strict=True):
        assert torch.equal(output, expected)


@pytest.mark.parametrize("norm", [nn.LayerNorm(6, eps=0.1), nn.RMSNorm(6, eps=0.1), nn.GroupNorm(1, 6, eps=0.1)])
def test_norms_over_channels_take_their_statistics_over_those_that_stay(norm: nn.Module) -> None:
    model, x = nn.Sequential(nn.Linear(4, 6), norm, nn.Linear(6, 3)), torch.randn(1, 4)
    nn.init.uniform_(norm.weight)
    traced = trace(model, x)
    kept = traced.graph.everything()
    kept[[0, 5]] = False
    (output,) = gated_outputs(traced, model, kept, (x,))
    stays = model[0](x)[:, 1:5]
    if isinstance(norm, nn.RMSNorm):
        normed = stays / (stays.square().mean(1, keepdim=True) + 0.1).sqrt() * norm.weight[1:5]
    else:
        spread = (stays.var(1, keepdim=True, unbiased=False) + 0.1).sqrt()
        normed = (stays - stays.mean(1, keepdim=True)) / spread * norm.weight[1:5] + norm.bias[1:5]
    torch.testing.assert_close(output, nn.functional.linear(normed, model[2].weight[:, 1:5], model[2].bias))
