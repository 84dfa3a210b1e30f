import pytest
import torch
from torch import Tensor, nn

from prune2deploy.graph.channels import Role


def head(width: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5)]


def roles(seen, tensor: str) -> dict[int, Role]:
    return {axis.dim: axis.role for axis in seen.graph.axes if axis.tensor == tensor}


def test_a_channel_is_a_filter_with_its_norm_and_the_slices_that_read_it(see, prove_random_cut) -> None:
    seen = see(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1), *head(4)))
    assert seen.widths == {"0": 8, "3": 4}
    produced = seen.channels("0.weight", 0)
    assert len(set(produced)) == 8
    for name in ("0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"):
        assert seen.channels(name, 0) == produced
    assert seen.channels("3.weight", 1) == produced
    assert roles(seen, "0.weight") == {0: Role.PRODUCER}
    assert roles(seen, "3.weight") == {0: Role.PRODUCER, 1: Role.CONSUMER}
    assert roles(seen, "1.running_mean") == {0: Role.AFFINE}
    prove_random_cut(seen)


def test_input_and_output_are_frozen_with_a_reason(see) -> None:
    seen = see(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)))
    assert seen.channels("0.weight", 1) == [-1] * 3
    assert seen.channels("1.weight", 0) == [-1] * 4
    assert seen.frozen("1.weight") == "is an output of the model [output]"


def test_depthwise_kernels_ride_on_their_channel(see, prove_random_cut) -> None:
    seen = see(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 4, 1), *head(4)))
    assert seen.channels("1.weight", 0) == seen.channels("0.weight", 0) == seen.channels("3.weight", 1)
    assert roles(seen, "1.weight") == {0: Role.AFFINE}
    prove_random_cut(seen)


def test_a_depthwise_multiplier_gives_each_channel_several_kernels(see, prove_random_cut) -> None:
    seen = see(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 3, groups=8), *head(16)))
    produced = seen.channels("0.weight", 0)
    assert seen.channels("1.weight", 0) == [channel for channel in produced for _ in range(2)]
    prove_random_cut(seen)


def test_many_narrow_convolution_groups_leave_whole(see, prove_random_cut) -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3, groups=8), nn.ReLU(), nn.Conv2d(16, 4, 1), *head(4))
    seen = see(model)
    assert seen.widths == {"0": 8, "3": 4}
    produced = seen.channels("1.weight", 0)
    assert produced == [channel for channel in sorted(set(produced)) for _ in range(2)]
    assert seen.channels("0.weight", 0) == produced
    assert seen.graph.groups[0].positions == 2
    assert seen.graph.groups[0].width == 16
    prove_random_cut(seen)


def test_few_wide_convolution_groups_lose_the_same_positions(see, prove_random_cut) -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3, groups=2), nn.ReLU(), nn.Conv2d(16, 4, 1), *head(4))
    seen = see(model)
    assert seen.widths == {"0": 8, "1": 8, "3": 4}
    assert seen.channels("0.weight", 0) == 2 * seen.channels("1.weight", 1)
    assert seen.channels("1.weight", 0)[:8] == seen.channels("1.weight", 0)[8:]
    prove_random_cut(seen)


def test_a_grouped_convolution_of_the_input_keeps_its_groups(see, prove_random_cut) -> None:
    seen = see(nn.Sequential(nn.Conv2d(4, 16, 3, groups=2), nn.ReLU(), *head(16)), (1, 4, 8, 8))
    assert seen.channels("0.weight", 1) == [-1, -1]
    assert seen.channels("0.weight", 0)[:8] == seen.channels("0.weight", 0)[8:]
    prove_random_cut(seen)


def test_a_transposed_convolution_is_cut_on_both_sides(see, prove_random_cut) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 6, 2, stride=2), nn.BatchNorm2d(6), *head(6))
    seen = see(model)
    assert seen.widths == {"0": 8, "1": 6}
    assert seen.channels("1.weight", 0) == seen.channels("0.weight", 0)
    assert seen.channels("1.weight", 1) == seen.channels("1.bias", 0) == seen.channels("2.weight", 0)
    prove_random_cut(seen)


def test_a_depthwise_transposed_convolution_rides_on_its_channel(see, prove_random_cut) -> None:
    seen = see(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 8, 2, stride=2, groups=8), *head(8)))
    assert seen.channels("1.weight", 0) == seen.channels("0.weight", 0)
    assert roles(seen, "1.weight") == {0: Role.AFFINE}
    prove_random_cut(seen)


def test_a_grouped_transposed_convolution_loses_whole_groups_or_the_same_positions_of_all(
    see, prove_random_cut
) -> None:
    whole = see(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 16, 2, groups=4), *head(16)))
    assert whole.widths == {"0": 4}
    assert whole.channels("1.weight", 0) == [channel for channel in range(4) for _ in range(2)]
    assert roles(whole, "1.weight") == {0: Role.AFFINE}
    prove_random_cut(whole)
    positions = see(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 12, 2, groups=2), *head(12)))
    assert positions.widths == {"0": 4, "1": 6}
    assert positions.channels("1.weight", 0) == 2 * positions.channels("1.weight", 0)[:4]
    assert positions.channels("1.bias", 0) == 2 * positions.channels("1.weight", 1)
    prove_random_cut(positions)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        pytest.param(
            nn.Sequential(nn.Conv2d(3, 8, 3, dilation=2, padding=2, padding_mode="reflect"), nn.SiLU(), *head(8)),
            (1, 3, 12, 12),
            id="dilated, reflection-padded",
        ),
        pytest.param(
            nn.Sequential(nn.Conv2d(3, 8, 3, padding="same"), nn.Conv2d(8, 6, 3, padding="valid"), *head(6)),
            (1, 3, 12, 12),
            id="padding by name",
        ),
        pytest.param(
            nn.Sequential(
                nn.Conv1d(3, 8, 3),
                nn.BatchNorm1d(8),
                nn.MaxPool1d(2),
                nn.Conv1d(8, 6, 3),
                nn.AdaptiveAvgPool1d(1),
                nn.Flatten(),
                nn.Linear(6, 2),
            ),
            (1, 3, 20),
            id="one spatial dimension",
        ),
        pytest.param(
            nn.Sequential(nn.Conv3d(2, 8, 3), nn.BatchNorm3d(8), nn.AvgPool3d(2), nn.Conv3d(8, 4, 1), nn.Flatten()),
            (1, 2, 6, 6, 6),
            id="three spatial dimensions",
        ),
    ],
)
def test_convolutions_of_all_kinds_are_cut_exactly(see, prove_random_cut, model: nn.Module, shape: tuple) -> None:
    prove_random_cut(see(model, shape))


def test_flops_at_the_input_size_are_those_of_batch_one(see) -> None:
    seen = see(nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.Flatten(), nn.Linear(8 * 100, 5)))
    assert seen.graph.cost.dense_flops == 2 * (8 * 3 * 9 * 100 + 800 * 5)
    assert seen.graph.cost.flops_by_layer(seen.graph.everything()) == {"0": 2 * 8 * 3 * 9 * 100, "2": 2 * 800 * 5}


class ChannelsInTheBatch(nn.Module):
    """Blurs every channel by itself: channels are moved into the batch and convolved with one kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)
        self.blur = nn.Conv2d(1, 1, 3, padding=1)
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        batch, _, height, width = x.shape
        x = self.blur(x.reshape(-1, 1, height, width)).reshape(batch, -1, height, width)
        return self.last(x.mean((2, 3)))


def test_channels_moved_into_the_batch_of_a_convolution_still_leave(see, prove_random_cut) -> None:
    seen = see(ChannelsInTheBatch())
    assert seen.widths == {"conv": 8}
    assert seen.channels("last.weight", 1) == seen.channels("conv.weight", 0)
    prove_random_cut(seen)


class StandardisedConvolution(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return nn.functional.conv2d(x, weight, self.bias)


class NormalisedConvolution(nn.Conv2d):
    """Standardises its weight by the statistics of a batch norm, as normaliser-free networks do."""

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        weight = nn.functional.batch_norm(rows, None, None, training=True, momentum=0.0).reshape_as(self.weight)
        return nn.functional.conv2d(x, weight, self.bias)


@pytest.mark.parametrize("kind", [StandardisedConvolution, NormalisedConvolution])
def test_a_weight_that_is_standardised_over_its_inputs_loses_them_inexactly(see, prove_random_cut, kind) -> None:
    seen = see(nn.Sequential(kind(3, 8, 3), kind(8, 6, 3), *head(6)))
    assert seen.widths == {"0": 8, "1": 6}
    assert [group.exact for group in seen.graph.groups] == [False, True]
    prove_random_cut(seen)


def test_weight_norm_loses_inputs_inexactly(see, prove_random_cut) -> None:
    wrapped = nn.utils.parametrizations.weight_norm
    seen = see(nn.Sequential(wrapped(nn.Conv2d(3, 8, 1)), nn.ReLU(), wrapped(nn.Conv2d(8, 6, 1)), *head(6)))
    assert list(seen.widths.values()) == [8, 6]
    assert [group.exact for group in seen.graph.groups] == [False, True]
    prove_random_cut(seen)


class EfficientChannelAttention(nn.Module):
    """A convolution that slides over the pooled channels themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.slide = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        scale = self.slide(x.mean((2, 3)).unsqueeze(1)).sigmoid().view(x.shape[0], -1, 1, 1)
        return self.last(x * scale.expand_as(x)).mean((2, 3))


def test_a_convolution_over_the_channels_is_cut_inexactly(see, prove_random_cut) -> None:
    seen = see(EfficientChannelAttention())
    assert seen.widths == {"stem": 8}
    assert not seen.graph.groups[0].exact
    prove_random_cut(seen)


class ConvolutionWithFixedBias(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1, bias=False)
        self.shift = torch.ones(8)
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(nn.functional.conv2d(x, self.conv.weight, self.shift)).mean((2, 3))


def test_a_bias_that_is_a_plain_tensor_freezes_the_filters(see) -> None:
    seen = see(ConvolutionWithFixedBias())
    assert seen.widths == {}
    assert "is scaled or shifted by data of fixed size [aten.conv2d.default]" in seen.frozen("conv.weight")
