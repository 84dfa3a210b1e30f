"""Where the sizes in the code will be rewritten, they hold nothing together: labels for editing the exported graph."""

import torch
from torch import Tensor, nn

from prune2deploy.graph.channels import FROZEN
from prune2deploy.graph.trace import trace


class Net(nn.Module):
    """A stem, some 1x1 convolutions by name, and a body that uses them."""

    def __init__(self, body, *, width: int = 8, **widths: tuple[int, int]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.layers = nn.ModuleDict({name: nn.Conv2d(*pair, 1) for name, pair in widths.items()})
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.layers, self.stem(x)).mean((2, 3))


def in_parts(m, x: Tensor) -> Tensor:
    first, second = x.split([3, 5], 1)
    return m["a"](first) + m["b"](second)


def in_chunks(m, x: Tensor) -> Tensor:
    first, second = x.chunk(2, 1)
    return m["a"](first) + m["b"](second)


def in_slices(m, x: Tensor) -> Tensor:
    return m["a"](x[:, :3]) + m["b"](x[:, -5:])


def test_parts_of_a_dimension_have_widths_of_their_own_and_none_becomes_empty(see, prove_labels) -> None:
    for body, first in ((in_parts, 3), (in_chunks, 4), (in_slices, 3)):
        seen = see(Net(body, a=(first, 4), b=(8 - first, 4)), sizes_are_free=True)
        assert [len(group.channels) for group in seen.graph.groups] == [first, 8 - first]
        produced = seen.channels("stem.weight", 0)
        assert len(set(produced)) == 8
        assert seen.channels("layers.a.weight", 1) == produced[:first]
        assert seen.channels("layers.b.weight", 1) == produced[first:]
        prove_labels(seen)


def test_overlapping_slices_each_keep_a_channel(see, prove_labels) -> None:
    seen = see(Net(lambda m, x: m["a"](x[:, :5]) + m["b"](x[:, 3:]), a=(5, 4), b=(5, 4)), sizes_are_free=True)
    assert [len(group.channels) for group in seen.graph.groups] == [3, 2, 3]
    prove_labels(seen)


def test_padded_channels_leave_with_what_they_are_added_to(see, prove_labels) -> None:
    def body(m, x: Tensor) -> Tensor:
        return m["out"](nn.functional.pad(x, (0, 0, 0, 0, 1, 3)) + m["a"](x))

    seen = see(Net(body, a=(8, 12), out=(12, 4)), sizes_are_free=True)
    grown = seen.channels("layers.a.weight", 0)
    assert grown[1:9] == seen.channels("stem.weight", 0)
    assert len(set(grown)) == 12
    prove_labels(seen)


def test_padding_that_is_not_zero_still_freezes(see) -> None:
    seen = see(Net(lambda m, x: m["out"](nn.functional.pad(x, (0, 0, 0, 0, 1, 0), value=1.0)), out=(9, 4)),
               sizes_are_free=True)  # fmt: skip
    assert "is padded by a number written in the code" in seen.frozen("stem.weight")


class WithConstants(nn.Module):
    """Scales by constants that no ``state_dict`` holds, and adds repeated and written ones."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = nn.Linear(5, 8), nn.Linear(8, 3)
        self.register_buffer("scale", torch.rand(8) + 0.5, persistent=False)
        self.shift = torch.rand(8)
        self.level = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x) * self.scale + self.shift + self.level.expand(8) + x.new_ones(1, 8)
        return self.out(torch.where(x > 0, x, torch.zeros_like(x)))


def test_constants_are_cut_too(see, prove_labels) -> None:
    seen = see(WithConstants(), (1, 5), sizes_are_free=True)
    assert seen.widths == {"stem": 8}
    assert [axis.tensor for axis in seen.graph.axes] == ["stem.weight", "stem.bias", "out.weight"]
    prove_labels(seen)


def test_the_size_of_a_single_head_may_shrink_and_its_scale_stays(see, prove_labels) -> None:
    class SingleHead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.out = nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(5, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(nn.functional.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)))

    seen = see(SingleHead(), (1, 4, 5), sizes_are_free=True)
    assert seen.widths == {"q": 8, "v": 6}
    attention = next(node for node in seen.trace.program.graph.nodes if "scaled_dot" in node.name)
    assert attention.kwargs["scale"] == 8**-0.5
    prove_labels(seen)


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.dropout(self.norm(self.conv(x)).relu(), 0.1, self.training)
        return self.out(x.flatten(2).mean(2))


def test_another_export_of_a_model_has_the_same_channels() -> None:
    model = Mixed()
    traced = trace(model, torch.randn(1, 3, 6, 6), sizes_are_free=True)
    batch = torch.export.Dim("batch", min=2)
    with torch.no_grad():
        program = torch.export.export(model.train(), (torch.randn(4, 3, 6, 6),), dynamic_shapes=({0: batch},))
    again, channels = traced.interpreted_again(model, program)
    [flat] = [value for name, value in again.values.items() if name.startswith("flatten")]
    assert flat.shape == (4, 8, 16)
    labels = flat.labels_of(1)
    assert channels[labels].tolist() == traced.graph.groups[0].channels.tolist()
    output = again.values["linear"].labels_of(1)
    assert (channels[output] == FROZEN).all()


class WithoutGradient(nn.Module):
    """Computes a part without gradients, nested, which the export wraps in operators of higher order."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            x = self.first(x).relu()
            with torch.enable_grad():
                x = self.second(x)
        return self.out(x * 2)


def test_what_runs_in_another_mode_is_followed(see, prove_random_cut) -> None:
    seen = see(WithoutGradient(), (1, 5))
    assert seen.widths == {"first": 8, "second": 6}
    assert not [node for node in seen.trace.program.graph.nodes if "wrap" in str(node.target)]
    prove_random_cut(seen)
