"""Running a model on trial, without a trace of it left in the model or its inputs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from prune2deploy.surgery.gated import tensors_in


@contextmanager
def left_as_it_was(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Set the mode for the duration; afterwards modes, buffers, gradients and random states are what they were."""
    modes = {module: module.training for module in model.modules()}
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = None
    devices = {tensor.device for tensor in model.parameters() if tensor.device.type == "cuda"}
    model.train(training)
    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        for module, was in modes.items():
            module.training = was
        with torch.no_grad():
            for module, name, buffer, value in buffers:
                buffer.copy_(value)
                module._buffers[name] = buffer
        for parameter, gradient in gradients:
            parameter.grad = gradient


def evaluated(model: nn.Module, inputs: Sequence[Any]) -> list[Tensor]:
    """All floating-point outputs in evaluation mode, without gradients."""
    with left_as_it_was(model, training=False), torch.no_grad():
        return tensors_in(model(*copied(inputs)))


def copied(inputs: Sequence[Any]) -> tuple[Any, ...]:
    """The inputs with all tensors copied, so that a model which works in place cannot change them."""
    copies: tuple[Any, ...] = torch.utils._pytree.tree_map_only(Tensor, Tensor.clone, tuple(inputs))
    return copies
