"""Recurrent layers: hidden channels leave all gates, layers and directions at once."""

import copy

import pytest
import torch
from torch import Tensor, nn

from prune2deploy.budget.from_mask import plan_from_mask
from prune2deploy.surgery.apply import apply_plan, pruned_copy
from prune2deploy.surgery.edit import edited_copy
from prune2deploy.surgery.trial import randomised_copy
from prune2deploy.surgery.verify import prove


class Sequences(nn.Module):
    """A linear layer, a recurrent one over 5 steps, and a layer that reads what ``taken`` takes of its results."""

    def __init__(self, recurrent: nn.Module, taken, width: int) -> None:
        super().__init__()
        self.first, self.recurrent, self.last = nn.Linear(4, 6), recurrent, nn.Linear(width, 3)
        self.taken = taken

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.taken(self.recurrent(self.first(x))))


class Steps(nn.Module):
    """A cell that is called at each step, from a state of zeros."""

    def __init__(self, cell: nn.RNNCellBase) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return state[0] if isinstance(state, tuple) else state


CASES = {
    "lstm": Sequences(nn.LSTM(6, 8, batch_first=True), lambda out: out[0].mean(1), 8),
    "two layers in two directions": Sequences(
        nn.LSTM(6, 8, 2, batch_first=True, bidirectional=True), lambda out: out[0].mean(1), 16
    ),
    "last memory without biases": Sequences(nn.LSTM(6, 8, 2, bias=False), lambda out: out[1][1].sum((0, 1))[None], 8),
    "gru in two directions": Sequences(
        nn.GRU(6, 8, 2, batch_first=True, bidirectional=True), lambda out: out[0].amax(1), 16
    ),
    "plain, rectified": Sequences(nn.RNN(6, 8, nonlinearity="relu"), lambda out: out[0].mean(1), 8),
    "lstm cell": Sequences(Steps(nn.LSTMCell(6, 8)), lambda out: out, 8),
    "gru cell": Sequences(Steps(nn.GRUCell(6, 8, bias=False)), lambda out: out, 8),
}


def owner(name: str) -> str:
    return "recurrent.cell" if "cell" in name else "recurrent"


@pytest.mark.parametrize("name", CASES)
def test_hidden_channels_leave_all_gates_layers_and_directions(see, random_mask, name: str) -> None:
    seen = see(CASES[name], (1, 5, 4))
    assert seen.widths == {"first": 6, owner(name): 8}
    hidden = seen.channels(next(one for one in seen.graph.shapes if "weight_hh" in one), 1)
    for tensor, shape in seen.graph.shapes.items():
        if tensor.startswith("recurrent"):
            assert seen.channels(tensor, 0) == hidden * (shape[0] // 8)
    assert seen.channels("last.weight", 1) == hidden * (seen.graph.shapes["last.weight"][1] // 8)
    assert all(group.exact for group in seen.graph.groups)

    model, kept = randomised_copy(seen.model), random_mask(seen.graph, 0)
    pruned = pruned_copy(model, plan_from_mask(seen.graph, kept))
    prove(seen.trace, model, pruned, kept, seen.inputs)
    recurrent = pruned.get_submodule(owner(name))
    assert (recurrent.input_size, recurrent.hidden_size) == (pruned.first.out_features, recurrent.weight_hh_l0.shape[1]
        if hasattr(recurrent, "weight_hh_l0") else recurrent.weight_hh.shape[1])  # fmt: skip


@pytest.mark.parametrize("name", ["two layers in two directions", "gru cell"])
def test_the_edited_graph_of_a_recurrent_network_is_exact(see, random_mask, name: str) -> None:
    seen = see(CASES[name], (1, 5, 4), sizes_are_free=True)
    assert seen.widths == {"first": 6, owner(name): 8}
    model, kept = randomised_copy(seen.model), random_mask(seen.graph, 1)
    edited = edited_copy(model, seen.trace, plan_from_mask(seen.graph, kept), seen.inputs)
    prove(seen.trace, model, edited, kept, seen.inputs)


def test_a_recurrent_layer_that_is_cut_in_place_computes_with_its_new_tensors(see, random_mask) -> None:
    seen = see(CASES["two layers in two directions"], (1, 5, 4))
    plan = plan_from_mask(seen.graph, random_mask(seen.graph, 2))
    model = copy.deepcopy(seen.model).eval()
    expected = pruned_copy(model, plan)(*seen.inputs)
    torch.testing.assert_close(apply_plan(model, plan)(*seen.inputs), expected)


@pytest.mark.parametrize(
    ("recurrent", "taken", "reason"),
    [
        (nn.RNN(6, 5), lambda out: out[0].softmax(2).mean(1), "is shared out by a softmax"),
        (nn.GRU(6, 5), lambda out: (out[0] * torch.arange(5)).mean(1), "meets data of fixed size"),
    ],
)
def test_a_hidden_size_that_is_needed_stays_with_its_reason(see, recurrent: nn.Module, taken, reason: str) -> None:
    seen = see(Sequences(recurrent, taken, 5), (1, 5, 4))
    assert "recurrent" not in seen.widths
    assert reason in seen.frozen("recurrent.weight_hh_l0")
