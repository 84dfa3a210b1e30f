"""Slice what an optimiser remembers, so that training goes on after a cut with the momentum that it had."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from prune2deploy.budget.plan import KeptIndices, PrunePlan
from prune2deploy.errors import ModelError


def slice_optimizer_state(
    optimizer: Optimizer, model: nn.Module, plan: PrunePlan, *, dense_parameters: Mapping[str, nn.Parameter]
) -> None:
    """Point ``optimizer`` at the parameters of ``model``, which ``plan`` has just cut, and slice its state alike.

    ``dense_parameters`` are the parameters by ``state_dict`` name (shared ones under each name) as they were before
    the cut. State that has the dense shape (SGD's momentum, Adam's moments) keeps the entries that the parameter
    kept, bit by bit; scalars (step counts) stay. Parameters that left with a residual branch leave the optimiser too,
    with their state. Parameters of other models in the optimiser are left alone.

    Raises:
        ModelError: the optimiser keeps state of another shape; nothing was changed.
    """
    sliced = dict(model.named_parameters(remove_duplicate=False))
    names_of: dict[nn.Parameter, list[str]] = {}
    for name, parameter in dense_parameters.items():
        names_of.setdefault(parameter, []).append(name)
    replacements: dict[nn.Parameter, nn.Parameter] = {}
    states: dict[nn.Parameter, dict[str, object]] = {}
    gone = {dense for dense, names in names_of.items() if all(plan.removes(name) for name in names)}
    for dense, names in names_of.items():
        if dense in gone:
            continue
        entries = [entry for entry in plan.entries if entry.tensor in names]
        replacements[dense] = sliced[names[0]]
        if dense in optimizer.state:
            states[dense] = {
                key: _sliced(value, entries, dense.shape, where=f"{names[0]} ({key})")
                if torch.is_tensor(value)
                else value
                for key, value in optimizer.state[dense].items()
            }
    for group in optimizer.param_groups:
        left = [parameter for parameter in group["params"] if parameter not in gone]
        group["params"] = [replacements.get(parameter, parameter) for parameter in left]
    for dense in gone:
        optimizer.state.pop(dense, None)
    for dense, state in states.items():
        del optimizer.state[dense]
        optimizer.state[replacements[dense]] = state


def _sliced(state: Tensor, entries: Sequence[KeptIndices], dense_shape: torch.Size, *, where: str) -> Tensor:
    if state.ndim == 0:
        return state
    if state.shape != dense_shape:
        raise ModelError(
            f"the optimiser keeps state of shape {tuple(state.shape)} for a parameter of shape {tuple(dense_shape)}",
            where=where,
            hint="use sgd or adamw, whose state has the shape of the parameter",
        )
    for entry in entries:
        kept = torch.tensor(entry.kept, device=state.device)
        state = state.index_select(entry.dim, kept)
    return state
