"""Parts of a forward that set a mode of their own: without gradients, or with them again."""

import torch
from torch import Tensor, nn

from prune2deploy.budget.from_mask import plan_from_mask
from prune2deploy.surgery.apply import pruned_copy
from prune2deploy.surgery.edit import edited_copy
from prune2deploy.surgery.trial import randomised_copy


class TeacherInside(nn.Module):
    """Scales its channels by what a part computes through which no gradient flows."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.teacher, self.out = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)
        self.register_buffer("seen", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        with torch.no_grad():
            scale = self.teacher(x).sigmoid()
            self.seen.mul_(0.5).add_(x.mean((0, 2, 3)))
        return self.out(x * scale)


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor | None]:
    model.train().zero_grad()
    model(x).square().sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def test_no_gradient_flows_through_a_part_without_gradients_once_the_graph_is_edited(see, random_mask) -> None:
    model, x = randomised_copy(TeacherInside()), torch.randn(1, 3, 6, 6)
    seen = see(model, (1, 3, 6, 6), sizes_are_free=True)
    plan = plan_from_mask(seen.graph, random_mask(seen.graph, 0))
    edited, sliced = edited_copy(model, seen.trace, plan, (x,)), pruned_copy(model, plan)
    expected, found = gradients(sliced, x.repeat(2, 1, 1, 1)), gradients(edited, x.repeat(2, 1, 1, 1))
    assert expected["teacher.weight"] is None
    assert found["teacher.weight"] is None
    for name in ("stem.weight", "out.weight"):
        torch.testing.assert_close(found[name], expected[name])
    torch.testing.assert_close(edited.seen, sliced.seen)


class GradientsInside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.first(x)
            with torch.enable_grad():
                x = self.out(x)
        return x * 2


def test_gradients_that_are_switched_on_again_inside_are_kept(see, random_mask) -> None:
    model, x = randomised_copy(GradientsInside()), torch.randn(1, 3, 6, 6)
    seen = see(model, (1, 3, 6, 6), sizes_are_free=True)
    edited = edited_copy(model, seen.trace, plan_from_mask(seen.graph, random_mask(seen.graph, 0)), (x,))
    found = gradients(edited, x.repeat(2, 1, 1, 1))
    assert found["first.weight"] is None
    assert found["out.weight"] is not None
