import copy

import pytest
import torch
from torch import Tensor, nn

from prune2deploy.errors import ModelError
from prune2deploy.graph.trace import trace


class Small(nn.Module):
    """conv - function - conv, pooled."""

    def __init__(self, function=None) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.function = function or torch.relu

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x))).mean((2, 3))


def test_an_unknown_operator_freezes_what_reaches_it_and_is_named_with_its_place(see) -> None:
    seen = see(Small(lambda x: torch.diagonal_scatter(x, x.diagonal(0, 2, 3), 0, 2, 3)))
    assert seen.widths == {}
    assert "passes through an operator that has no rule [aten.diagonal" in seen.frozen("first.weight")
    assert "test_trace.py:" in seen.place("first.weight")


@pytest.mark.parametrize("recurrent", [nn.LSTM(8, 12, proj_size=8, batch_first=True)])
def test_recurrent_layers_with_a_projection_freeze_and_the_rest_is_still_cut(
    see, prove_random_cut, recurrent: nn.Module
) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.recurrent = nn.Linear(5, 8), recurrent
            self.up, self.out = nn.Linear(8, 16), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.up(self.recurrent(self.embed(x))[0]).relu())

    seen = see(Recurrent(), (1, 4, 5))
    assert seen.widths == {"up": 16}
    assert "passes through a recurrent layer with a projection" in seen.frozen("embed.weight")
    assert seen.graph.cost.dense_parameters == sum(one.numel() for one in seen.model.parameters())


def test_outputs_in_dictionaries_and_tuples_are_frozen_and_proven(see, prove_random_cut) -> None:
    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> dict[str, object]:
            x = self.stem(x).relu()
            return {"b": self.b(x), "rest": (self.a(x), [x.mean((2, 3)).sum(1)], None, 7)}

    seen = see(Many())
    assert seen.widths == {"stem": 8}
    assert "is an output of the model" in seen.frozen("a.weight")
    assert "is an output of the model" in seen.frozen("b.weight")
    prove_random_cut(seen)


def test_several_inputs_are_frozen_and_proven(see, prove_random_cut) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.image, self.number, self.out = nn.Conv2d(3, 8, 1), nn.Embedding(10, 8), nn.Linear(8, 3)

        def forward(self, image: Tensor, number: Tensor) -> Tensor:
            return self.out(self.image(image).mean((2, 3)) + self.number(number))

    seen = see(Two(), (1, 3, 6, 6), torch.tensor([4]))
    assert seen.widths == {"image": 8}
    assert seen.channels("number.weight", 1) == seen.channels("image.weight", 0)
    assert seen.channels("number.weight", 0) == [-1] * 10
    prove_random_cut(seen)


def test_nested_inputs_are_proven(see, prove_random_cut) -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.out = nn.Linear(5, 8), nn.Linear(8, 3)

        def forward(self, batch: dict[str, list[Tensor]]) -> Tensor:
            return self.out(self.first(batch["x"][0] + batch["x"][1]))

    seen = see(Nested(), {"x": [torch.randn(1, 5), torch.randn(1, 5)]})
    assert seen.widths == {"first": 8}
    prove_random_cut(seen)


def test_control_flow_on_data_is_refused_with_the_line() -> None:
    def branches(x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x

    with pytest.raises(ModelError, match=r"test_trace\.py:\d+: the model cannot be exported: .+; rewrite"):
        trace(Small(branches), torch.randn(1, 3, 4, 4))


def test_a_forward_that_fails_by_itself_is_told_from_one_that_cannot_be_exported() -> None:
    message = r"test_trace\.py:\d+: the model fails on inputs of shape \(1, 3, 4, 5\): .+; pass the input size"
    with pytest.raises(ModelError, match=message):
        trace(Small(lambda x: x @ torch.ones(2, 2)), torch.randn(1, 3, 4, 5))


def test_sizes_that_depend_on_data_are_refused_by_name() -> None:
    class Selects(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(5, 8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return x[x > 0].sum()

    with pytest.raises(ModelError, match=r"size that depends on data"):
        trace(Selects(), torch.randn(1, 5))


def test_tracing_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.Conv2d(8, 4, 1))
    model.train()
    model[1].eval()
    before = copy.deepcopy(model.state_dict())
    random_state = torch.get_rng_state()
    trace(model, torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0)))
    assert [module.training for module in model] == [True, False, True, True]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(random_state, torch.get_rng_state())


def test_a_group_whose_channels_are_all_tied_is_frozen_with_that_reason(see) -> None:
    class Spins(nn.Module):
        """Adds every channel to its neighbour, so that none can leave alone."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.out = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            for _ in range(3):
                first, second = x.chunk(2, 1)
                x = nn.functional.channel_shuffle(torch.cat([first, second + first], 1), 2)
            return self.out(x).mean((2, 3))

    seen = see(Spins())
    assert seen.widths == {}
    assert seen.frozen("conv.weight")


def test_parameters_that_no_operator_uses_stay_and_are_counted(see, prove_random_cut) -> None:
    model = Small()
    model.unused = nn.Linear(7, 11)
    seen = see(model)
    assert seen.graph.cost.dense_parameters == sum(one.numel() for one in model.parameters())
    prove_random_cut(seen)


def test_frozen_parameters_of_a_model_are_cut_like_others(see, prove_random_cut) -> None:
    model = Small()
    model.first.requires_grad_(False)
    prove_random_cut(see(model))


def test_groups_that_are_frozen_later_keep_their_reason_and_the_cost_stays_right(see, prove_random_cut) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 4, 1), nn.Flatten(), nn.Linear(64, 2))
    seen = see(model, (1, 3, 4, 4))
    fewer = seen.trace.without_groups({1: "because the test says so"})
    assert [group.name for group in fewer.graph.groups] == ["0", "2"]
    assert fewer.graph.frozen[-1].reason == "because the test says so"
    assert fewer.graph.frozen[-1].axes == (("1.weight", 0),)
    assert fewer.graph.cost.dense_flops == seen.graph.cost.dense_flops
    again = type(seen)(model=model, inputs=seen.inputs, trace=fewer)
    assert again.channels("1.weight", 0) == [-1] * 6
    prove_random_cut(again)
