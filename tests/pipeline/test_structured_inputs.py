"""Several inputs, nested inputs and nested outputs; clips instead of images."""

import pytest
import torch
import torchvision
from torch import Tensor, nn

import prune2deploy as p2d


class TwoStreams(nn.Module):
    """Reads an image and a dictionary of data about it, and returns a dictionary with a pair in it."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.about = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(5, 16)
        self.one, self.two = nn.Linear(16, 2), nn.Linear(16, 3)

    def forward(self, x: Tensor, about: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        joined = (self.image(x) + self.about(about["numbers"])[:, :, None, None]).relu().mean((2, 3))
        return {"pair": (self.one(joined), self.two(joined))}


@pytest.mark.parametrize("backend", ["module", "graph"])
def test_nested_inputs_and_outputs_are_cut_and_keep_their_structure(backend: str) -> None:
    inputs = (torch.rand(1, 3, 8, 8), {"numbers": torch.rand(1, 5)})
    result = p2d.prune(TwoStreams(), inputs, flops=0.5, align=1, backend=backend)
    assert result.model.image.weight.shape[0] == result.model.about.weight.shape[0] < 16
    one, two = result.model(*inputs)["pair"]
    assert (one.shape, two.shape) == ((1, 2), (1, 3))


def test_a_video_network_is_cut() -> None:
    model = torchvision.models.video.r3d_18(weights=None, num_classes=4).eval()
    result = p2d.prune(model, torch.rand(1, 3, 4, 24, 24), flops=0.4)
    assert result.report["flops_fraction"] == pytest.approx(0.4, abs=0.01)
    assert result.report["proof_relative_error"] < 1e-5
