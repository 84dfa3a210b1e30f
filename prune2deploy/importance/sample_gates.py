"""The gradient of each sample's loss for a gate on each channel.

By definition this is ``gates.gate_gradients`` of one sample at a time. Where all readers are convolution and
linear modules that see one row a sample, real gates of shape (N, C) in front of them give it in one backward pass.
That this is so for a model is not assumed: on the first batch, one sample of the fast way is compared with the
definition, and the definition is used from then on if they differ.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils.hooks import RemovableHandle

from prune2deploy.graph.channels import FROZEN, Axis, ChannelGraph, Role
from prune2deploy.importance.gates import gate_gradients
from prune2deploy.importance.gradients import loss_gradients, summed_loss
from prune2deploy.importance.parameters import parameters_of

# Far above the rounding of TF32 convolutions, far below the error of a wrong layout, which is of order one.
_AGREEMENT = 0.05


class SampleGates:
    """Takes per-sample gate gradients of one model."""

    def __init__(self, graph: ChannelGraph, model: nn.Module) -> None:
        self._graph = graph
        self._model = model
        self._axes = graph.axes_with(Role.CONSUMER)
        self._parameters = parameters_of(model, self._axes)
        self._readers = readers_of(model, self._axes)
        self._fast: bool | None = None if self._readers is not None else False

    def gradients(self, images: Tensor, labels: Tensor) -> NDArray[np.float64]:
        """dL_n/dc of every sample and channel, within ``scoring_state``. Shape: -> (N, channel_count)."""
        if self._fast is False:
            return self._one_by_one(images, labels)
        gated = self._at_once(images, labels)
        if gated is not None and self._fast is None:
            self._fast = self._agrees(gated, images, labels)
        if gated is None or not self._fast:
            self._fast = False
            return self._one_by_one(images, labels)
        return gated

    def _one_by_one(self, images: Tensor, labels: Tensor) -> NDArray[np.float64]:
        rows = []
        for sample in range(len(images)):
            loss = summed_loss(self._model, images[sample : sample + 1], labels[sample : sample + 1])
            rows.append(gate_gradients(self._graph, self._parameters, loss_gradients(loss, self._parameters)))
        return np.stack(rows)

    def _at_once(self, images: Tensor, labels: Tensor) -> NDArray[np.float64] | None:
        """All samples in one pass, or None where a reader does not see one row a sample."""
        recorder = _Gates(sample_count=len(images))
        handles = [recorder.attach(module, axis) for module, axis in self._readers or ()]
        try:
            loss = summed_loss(self._model, images, labels)
        finally:
            for handle in handles:
                handle.remove()
        if recorder.unfit or not recorder.gates:
            return None
        gradients = torch.autograd.grad(loss, [gate for gate, _ in recorder.gates], allow_unused=True)
        total = torch.zeros(len(images), self._graph.channel_count, dtype=torch.float64)
        for gradient, (_, axis) in zip(gradients, recorder.gates, strict=True):
            if gradient is not None:
                rows = gradient.detach().cpu().double().reshape(len(images), -1, axis.size).sum(dim=1)
                owned = axis.channels != FROZEN
                total.index_add_(1, torch.from_numpy(axis.channels[owned]), rows[:, torch.from_numpy(owned)])
        return total.numpy()

    def _agrees(self, gated: NDArray[np.float64], images: Tensor, labels: Tensor) -> bool:
        """Compare the sample with the largest gradient, where rounding matters least."""
        sample = int(np.abs(gated).max(axis=1).argmax())
        exact = self._one_by_one(images[sample : sample + 1], labels[sample : sample + 1])[0]
        return bool(np.abs(gated[sample] - exact).max() <= _AGREEMENT * np.abs(exact).max())


@dataclass(slots=True, kw_only=True)
class _Gates:
    """Gates of ones that were put in front of readers during one forward pass, each with the axis that it gates."""

    sample_count: int
    gates: list[tuple[Tensor, Axis]] = field(default_factory=list)
    unfit: bool = False

    def attach(self, module: nn.Module, axis: Axis) -> RemovableHandle:
        """Multiply what ``module`` reads by a fresh gate at each call."""
        channel_dim = 1 if isinstance(module, _ConvNd) else -1

        def gated(module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            read = arguments[0] if arguments else None
            if read is None or read.ndim < 2 or len(read) != self.sample_count or read.shape[channel_dim] % axis.size:
                self.unfit = True
                return None
            shape = [1] * read.ndim
            shape[0], shape[channel_dim] = self.sample_count, read.shape[channel_dim]
            gate = torch.ones(shape, device=read.device, dtype=read.dtype, requires_grad=True)
            self.gates.append((gate, axis))
            return (read * gate, *arguments[1:])

        return module.register_forward_pre_hook(gated)


def readers_of(model: nn.Module, axes: tuple[Axis, ...]) -> list[tuple[nn.Module, Axis]] | None:
    """The modules that read through each axis, or None where one is read by something else."""
    parameters = parameters_of(model, axes)
    readers: list[tuple[nn.Module, Axis]] = []
    for axis in axes:
        own = [
            module
            for module in model.modules()
            if isinstance(module, nn.Linear | _ConvNd) and module.weight is parameters[axis.tensor]
        ]
        if not own or any(axis.dim != _input_dim(module) for module in own):
            return None
        readers += [(module, axis) for module in own]
    return readers


def _input_dim(module: nn.Module) -> int:
    return 0 if isinstance(module, _ConvTransposeNd) else 1
