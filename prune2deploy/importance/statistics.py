"""Batch statistics for criteria that run the model in ``eval`` mode, where its running ones mean nothing yet."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def statistics_of(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Give batch norms the statistics of ``batches`` as their running ones, and their own back afterwards.

    Each batch of two images or more counts equally; dropout is off. A fresh model's running statistics are 0 and 1
    whatever it computes, so that gradients in ``eval`` mode say nothing of the training to come. Unlike statistics
    taken within the batch, these are constants: no gradient flows through them, and samples do not influence one
    another. A model without batch norms is left alone. All buffers, momenta and training flags are restored.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.running_mean is not None]
    if not norms:
        yield
        return
    training = {module: module.training for module in model.modules()}
    momenta = [norm.momentum for norm in norms]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    like = next(model.parameters())
    try:
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain average over batches
            norm.train()
        with torch.no_grad():
            for images, _ in batches:
                if len(images) > 1:
                    model(images.to(device=like.device, dtype=like.dtype))
        for module, flag in training.items():
            module.training = flag
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, flag in training.items():
            module.training = flag
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
