"""Blocks that well-known networks are built of, each cut at random and proved."""

import torch
from torch import Tensor, nn


class Net(nn.Module):
    """A stem of ``width`` channels, some layers by name, a body that uses them, and a classifier."""

    def __init__(self, body, *, width: int = 8, out: int = 8, **layers: nn.Module) -> None:
        super().__init__()
        self.stem, self.out = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(out, 4, 1)
        self.layers = nn.ModuleDict(layers)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(self.layers, self.stem(x))).mean((2, 3))


def space_to_depth(_: nn.ModuleDict, x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    x = x.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(batch, channels * 4, height // 2, width // 2)


def test_space_to_depth_repeats_the_channels(see, prove_random_cut) -> None:
    seen = see(Net(space_to_depth, out=32))
    assert seen.widths == {"stem": 8}
    assert seen.channels("out.weight", 1) == 4 * seen.channels("stem.weight", 0)
    prove_random_cut(seen)


def split_attention(m: nn.ModuleDict, x: Tensor) -> Tensor:
    """Two branches of one convolution, weighed against each other channel by channel."""
    branches = m["wide"](x).relu().unflatten(1, (2, -1))
    weights = m["up"](m["down"](branches.sum(1).mean((2, 3), keepdim=True)).relu())
    weights = weights.view(weights.shape[0], 1, 2, -1).transpose(1, 2).softmax(1).reshape(weights.shape[0], -1)
    return (branches * weights.view(weights.shape[0], 2, -1, 1, 1)).sum(1)


def test_split_attention_couples_its_branches_channel_by_channel(see, prove_random_cut) -> None:
    layers = {"wide": nn.Conv2d(8, 12, 1), "down": nn.Conv2d(6, 4, 1), "up": nn.Conv2d(4, 12, 1)}
    seen = see(Net(split_attention, out=6, **layers))
    assert seen.widths == {"stem": 8, "layers.wide": 6, "layers.down": 4}
    produced = seen.channels("layers.wide.weight", 0)
    assert produced == 2 * produced[:6] == seen.channels("layers.up.weight", 0)
    prove_random_cut(seen)


def mixed_depthwise(m: nn.ModuleDict, x: Tensor) -> Tensor:
    small, large = x.split([3, 5], 1)
    return torch.cat([m["small"](small), m["large"](large)], 1)


def test_depthwise_convolutions_of_several_kernels_keep_their_channels_apart(see, prove_labels) -> None:
    layers = {"small": nn.Conv2d(3, 3, 3, padding=1, groups=3), "large": nn.Conv2d(5, 5, 5, padding=2, groups=5)}
    seen = see(Net(mixed_depthwise, **layers), sizes_are_free=True)
    produced = seen.channels("stem.weight", 0)
    assert len(set(produced)) == 8
    assert seen.channels("layers.small.weight", 0) == produced[:3]
    assert seen.channels("layers.large.bias", 0) == produced[3:]
    assert seen.channels("out.weight", 1) == produced
    prove_labels(seen)


def neighbours(_: nn.ModuleDict, x: Tensor) -> Tensor:
    return nn.functional.unfold(x, 3, padding=1).unflatten(2, x.shape[2:])


def test_unfolded_channels_bring_their_neighbours(see, prove_random_cut) -> None:
    seen = see(Net(neighbours, out=72))
    assert seen.channels("out.weight", 1) == [one for one in seen.channels("stem.weight", 0) for _ in range(9)]
    prove_random_cut(seen)


def folded(_: nn.ModuleDict, x: Tensor) -> Tensor:
    return nn.functional.fold(x.flatten(2), (13, 13), 2)


def test_folded_columns_leave_with_their_channel(see, prove_random_cut) -> None:
    seen = see(Net(folded, width=16, out=4))
    assert seen.channels("stem.weight", 0) == [one for one in seen.channels("out.weight", 1) for _ in range(4)]
    prove_random_cut(seen)


def in_windows(_: nn.ModuleDict, x: Tensor) -> Tensor:
    return x.unfold(2, 4, 4).unfold(3, 4, 4).amax((4, 5))


def test_windows_of_space_leave_the_channels_free(see, prove_random_cut) -> None:
    seen = see(Net(in_windows))
    assert seen.channels("out.weight", 1) == seen.channels("stem.weight", 0)
    prove_random_cut(seen)


class StochasticDepth(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        keep = x.new_empty((x.shape[0],) + (1,) * (x.dim() - 1)).bernoulli_(0.8)
        return x * keep.div_(0.8) if self.training else x


def residual(m: nn.ModuleDict, x: Tensor) -> Tensor:
    return x + m["drop"](m["conv"](x))


def test_stochastic_depth_leaves_the_channels_free_in_training(see) -> None:
    seen = see(Net(residual, drop=StochasticDepth(), conv=nn.Conv2d(8, 8, 1)))
    program = torch.export.export(seen.model.train(), (torch.randn(2, 3, 12, 12),), strict=False)
    again, channels = seen.trace.interpreted_again(seen.model, program)
    added = again.values["add"].labels_of(1)
    assert channels[added].tolist() == seen.channels("stem.weight", 0)


def aggregated(m: nn.ModuleDict, x: Tensor) -> Tensor:
    """Three versions of each token weighed by a convolution of one position, with channels as its space."""
    tokens = x.flatten(2).transpose(1, 2)[:, :3]
    scale = m["weigh"](tokens).transpose(1, 2).unsqueeze(-1)
    return x * scale


def test_a_convolution_of_one_position_leaves_its_space_free(see, prove_random_cut) -> None:
    seen = see(Net(aggregated, weigh=nn.Conv1d(3, 1, 1)))
    assert seen.widths == {"stem": 8}
    prove_random_cut(seen)


class SharedTwice(nn.Module):
    """One normalised convolution called on two scales, its weight also read transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared, self.norm = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.GroupNorm(3, 6)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        fine = self.norm(self.shared(x))
        coarse = nn.functional.interpolate(self.norm(self.shared(nn.functional.avg_pool2d(x, 2))), scale_factor=2.0)
        return self.out(nn.functional.conv_transpose2d((fine + coarse).relu(), self.shared.weight).mean((2, 3)))


def test_a_block_called_on_two_scales_with_a_tied_decoder_is_cut_once(see, prove_random_cut) -> None:
    seen = see(SharedTwice())
    assert seen.widths == {"stem": 8, "shared": 3}
    assert seen.channels("out.weight", 1) == seen.channels("stem.weight", 0)
    prove_random_cut(seen)


def pooled_heads(m: nn.ModuleDict, x: Tensor) -> Tensor:
    """Heads within the batch, pooled by kernels that they share, and merged again."""
    batch, _, height, width = x.shape
    heads = m["embed"](x.flatten(2).transpose(1, 2)).reshape(batch, height * width, 3, 4).permute(0, 2, 3, 1)
    pooled = m["pool"](heads.reshape(batch * 3, 4, height, width))
    normed = m["norm"](pooled.reshape(batch, 3, 4, -1).transpose(2, 3))
    merged = m["project"](normed.transpose(1, 2).reshape(batch, -1, 12))
    return merged.transpose(1, 2).unflatten(2, (height // 2, width // 2))


def test_heads_leave_that_share_the_kernels_of_a_depthwise_convolution(see, prove_edited_cut) -> None:
    layers = {
        "embed": nn.Linear(8, 12),
        "pool": nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4),
        "norm": nn.LayerNorm(4),
        "project": nn.Linear(12, 8),
    }
    seen = see(Net(pooled_heads, **layers), sizes_are_free=True)
    assert seen.widths == {"stem": 8, "layers.embed": 3, "layers.project": 8}
    prove_edited_cut(seen)
