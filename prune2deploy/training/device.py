"""Where computing happens: Accelerate chooses the device, and a model that was moved goes back afterwards."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import nn

from prune2deploy.errors import EngineError
from prune2deploy.training.recipe import MixedPrecision

_TRUE = ("1", "true", "yes", "on", "y", "t")


def preferred_device() -> torch.device:
    """The device that this process computes on: the GPU that Accelerate assigns, or the CPU."""
    device: torch.device = PartialState(cpu=_on_cpu()).device
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
            cpu=_on_cpu(),
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


def _unavailable(mixed_precision: MixedPrecision) -> EngineError:
    return EngineError(
        f"{mixed_precision} is not available on {preferred_device()}",
        where="--mixed-precision",
        hint="choose bf16 or no, or train on a GPU that has it",
    )


def _on_cpu() -> bool:
    # Said outright, because Accelerate would otherwise take each of several processes without a GPU for the only one.
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() in _TRUE or not torch.accelerator.is_available()
