"""Group Taylor, accumulated over training steps from the gradients that are there anyway."""

from itertools import combinations

import numpy as np
import torch
from torch import Tensor, nn

from prune2deploy.graph.channels import FROZEN, Axis, ChannelGraph
from prune2deploy.importance.criterion import Scores
from prune2deploy.importance.parameters import parameters_of


class RunningTaylor:
    """The mean over steps of (sum of gradient x weight over all slices of the channel)².

    What ``taylor`` computes over batches, here over the steps of a training: each with the weights and the mode that it
    has at the time. The sums are taken on the model's device, in double precision where it has that, and nothing waits
    for it. Source: Molchanov et al. 2019.
    """

    def __init__(self, graph: ChannelGraph) -> None:
        self._channel_count = graph.channel_count
        self._axes = tuple(axis for axis in graph.axes if axis.learnable)
        by_tensor: dict[str, list[Axis]] = {}
        for axis in self._axes:
            by_tensor.setdefault(axis.tensor, []).append(axis)
        self._by_tensor = by_tensor
        self._shared = {name: _shared_tables(axes) for name, axes in by_tensor.items() if len(axes) > 1}
        self._channels: dict[tuple[str, int], Tensor] = {}
        self._total: Tensor | None = None
        self._steps: Tensor | None = None

    def add(self, model: nn.Module) -> None:
        """Take in the ``.grad`` of one step. A step whose gradients are not finite (half precision) is passed over.

        Raises:
            ModelError: the graph is of another model.
        """
        parameters = parameters_of(model, self._axes)
        sums: Tensor | None = None
        with torch.no_grad():
            for name, axes in self._by_tensor.items():
                parameter = parameters[name]
                if parameter.grad is None:
                    continue
                exact = torch.float32 if parameter.device.type == "mps" else torch.float64
                # the last entry takes what is frozen
                if sums is None:
                    sums = torch.zeros(self._channel_count + 1, dtype=exact, device=parameter.device)
                term = parameter.to(exact) * parameter.grad.to(exact)
                for axis in axes:
                    others = [dim for dim in range(term.ndim) if dim != axis.dim]
                    sums.index_add_(0, self._index(axis, sums.device), term.sum(others) if others else term)
                for first, second, shared in self._shared.get(name, ()):
                    others = [dim for dim in range(term.ndim) if dim not in (first.dim, second.dim)]
                    table = term.sum(others) if others else term
                    table = table if first.dim < second.dim else table.T
                    both = (table * shared.to(table.device)).sum(dim=1)
                    sums.index_add_(0, self._index(first, sums.device), -both)
            if sums is None:
                return
            squares = sums[:-1].square()
            finite = squares.isfinite().all()
            squares = torch.where(finite, squares, torch.zeros_like(squares))
            self._total = squares if self._total is None else self._total + squares
            counted = finite.to(squares.dtype)
            self._steps = counted if self._steps is None else self._steps + counted

    def total(self) -> tuple[Scores, float]:
        """The sum over the steps so far, shape (channel_count,), unit of the loss squared; and how many steps."""
        if self._total is None or self._steps is None:
            return np.zeros(self._channel_count), 0.0
        return self._total.cpu().double().numpy(), float(self._steps)

    def forget(self) -> None:
        """Begin again, at the next step."""
        self._total = self._steps = None

    def go_on_from(self, sums: Scores, steps: float, device: torch.device) -> None:
        """Stand where ``total`` gave these; ``device`` is the model's."""
        exact = torch.float32 if device.type == "mps" else torch.float64
        self._total = torch.from_numpy(sums.copy()).to(device=device, dtype=exact)
        self._steps = torch.tensor(steps, device=device, dtype=exact)

    def _index(self, axis: Axis, device: torch.device) -> Tensor:
        key = (axis.tensor, axis.dim)
        if key not in self._channels or self._channels[key].device != device:
            channels = np.where(axis.channels == FROZEN, self._channel_count, axis.channels)
            self._channels[key] = torch.from_numpy(channels).to(device)
        return self._channels[key]


def _shared_tables(axes: list[Axis]) -> list[tuple[Axis, Axis, Tensor]]:
    """Where two dimensions of one tensor belong to the same channel, so that a weight there would count twice."""
    found = []
    for first, second in combinations(axes, 2):
        shared = (first.channels[:, None] == second.channels[None, :]) & (first.channels[:, None] != FROZEN)
        if shared.any():
            found.append((first, second, torch.from_numpy(shared)))
    return found
