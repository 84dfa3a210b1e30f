import copy

import pytest
import torch
from torch import nn

from prune2deploy.budget.plan import KeptIndices, PrunePlan, fingerprint_of
from prune2deploy.errors import ModelError
from prune2deploy.surgery.apply import apply_plan, shapes_of
from prune2deploy.surgery.optimizer import slice_optimizer_state

KEPT = (0, 2, 3)


def two_layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))


def plan_for(model):
    entries = (("0.weight", 0), ("0.bias", 0), ("2.weight", 1))
    return PrunePlan(
        fingerprint=fingerprint_of(shapes_of(model)),
        entries=tuple(KeptIndices(tensor=name, dim=dim, dense_size=5, kept=KEPT) for name, dim in entries),
    )


def step(model, optimizer):
    torch.manual_seed(1)
    optimizer.zero_grad()
    model(torch.randn(4, 3)).square().sum().backward()
    optimizer.step()


def cut(model, optimizer):
    plan, dense = plan_for(model), dict(model.named_parameters(remove_duplicate=False))
    apply_plan(model, plan)
    slice_optimizer_state(optimizer, model, plan, dense_parameters=dense)
    return dense


@pytest.mark.parametrize(
    ("make", "keys"),
    [
        (lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9), ("momentum_buffer",)),
        (lambda parameters: torch.optim.AdamW(parameters, lr=0.1), ("exp_avg", "exp_avg_sq")),
    ],
    ids=["sgd", "adamw"],
)
def test_momentum_and_moments_are_sliced_alongside_the_weights(make, keys):
    model = two_layers()
    optimizer = make(model.parameters())
    step(model, optimizer)
    before = {name: copy.deepcopy(optimizer.state[parameter]) for name, parameter in model.named_parameters()}
    cut(model, optimizer)
    kept = torch.tensor(KEPT)
    for key in keys:
        assert torch.equal(optimizer.state[model[0].weight][key], before["0.weight"][key][kept])
        assert torch.equal(optimizer.state[model[0].bias][key], before["0.bias"][key][kept])
        assert torch.equal(optimizer.state[model[2].weight][key], before["2.weight"][key][:, kept])
        assert torch.equal(optimizer.state[model[2].bias][key], before["2.bias"][key])
    if "step" in before["0.weight"]:
        assert optimizer.state[model[0].weight]["step"] == 1
    assert len(optimizer.state) == 4


def test_the_optimizer_moves_the_new_parameters_and_forgets_the_old():
    model = two_layers()
    decayed = {"params": [model[0].weight, model[2].weight], "weight_decay": 0.1}
    plain = {"params": [model[0].bias, model[2].bias], "weight_decay": 0.0}
    optimizer = torch.optim.SGD([decayed, plain], lr=0.1, momentum=0.9)
    step(model, optimizer)
    dense = cut(model, optimizer)
    groups = [[id(parameter) for parameter in group["params"]] for group in optimizer.param_groups]
    assert groups == [[id(model[0].weight), id(model[2].weight)], [id(model[0].bias), id(model[2].bias)]]
    assert dense["0.weight"] not in optimizer.state
    values = model[0].weight.detach().clone()
    step(model, optimizer)
    assert not torch.equal(values, model[0].weight)


def test_a_cut_of_dead_channels_does_not_disturb_the_training_of_the_rest():
    """Channels whose weights, and so gradients, are zero: the sliced training gives the same weights as the whole."""
    whole = two_layers()
    with torch.no_grad():
        for index in (1, 4):
            whole[0].weight[index], whole[0].bias[index], whole[2].weight[:, index] = 0, 0, 0
    pruned = copy.deepcopy(whole)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9) for model in (whole, pruned)]
    for model, optimizer in zip((whole, pruned), optimizers, strict=True):
        step(model, optimizer)
    cut(pruned, optimizers[1])
    for _ in range(3):
        for model, optimizer in zip((whole, pruned), optimizers, strict=True):
            step(model, optimizer)
    torch.testing.assert_close(pruned[0].weight, whole[0].weight[list(KEPT)])
    torch.testing.assert_close(pruned[2].weight, whole[2].weight[:, list(KEPT)])


def test_an_optimizer_that_has_not_stepped_only_changes_parameters():
    model = two_layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    cut(model, optimizer)
    assert not optimizer.state
    assert optimizer.param_groups[0]["params"][0] is model[0].weight


def test_tied_parameters_are_sliced_once():
    first = nn.Linear(4, 4, bias=False)
    model = nn.ModuleDict({"a": first, "b": nn.Linear(4, 4, bias=False)})
    model["b"].weight = first.weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    (model["a"].weight.sum() + model["b"].weight.square().sum()).backward()
    optimizer.step()
    momentum = optimizer.state[first.weight]["momentum_buffer"].clone()
    plan = PrunePlan(
        fingerprint=fingerprint_of(shapes_of(model)),
        entries=(KeptIndices(tensor="a.weight", dim=0, dense_size=4, kept=(1, 2)),),
    )
    dense = dict(model.named_parameters(remove_duplicate=False))
    apply_plan(model, plan)
    slice_optimizer_state(optimizer, model, plan, dense_parameters=dense)
    assert len(optimizer.param_groups[0]["params"]) == 1
    assert torch.equal(optimizer.state[model["b"].weight]["momentum_buffer"], momentum[1:3])


def test_state_of_another_shape_is_refused_and_nothing_changes():
    model = two_layers()
    optimizer = torch.optim.Adafactor(model.parameters(), lr=0.1)
    step(model, optimizer)
    plan, dense = plan_for(model), dict(model.named_parameters())
    apply_plan(model, plan)
    with pytest.raises(
        ModelError, match=r"0.weight \(row_var\): the optimiser keeps state of shape .*use sgd or adamw"
    ):
        slice_optimizer_state(optimizer, model, plan, dense_parameters=dense)
    assert optimizer.param_groups[0]["params"][0] is dense["0.weight"]
    assert dense["0.weight"] in optimizer.state
