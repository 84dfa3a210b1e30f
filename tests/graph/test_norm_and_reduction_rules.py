import pytest
from torch import Tensor, nn


def stem(width: int, *rest: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, width, 1), *rest, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4))


class Function(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


class ChannelsLast(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("norm", [nn.LayerNorm(8), nn.RMSNorm(8)])
def test_norms_over_channels_are_cut_and_marked_inexact(see, prove_random_cut, norm: nn.Module) -> None:
    seen = see(stem(8, ChannelsLast(norm)))
    assert seen.widths == {"0": 8}
    assert not seen.graph.groups[0].exact
    assert seen.channels("1.inner.weight", 0) == seen.channels("0.weight", 0)
    prove_random_cut(seen)


def test_batch_norm_is_exact(see) -> None:
    assert see(stem(8, nn.BatchNorm2d(8))).graph.groups[0].exact


def test_batch_norm_without_running_statistics_is_exact(see, prove_random_cut) -> None:
    seen = see(stem(8, nn.BatchNorm2d(8, track_running_stats=False)))
    assert seen.widths == {"0": 8}
    prove_random_cut(seen)


def test_layer_norm_over_a_map_keeps_the_map(see) -> None:
    seen = see(stem(8, nn.LayerNorm((8, 12, 12))))
    assert "is normalised over a size that is not a parameter's [aten.layer_norm.default]" in seen.frozen("0.weight")


def test_layer_norm_without_parameters_keeps_its_size(see) -> None:
    seen = see(stem(8, ChannelsLast(nn.LayerNorm(8, elementwise_affine=False))))
    assert "is normalised over a size that is not a parameter's" in seen.frozen("0.weight")


def test_group_norm_loses_whole_groups_exactly(see, prove_random_cut) -> None:
    seen = see(stem(12, nn.GroupNorm(4, 12)))
    assert seen.widths == {"0": 4}
    assert seen.channels("0.weight", 0) == [channel for channel in range(4) for _ in range(3)]
    assert seen.graph.groups[0].exact
    prove_random_cut(seen)


def test_group_norm_with_one_group_is_inexact(see, prove_random_cut) -> None:
    seen = see(stem(8, nn.GroupNorm(1, 8)))
    assert seen.widths == {"0": 8}
    assert not seen.graph.groups[0].exact
    prove_random_cut(seen)


def test_group_norm_without_parameters_keeps_its_channels(see) -> None:
    seen = see(stem(8, nn.GroupNorm(2, 8, affine=False)))
    assert seen.widths == {}
    assert "is normalised in groups" in seen.frozen("0.weight")


@pytest.mark.filterwarnings("ignore:input's size at dim=1 does not match num_features")
@pytest.mark.parametrize("affine", [True, False])
def test_instance_norm_is_exact(see, prove_random_cut, affine: bool) -> None:
    seen = see(stem(8, nn.InstanceNorm2d(8, affine=affine)))
    assert seen.widths == {"0": 8}
    prove_random_cut(seen)


class SpaceAsChannels(nn.Module):
    """A linear layer over positions, whose outputs lie in the last dimension when a norm follows."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.mix, self.norm, self.out = nn.Linear(6, 10), norm, nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.mix(x)))


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 4), nn.InstanceNorm1d(4)])
def test_statistics_over_produced_positions_freeze_them(see, norm: nn.Module) -> None:
    seen = see(SpaceAsChannels(norm), (1, 4, 6))
    assert seen.widths == {}
    assert "is normalised over this dimension" in seen.frozen("mix.weight")


def test_batch_statistics_over_produced_positions_are_those_of_what_stays(see, prove_random_cut) -> None:
    seen = see(SpaceAsChannels(nn.BatchNorm1d(4, track_running_stats=False)), (1, 4, 6))
    assert seen.widths == {"mix": 10}
    assert not seen.graph.groups[0].exact
    prove_random_cut(seen)


@pytest.mark.parametrize(
    ("function", "operator"),
    [
        (lambda x: x.argmax(1, keepdim=True) + x, "aten.argmax.default"),
        (lambda x: x.cumsum(1), "aten.cumsum.default"),
        (lambda x: x.sort(1)[0], "aten.sort.default"),
        (lambda x: x.softmax(1), "aten.softmax.int"),
        (lambda x: x.roll(1, 1), "aten.roll.default"),
    ],
)
def test_what_needs_all_channels_at_once_freezes_them(see, function, operator: str) -> None:
    seen = see(stem(8, Function(function)))
    assert seen.widths == {}
    assert operator in seen.frozen("0.weight")


@pytest.mark.parametrize(
    ("function", "exact"),
    [
        (lambda x: x.mean(1, keepdim=True) + x, False),
        (lambda x: x.amax(1, keepdim=True) + x, False),
        (lambda x: x.max(1, keepdim=True)[0] + x, False),
        (lambda x: x.std((1, 2), keepdim=True) + x, False),
        (lambda x: x / x.norm(dim=1, keepdim=True), True),
        (lambda x: nn.functional.normalize(x, dim=1), True),
    ],
)
def test_statistics_over_channels_are_those_of_what_stays(see, prove_random_cut, function, exact: bool) -> None:
    seen = see(stem(8, Function(function)))
    assert seen.widths == {"0": 8}
    assert seen.graph.groups[0].exact is exact
    prove_random_cut(seen)


def test_a_sum_over_channels_is_exact(see, prove_random_cut) -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.out = nn.Conv2d(3, 8, 1), nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.conv(x).exp().sum((1, 2)))

    seen = see(Sum())
    assert seen.widths == {"conv": 8}
    assert [read.dim for read in seen.trace.reads] == [1]
    prove_random_cut(seen)


@pytest.mark.parametrize("function", [lambda x: x.mean((2, 3), keepdim=True) * x, lambda x: x.softmax(2)])
def test_reductions_over_space_leave_channels_free(see, prove_random_cut, function) -> None:
    seen = see(stem(8, Function(function)))
    assert seen.widths == {"0": 8}
    prove_random_cut(seen)
