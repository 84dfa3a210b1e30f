"""Counting, in the training's own forward passes, what activation functions let through."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.hooks import RemovableHandle

from prune2deploy.errors import ModelError
from prune2deploy.graph.channels import FROZEN, ChannelMask
from prune2deploy.graph.rectifiers import Activation, activation_name


class ActivationCounter:
    """For each activation function of a model, how many values of each channel were not zero, and how many there were.

    Functions have no module to hook (``x.relu()``), so every operator of a forward pass is seen in a dispatch mode,
    which hooks on the model enter and leave; the n-th call of an activation function is the n-th one of the trace. That
    is checked, by operator and width, at every pass that is counted. Counted are passes of ``model`` itself in training
    mode with gradients, whichever wrapper runs it (distributed, mixed precision, one part of a batch at a time).

    ``threshold`` None counts what is not 0; a number t what has |a| > t. ``is_on`` False lets passes go uncounted.
    """

    def __init__(self, activations: Sequence[Activation], *, threshold: float | None) -> None:
        self.is_on = True
        self._activations = tuple(activations)
        self._threshold = threshold
        self._kept: ChannelMask = np.zeros(0, dtype=bool)
        self._handles: list[RemovableHandle] = []
        self._calls = 0
        # by activation and dimension: what passed, at each position of the dimension as it stands; and out of how many
        self._passed: dict[tuple[int, int], Tensor] = {}
        self._out_of: dict[tuple[int, int], int] = {}

    def attach(self, model: nn.Module) -> None:
        """Watch the forward passes of ``model`` until ``detach``."""
        mode = _Watch(self._see)
        entered: list[bool] = []

        # Plain functions: copies of the model share them, where methods would be copied with all that they hold.
        def enter(module: nn.Module, inputs: Any) -> None:
            entered.append(module is model and self.is_on and module.training and torch.is_grad_enabled())
            if entered[-1]:
                self._calls = 0
                mode.__enter__()  # type: ignore[no-untyped-call]

        def leave(module: nn.Module, inputs: Any, outputs: Any) -> None:
            if entered and entered.pop():
                mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
                if outputs is not None:  # the pass did not fail
                    self._check_all_were_called()

        # A compiler must not look into them: under the mode it runs the model as it is written.
        self._handles = [
            model.register_forward_pre_hook(torch.compiler.disable(enter)),  # type: ignore[no-untyped-call]
            model.register_forward_hook(
                torch.compiler.disable(leave),  # type: ignore[no-untyped-call]
                always_call=True,
            ),
        ]

    def detach(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def stand_at(self, kept: ChannelMask) -> None:
        """Expect the widths of a model with these channels, shape (channel_count,), and begin to count anew."""
        self._kept = kept
        self.reset()

    def reset(self) -> None:
        """Forget what was counted."""
        self._passed.clear()
        self._out_of.clear()

    def shares(self, summed: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> NDArray[np.float64]:
        """The share of values that passed, by function and channel, over all processes.

        Shape: (dimensions of all activations in order, channel_count); NaN where a channel is not in a dimension or
        nothing was counted. All processes must call it.
        """
        rows = [(number, one) for number, activation in enumerate(self._activations) for one in activation.dimensions]
        passed = np.zeros((len(rows), len(self._kept)))
        out_of = np.zeros_like(passed)
        for row, (number, one) in enumerate(rows):
            key = (number, one.dim)
            if key not in self._passed:
                continue
            channels = one.channels[self._stay(one.channels)]
            free = channels != FROZEN
            np.add.at(passed[row], channels[free], self._passed[key].cpu().numpy()[free])
            np.add.at(out_of[row], channels[free], float(self._out_of[key]))
        totals = summed(np.concatenate([passed.ravel(), out_of.ravel()]))
        passed, out_of = totals.reshape(2, len(rows), -1)
        return np.divide(passed, out_of, out=np.full_like(passed, np.nan), where=out_of > 0)

    def _stay(self, channels: NDArray[np.int64]) -> NDArray[np.bool_]:
        stay: NDArray[np.bool_] = np.append(self._kept, True)[channels]  # the last entry answers for FROZEN = -1
        return stay

    def _see(self, operator: str, result: Tensor) -> None:
        if self._calls >= len(self._activations):
            raise _differs(f"calls {operator} once more than it did when it was traced", "the model")
        activation = self._activations[self._calls]
        if operator != activation.operator:
            raise _differs(f"calls {operator} where the traced model calls {activation.operator}", activation.place)
        for one in activation.dimensions:
            width = int(self._stay(one.channels).sum())
            if result.ndim != activation.rank or result.shape[one.dim] != width:
                raise _differs(
                    f"gives {operator} shape {tuple(result.shape)}, where dimension {one.dim} of"
                    f" {activation.rank} should be {width} wide",
                    activation.place,
                )
            self._count(self._calls, one.dim, result)
        self._calls += 1

    def _count(self, number: int, dim: int, result: Tensor) -> None:
        passes = result != 0 if self._threshold is None else result.abs() > self._threshold
        others = [other for other in range(result.ndim) if other != dim]
        passed = passes.sum(dim=others) if others else passes.long()
        key = (number, dim)
        self._passed[key] = self._passed[key] + passed if key in self._passed else passed
        self._out_of[key] = self._out_of.get(key, 0) + result.numel() // result.shape[dim]

    def _check_all_were_called(self) -> None:
        if self._calls < len(self._activations):
            missing = self._activations[self._calls]
            raise _differs(f"does not call {missing.operator}, which the traced model calls", missing.place)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Shows every activation function that runs, and its result."""

    def __init__(self, see: Callable[[str, Tensor], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._see_activation = see

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = activation_name(func, args, kwargs or {})
        if name is not None:
            self._see_activation(name, result)
        return result


def _differs(what: str, where: str) -> ModelError:
    return ModelError(
        f"a training step {what}, so activation densities cannot be told",
        where=where,
        hint="train without --compile and without activations that only some forward passes call",
    )
