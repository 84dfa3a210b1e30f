"""Operators with unusual arguments: each cut at random by slicing the module and by editing the graph, and proved.

Where a size in the code stands in the way of slicing, the trial freezes what breaks; what remains must be exact.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from prune2deploy.budget.from_mask import plan_from_mask
from prune2deploy.surgery.apply import pruned_copy
from prune2deploy.surgery.edit import edited_copy
from prune2deploy.surgery.trial import freeze_what_breaks, randomised_copy
from prune2deploy.surgery.verify import prove

Middle = Callable[[nn.ModuleDict, Tensor], Tensor]


class Net(nn.Module):
    """Twelve channels on 6 x 6 positions, a middle, and a layer that reads all that it gives."""

    def __init__(self, middle: Middle, layer: nn.Module | None = None) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.layer = layer if layer is not None else nn.Identity()
        self.middle = middle
        with torch.no_grad():
            width = middle(self.layer, self.stem(torch.randn(1, 3, 6, 6))).shape[1]
        self.out = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        middle = self.middle(self.layer, self.stem(x).relu())
        return self.out(middle.flatten(2).mean(2))


def of(function: Callable[[Tensor], Tensor]) -> tuple[Middle, None]:
    return (lambda _, x: function(x)), None


def layer(module: nn.Module) -> tuple[Middle, nn.Module]:
    return (lambda own, x: own(x)), module


FREE = {
    "tile with fewer numbers than dimensions": of(lambda x: x.tile(2, 1, 1)),
    "repeat into new dimensions": of(lambda x: x.mean((2, 3)).repeat(3, 2, 1, 1).permute(2, 3, 0, 1)),
    "repeat of one index": of(lambda x: x * x.sum(1, keepdim=True).repeat(1, 12, 1, 1)),
    "interleave along a negative dimension": of(lambda x: x.repeat_interleave(2, -3)),
    "interleave of one index": of(lambda x: x * x.sum(1, keepdim=True).repeat_interleave(12, 1)),
    "expand to another's size": of(lambda x: torch.cat([x, x.sum(1, keepdim=True).expand_as(x)], 1)),
    "view in another's size": of(lambda x: x * x.flatten(2).view_as(x)),
    "reversed channels": of(lambda x: torch.cat([x.flip(1), x.flip((2, 1))], 1)),
    "several dimensions moved": of(lambda x: x.movedim((1, 2), (-1, 0)).movedim((0, 3), (2, 1))),
    "conjugate transpose": of(lambda x: x.mH),
    "gather by a learned order": of(lambda x: x.gather(2, x.argsort(2))),
    "gather by an expanded table": of(
        lambda x: x.flatten(2).gather(2, torch.tensor([[[0, 3]]]).expand(x.shape[0], 12, 2))
    ),
    "triangle over space": of(torch.triu),
    "unpooling": of(lambda x: functional.max_unpool2d(*functional.max_pool2d(x, 2, return_indices=True), 2)),
    "sampled at points": of(
        lambda x: functional.grid_sample(x, torch.zeros(1, 4, 4, 2).expand(x.shape[0], 4, 4, 2), align_corners=False)
    ),
    "spectrum over space": of(lambda x: torch.fft.irfft2(torch.fft.rfft2(x, norm="ortho"), s=(6, 6), norm="ortho")),
    "complex rotation": of(
        lambda x: torch.view_as_real(
            torch.view_as_complex(x.unflatten(3, (3, 2))) * torch.polar(x[..., :3], x[..., :3])
        ).flatten(3)
    ),
    "memory read as another type": of(lambda x: x.view(torch.int32).view(torch.int16).view(torch.float32)),
    "cosine of two maps": of(lambda x: x * functional.cosine_similarity(x, x.flip(2), dim=-3).unsqueeze(1)),
    "cosine with a mean": of(
        lambda x: x * functional.cosine_similarity(x, x.mean((2, 3), keepdim=True), dim=1).unsqueeze(1)
    ),
    "product of a vector and itself": of(lambda x: x * torch.dot(x.mean((0, 2, 3)), x.mean((0, 2, 3)))),
    "product of tensor and vector": of(lambda x: (x.permute(0, 2, 3, 1) @ x.mean((0, 2, 3))).unsqueeze(1)),
    "norm of order zero": of(lambda x: x / (x.norm(p=0, dim=1, keepdim=True) + 1)),
    "norm of infinite order over a list": of(
        lambda x: x / (torch.linalg.vector_norm(x, ord=float("inf"), dim=(-3, 2), keepdim=True) + 1)
    ),
    "count of what is not zero": of(lambda x: x * torch.count_nonzero(x, dim=1).unsqueeze(1)),
    "pooling with a rounded-up size": of(lambda x: functional.max_pool2d(x, 4, 3, ceil_mode=True, dilation=1)),
    "map without a batch": of(lambda x: functional.adaptive_avg_pool2d(x[0], 2).unsqueeze(0).expand_as(x[..., :2, :2])),
    "spectral norm": layer(nn.utils.parametrizations.spectral_norm(nn.Conv2d(12, 8, 1))),
    "groups of unequal inputs and outputs": layer(nn.Conv2d(12, 24, 3, groups=3)),
    "one output for each of few groups": layer(nn.Conv2d(12, 2, 3, groups=2)),
    "transposed, whole groups leave": layer(nn.ConvTranspose2d(12, 24, 2, 2, groups=6)),
    "transposed, the same positions leave": layer(nn.ConvTranspose2d(12, 24, 3, 2, 1, output_padding=1, groups=2)),
    "transposed with a multiplier": layer(nn.ConvTranspose2d(12, 24, 2, groups=12)),
    "circular padding": layer(nn.Conv2d(12, 8, 3, padding=1, padding_mode="circular")),
}
INEXACT = {
    "norm of negative order": of(lambda x: x / (x.norm(p=-1, dim=1, keepdim=True) + 1)),
    "smallest absolute value": of(lambda x: x / (x.norm(p=float("-inf"), dim=1, keepdim=True) + 1)),
    "largest value without its place": of(lambda x: x - x.max(1, keepdim=True)[0]),
    "quantile": of(lambda x: x - x.quantile(0.5, dim=1, keepdim=True)),
    "smallest and largest": of(lambda x: x - x.aminmax(dim=1, keepdim=True)[0]),
    "group norm of one group without weights": layer(nn.GroupNorm(1, 12, affine=False)),
    "mean over all dimensions": of(lambda x: x * x.mean()),
}
FREE_WHERE_SIZES_ARE = {
    "channels shifted by two numbers": of(lambda x: torch.cat([x.roll((1, 2), (1, 2)), x.roll(-15, 1)], 1)),
    "one channel selected": of(lambda x: x * x[:, 3].unsqueeze(1)),
    "group norm without weights": layer(nn.GroupNorm(3, 12, affine=False)),
}
FROZEN = {
    "largest value with its place": (of(lambda x: (lambda m: x * m[0] * m[1])(x.max(1, keepdim=True))), "max.dim"),
    "several quantiles": (of(lambda x: x - x.quantile(torch.tensor([0.1, 0.5]), dim=1).mean(0)), "quantile"),
    "spectrum over channels": (of(lambda x: torch.fft.fft(x, dim=1).real), "fft_fft"),
    "triangle over channels": (of(lambda x: x.transpose(1, 2).tril().transpose(1, 2)), "tril"),
    "channels gathered": (of(lambda x: x.gather(1, torch.zeros(1, 12, 6, 6, dtype=torch.long))), "gather"),
    "repeated by a table that no dimension names": (of(lambda x: x + x.repeat_interleave(2).mean()), "repeat_int"),
}


@pytest.mark.parametrize("name", [*FREE, *INEXACT])
def test_slicing_the_module_is_exact_whatever_the_arguments(see, random_mask, name: str) -> None:
    seen = see(Net(*(FREE | INEXACT)[name]), (1, 3, 6, 6))
    traced = freeze_what_breaks(seen.trace, seen.model, seen.inputs)
    model = randomised_copy(seen.model)
    if traced.graph.groups:
        kept = random_mask(traced.graph, 0)
        prove(traced, model, pruned_copy(model, plan_from_mask(traced.graph, kept)), kept, seen.inputs)


@pytest.mark.parametrize("name", [*FREE, *INEXACT, *FREE_WHERE_SIZES_ARE])
def test_editing_the_graph_is_exact_whatever_the_arguments(see, random_mask, prove_labels, name: str) -> None:
    seen = see(Net(*(FREE | INEXACT | FREE_WHERE_SIZES_ARE)[name]), (1, 3, 6, 6), sizes_are_free=True)
    stem = next(group for group in seen.graph.groups if group.name == "stem")
    assert stem.exact is (name not in INEXACT)
    prove_labels(seen)
    model, kept = randomised_copy(seen.model), random_mask(seen.graph, 0)
    edited = edited_copy(model, seen.trace, plan_from_mask(seen.graph, kept), seen.inputs)
    assert edited.stem.weight.shape[0] < 12
    prove(seen.trace, model, edited, kept, seen.inputs)


@pytest.mark.parametrize("name", FROZEN)
@pytest.mark.parametrize("sizes_are_free", [False, True])
def test_what_numbers_or_mixes_channels_freezes_them_and_says_so(see, name: str, sizes_are_free: bool) -> None:
    case, operator = FROZEN[name]
    seen = see(Net(*case), (1, 3, 6, 6), sizes_are_free=sizes_are_free)
    assert "stem" not in seen.widths
    assert f"aten.{operator}" in seen.frozen("stem.weight")
