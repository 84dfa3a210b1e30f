"""Finding the tensors that a graph names, in the model that it was traced from."""

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from prune2deploy.errors import ModelError
from prune2deploy.graph.channels import Axis


def parameters_of(model: nn.Module, axes: Iterable[Axis]) -> dict[str, nn.Parameter]:
    """The parameter of each axis, by its ``state_dict`` name.

    Raises:
        ModelError: the model lacks one, or has it with another size: the graph is of another model.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    found = {}
    for axis in axes:
        parameter = named.get(axis.tensor)
        if parameter is None or parameter.ndim <= axis.dim or parameter.shape[axis.dim] != axis.size:
            size = "missing" if parameter is None else f"of shape {tuple(parameter.shape)}"
            raise ModelError(
                f"is {size}, where the channel graph has {axis.size} indices in dimension {axis.dim}",
                where=axis.tensor,
                hint="trace the graph from this very model",
            )
        found[axis.tensor] = parameter
    return found


def sum_per_index(tensor: Tensor, dim: int) -> NDArray[np.float64]:
    """Sum a tensor over all dimensions but ``dim``, in double precision. Shape: any -> (tensor.shape[dim],)."""
    moved = tensor.detach().cpu().double().movedim(dim, 0)
    return moved.reshape(moved.shape[0], -1).sum(dim=1).numpy()


def products(weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weight times gradient, in double precision on the CPU. Tensors without a gradient are left out."""
    return {
        name: weights[name].detach().cpu().double() * gradient.detach().cpu().double()
        for name, gradient in gradients.items()
    }
