"""Batch norms folded in an exported program: nothing changes but their number."""

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from prune2deploy.export.fold import fold_batch_norms

BATCH_NORM = torch.ops.aten.batch_norm.default


def with_random_statistics(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.3)
    return model.eval().requires_grad_(False)


class OneNormTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.norm = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.second(self.norm(self.first(x)).relu()))


class OneLayerTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.other = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.layer(self.norm(self.layer(x)).relu()))


class ReadBeforeTheNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        return x + self.norm(x)


class MadeWeights(nn.Module):
    """Standardised weights are computed in the graph, so there is no tensor to fold into."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.norm = nn.Parameter(torch.randn(4, 4, 1, 1)), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(nn.functional.conv2d(x, self.weight - self.weight.mean(1, keepdim=True)))


class BatchStatistics(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


IMAGE, ROW, VOLUME = (2, 4, 6, 6), (2, 4), (2, 4, 3, 4, 4)


# What is left: the operators that take the place of a norm that could not be folded.
@pytest.mark.parametrize(
    ("make", "shape", "norms", "products"),
    [
        (lambda: nn.Sequential(nn.Conv2d(4, 8, 3, bias=False), nn.BatchNorm2d(8)), IMAGE, 1, 0),
        (lambda: nn.Sequential(nn.Conv2d(4, 8, 3, padding="same", groups=2), nn.BatchNorm2d(8)), IMAGE, 1, 0),
        (lambda: nn.Sequential(nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8, affine=False)), IMAGE, 1, 0),
        (lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 2, 2, bias=False), nn.BatchNorm2d(6)), IMAGE, 1, 0),
        (lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 2, 2, groups=2), nn.BatchNorm2d(6)), IMAGE, 1, 0),
        (lambda: nn.Sequential(nn.Conv3d(4, 6, 2), nn.BatchNorm3d(6)), VOLUME, 1, 0),
        (lambda: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)), ROW, 1, 0),
        (lambda: nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1)), IMAGE, 1, 1),
        (OneNormTwice, IMAGE, 2, 2),
        (OneLayerTwice, IMAGE, 2, 2),
        (ReadBeforeTheNorm, IMAGE, 1, 1),
        (MadeWeights, IMAGE, 1, 1),
    ],
    ids=[
        "convolution", "grouped, with bias", "norm without scale", "transposed", "transposed, grouped", "volume",
        "linear", "before a convolution", "one norm twice", "one layer twice", "read before the norm",
        "weights made in the graph",
    ],
)  # fmt: skip
def test_no_norm_is_left_and_the_output_stays(
    make: Callable[[], nn.Module], shape: tuple[int, ...], norms: int, products: int
) -> None:
    torch.manual_seed(0)
    model = with_random_statistics(make())
    originals = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    inputs = torch.randn(shape)
    expected = model(inputs)
    program = torch.export.export(model, (inputs,))
    assert fold_batch_norms(program, originals) == norms
    operators = Counter(node.target for node in program.graph.nodes)
    assert operators[BATCH_NORM] == 0
    assert operators[torch.ops.aten.mul.Tensor] == products
    torch.testing.assert_close(program.module()(inputs), expected, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(tensor, originals[name]) for name, tensor in model.state_dict().items())


def test_a_norm_that_takes_the_statistics_of_the_batch_stays() -> None:
    model = BatchStatistics().eval()
    program = torch.export.export(model, (torch.randn(IMAGE),))
    assert fold_batch_norms(program, dict(model.state_dict())) == 0
    assert any(node.target is BATCH_NORM for node in program.graph.nodes)


def test_folded_weights_are_rounded_once_from_what_double_precision_gives() -> None:
    torch.manual_seed(0)
    model = with_random_statistics(nn.Sequential(nn.Conv2d(4, 8, 1, bias=False), nn.BatchNorm2d(8)))
    originals = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    program = torch.export.export(model.half(), (torch.zeros(IMAGE, dtype=torch.float16),))
    fold_batch_norms(program, originals)
    scale = originals["1.weight"].double() / (originals["1.running_var"].double() + 1e-5).sqrt()
    wanted = (originals["0.weight"].double() * scale.view(-1, 1, 1, 1)).half()
    assert torch.equal(program.state_dict["0.weight"], wanted)


def test_a_variance_beyond_float16_is_folded_all_the_same() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()).eval()
    nn.init.constant_(model[0].running_var, 1e6)
    originals = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images = 1000 * torch.ones(IMAGE)
    program = torch.export.export(model.half(), (images.half(),))
    fold_batch_norms(program, originals)
    torch.testing.assert_close(program.module()(images.half()), torch.ones(IMAGE).half(), rtol=1e-3, atol=0)
