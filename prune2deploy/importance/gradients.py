"""Gradients for scoring, taken so that the model does not notice.

A criterion runs the model in ``eval`` mode: batch normalisation then uses its running statistics, as the deployed
network will, and the samples of a batch do not influence one another. Scores at initialisation, where running
statistics mean nothing yet, ask for ``batch_statistics``.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from prune2deploy.errors import DataError, ModelError


@contextmanager
def scoring_state(model: nn.Module, *, batch_statistics: bool = False) -> Iterator[None]:
    """Run the model in ``eval`` mode with gradients for all parameters; afterwards it is as it was.

    Training flags, ``requires_grad`` and buffers are restored; ``.grad`` is never touched, provided that gradients
    are taken with ``loss_gradients`` or ``torch.autograd.grad``. With ``batch_statistics`` batch normalisation
    uses the statistics of the batch (dropout stays off).
    """
    training = {module: module.training for module in model.modules()}
    required = {parameter: parameter.requires_grad for parameter in model.parameters()}
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()] if batch_statistics else []
    try:
        model.eval()
        for module in model.modules():
            if batch_statistics and isinstance(module, _BatchNorm):
                module.train()
        for parameter in required:
            if parameter.is_floating_point():
                parameter.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for module, flag in training.items():
            module.training = flag
        for parameter, flag in required.items():
            parameter.requires_grad_(flag)
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


def summed_loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy summed over the batch. Shapes: (N, C, H, W), (N,) -> (). Unit: nat.

    Images are moved to the device and floating-point type of the model.

    Raises:
        ModelError: the model does not return class scores of shape (N, classes).
        DataError: a label is no class of the model.
    """
    like = next(model.parameters())
    logits = model(images.to(device=like.device, dtype=like.dtype))
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelError(
            f"returns {shape} for {len(images)} images, where a gradient criterion needs class scores (N, classes)",
            where=type(model).__name__,
            hint="choose a criterion that needs no data, such as l2",
        )
    labels = labels.to(device=logits.device, dtype=torch.int64)
    if int(labels.min()) < 0 or int(labels.max()) >= logits.shape[1]:
        raise DataError(
            f"labels run from {int(labels.min())} to {int(labels.max())}, but the model has {logits.shape[1]} classes",
            hint="use the data that the model was trained on",
        )
    return functional.cross_entropy(logits, labels, reduction="sum")


def loss_gradients(loss: Tensor, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Gradient of ``loss`` for each parameter that took part in it, by name; ``.grad`` stays untouched."""
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {name: gradient for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None}


def squared(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The squares, all of them finite: infinity is kept for channels that cannot be judged.

    Raises:
        ModelError: one is infinite or not a number.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.square(values)
    if not np.isfinite(squares).all():
        raise ModelError(
            "the gradients of the loss are not finite, so they cannot rank channels",
            hint="choose a criterion that needs no data, such as l2",
        )
    return squares
