import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from prune2deploy.graph.rectifiers import activation_name, activations_of
from prune2deploy.model.spec import ModelSpec, build_model


class Forms(nn.Module):
    """One rectifier in every way that code spells it, and operators that only look like one."""

    def __init__(self, functions):
        super().__init__()
        self.functions = functions
        self.first = nn.Conv2d(3, 8, 3)
        self.last = nn.Conv2d(8, 2, 3)

    def forward(self, image):
        hidden = self.first(image)
        for function in self.functions:
            hidden = function(hidden)
        return self.last(hidden)


FORMS = {
    "relu": torch.relu,
    "relu method": lambda x: x.relu(),
    "relu in place": lambda x: functional.relu(x * 1, inplace=True),
    "relu6": functional.relu6,
    "relu6 in place": lambda x: functional.relu6(x * 1, inplace=True),
    "hardtanh": lambda x: functional.hardtanh(x, 0.0, 4.0),
    "clamp": lambda x: x.clamp(min=0),
    "clamp both": lambda x: torch.clamp(x, 0, 6),
    "clamp_min": lambda x: x.clamp_min(0),
    "threshold": lambda x: functional.threshold(x, 0, 0),
    "gelu": functional.gelu,
    "silu": lambda x: functional.silu(x * 1, inplace=True),
    "selu": functional.selu,
    "elu": functional.elu,
    "celu": functional.celu,
    "leaky_relu": functional.leaky_relu,
    "hardswish": functional.hardswish,
    "mish": functional.mish,
    "softplus": functional.softplus,
    "prelu": nn.PReLU(8),
}
OTHERS = {
    "hardtanh below zero": functional.hardtanh,
    "clamp off zero": lambda x: x.clamp(min=1e-6),
    "clamp from above": lambda x: x.clamp(max=0.5),
    "threshold to one": lambda x: functional.threshold(x, 0, 1),
    "sigmoid": torch.sigmoid,
    "abs": torch.abs,
}


class Names(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(activation_name(func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_found_under_the_name_by_which_it_runs(see, form):
    model = Forms([FORMS[form]])
    (found,) = activations_of(see(model).trace)
    with Names() as running:
        model.train()(torch.randn(2, 3, 12, 12))
    assert [name for name in running.names if name] == [found.operator]
    smooth = {"gelu", "silu", "selu", "elu", "celu", "leaky_relu", "hardswish", "mish", "softplus", "prelu"}
    assert found.rectifies == (form not in smooth)
    assert found.rank == 4


@pytest.mark.parametrize("form", OTHERS)
def test_operators_that_do_not_cut_at_zero_are_none(see, form):
    assert activations_of(see(Forms([OTHERS[form]])).trace) == ()


def test_activations_come_in_order_with_the_channels_that_they_see(see):
    model = Forms([torch.relu, functional.gelu, torch.relu])
    seen = see(model)
    found = activations_of(seen.trace)
    assert [one.operator for one in found] == ["relu", "gelu", "relu"]
    for one in found:
        (dimension,) = one.dimensions
        assert dimension.dim == 1
        assert dimension.channels.tolist() == seen.channels("first.weight", 0)
    assert "test_rectifiers.py" in found[0].place


def test_channels_follow_the_groups_that_restrictions_leave(see):
    seen = see(build_model(ModelSpec.parse("resnet20")))
    stream = {group.index: "stays" for group in seen.graph.groups if group.stream}
    restricted = seen.trace.without_groups(stream)
    found = activations_of(restricted)
    assert len(found) == 19
    inside = [one for one in found if one.dimensions]
    assert len(inside) == 9
    numbers = np.concatenate([one.dimensions[0].channels for one in inside])
    assert sorted(numbers.tolist()) == list(range(restricted.graph.channel_count))
    assert len(found) - len(inside) == 10


def test_a_concatenation_shows_all_groups_that_it_holds(see):
    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 6, 3)
            self.last = nn.Conv2d(10, 2, 1)

        def forward(self, image):
            return self.last(torch.cat([self.one(image), self.two(image)], dim=1).relu())

    seen = see(Joined())
    (found,) = activations_of(seen.trace)
    expected = seen.channels("one.weight", 0) + seen.channels("two.weight", 0)
    assert found.dimensions[0].channels.tolist() == expected
