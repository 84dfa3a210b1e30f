"""Running a single-precision model in double precision, with never more than one operator's parameters widened."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prune2deploy.surgery.evaluation_mode import left_as_it_was
from prune2deploy.surgery.gated import tensors_in


def evaluated_in_double(model: nn.Module, inputs: Sequence[Any]) -> list[Tensor]:
    """All floating-point outputs in evaluation mode, as ``model.double()`` would give them. The model stays as it was.

    Parameters are widened where an operator takes them, so that no second copy of the model is held.
    """
    with left_as_it_was(model, training=False), torch.no_grad(), _wide_buffers(model), wide_parameters():
        return tensors_in(model(*in_double(inputs)))


def in_double(inputs: Sequence[Any]) -> tuple[Any, ...]:
    """The inputs copied, floating-point tensors in double precision."""
    widened: tuple[Any, ...] = torch.utils._pytree.tree_map_only(Tensor, _copied, tuple(inputs))
    return widened


@contextmanager
def wide_parameters() -> Iterator[None]:
    """Every function of torch takes floating-point parameters for their copies in double precision."""
    with _WideParameters():
        yield


class _WideParameters(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        widened = torch.utils._pytree.tree_map_only(nn.Parameter, _wide, (args, kwargs or {}))
        return func(*widened[0], **widened[1])


@contextmanager
def _wide_buffers(model: nn.Module) -> Iterator[None]:
    """Buffers may be written to, so they are in double precision themselves while this lasts."""
    wide: dict[int, Tensor] = {}
    before = []
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                before.append((module, name, buffer))
                module._buffers[name] = wide.setdefault(id(buffer), buffer.double())
    try:
        yield
    finally:
        for module, name, buffer in before:
            module._buffers[name] = buffer


def _wide(parameter: nn.Parameter) -> Tensor:
    return parameter.detach().double() if parameter.is_floating_point() else parameter.detach()


def _copied(data: Tensor) -> Tensor:
    return data.to(torch.float64, copy=True) if data.is_floating_point() else data.clone()
