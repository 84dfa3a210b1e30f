"""Where computing happens: Accelerate chooses the device, and a model that was moved goes back afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import nn

from prune2deploy.errors import EngineError
from prune2deploy.processes import without_accelerator
from prune2deploy.training.recipe import MixedPrecision


def preferred_device() -> torch.device:
    """The device that this process computes on: the GPU that Accelerate assigns, or the CPU."""
    device: torch.device = PartialState(cpu=without_accelerator()).device
    return device


def accelerator_for(mixed_precision: MixedPrecision) -> Accelerator:
    """An accelerator for one training; one batch of the recipe is split over all processes.

    Accelerate keeps its choices for the life of the process, while one run may train variants with different
    precisions; the process group and device stay, the rest is chosen anew.

    Raises:
        EngineError: the precision is not available on this device.
    """
    AcceleratorState._reset_state()
    GradientState._reset_state()
    try:
        accelerator = Accelerator(
            mixed_precision=mixed_precision,
            cpu=without_accelerator(),
            dataloader_config=DataLoaderConfiguration(split_batches=True, non_blocking=True),
        )
    except ValueError as error:
        raise _unavailable(mixed_precision) from error
    if mixed_precision != "no" and not accelerator.native_amp:
        # Accelerate would go on in float32 without a word.
        raise _unavailable(mixed_precision)
    return accelerator


@contextmanager
def placed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Move ``model`` to ``device`` in place, and back to where its first tensor was."""
    tensor = next(model.parameters(), None)
    home = device if tensor is None else tensor.device
    try:
        model.to(device)
        yield
    finally:
        model.to(home)


def compiled(model: nn.Module, backend: str | None) -> nn.Module:
    """``torch.compile`` of a model, or the model itself where ``backend`` is None; what was compiled is forgotten.

    Raises:
        EngineError: there is no such backend here.
    """
    if backend is None:
        return model
    torch._dynamo.reset()
    try:
        return cast(nn.Module, torch.compile(model, backend=backend))
    except torch._dynamo.exc.InvalidBackend as error:
        raise EngineError(
            f"torch.compile has no backend {backend} here",
            where="--compile",
            hint=f"choose one of {', '.join(torch._dynamo.list_backends())}",
        ) from error


def _unavailable(mixed_precision: MixedPrecision) -> EngineError:
    return EngineError(
        f"{mixed_precision} is not available on {preferred_device()}",
        where="--mixed-precision",
        hint="choose bf16 or no, or train on a GPU that has it",
    )
