"""Fisher, accumulated from the steps of a training instead of passes of its own.

The forward and backward passes are the training's: nothing is computed twice, batch norms use the statistics of the
batch, and dropout and augmentation are as they are. Listeners at the readers of each channel multiply what is read by
the gradient that comes back, while it flows.
"""

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.hooks import RemovableHandle

from prune2deploy.errors import ModelError
from prune2deploy.graph.channels import FROZEN, Axis, ChannelGraph, Role
from prune2deploy.importance.criterion import UNJUDGED, Scores
from prune2deploy.importance.gates import gate_gradients, readable_channels
from prune2deploy.importance.parameters import parameters_of
from prune2deploy.importance.sample_gates import readers_of

# As in ``sample_gates``: far above the rounding of reduced precision, far below the error of a reader that is missed.
_AGREEMENT = 0.05


class RunningFisher:
    """Δ_c = 1/(2N) Σ_n (Σ_hw a·g)² over the N images of all steps since the last ``reset``.

    a is the channel where it is read, g the gradient of the *summed* loss for it; the sum in brackets runs over all
    readers and is that of one image. Source: Theis et al. 2018, as accumulated during fine-tuning by Crowley et al.
    2018. ``fit`` is None until a first step has shown whether the readers hear everything, then True or False: a weight
    that is read by a function, or rows that are not images, cannot be judged in this way.
    """

    def __init__(self, graph: ChannelGraph, model: nn.Module) -> None:
        self.fit: bool | None = None
        self._graph = graph
        self._model = weakref.ref(model)
        self._passes: list[_Pass] = []
        self._handles: list[RemovableHandle] = []
        device = next(model.parameters()).device
        self._exact = torch.float32 if device.type == "mps" else torch.float64
        self._sums = torch.zeros(graph.channel_count, dtype=self._exact, device=device)
        self._images = torch.zeros((), dtype=self._exact, device=device)
        self._axes: dict[tuple[str, int], _Owners] = {}
        self.follow(graph)
        readers = readers_of(model, graph.axes_with(Role.CONSUMER))
        if not readers:
            self.fit = False
            return
        self._handles.append(model.register_forward_pre_hook(self._begin_pass))
        for module, axis in readers:
            self._handles.append(module.register_forward_pre_hook(self._listener((axis.tensor, axis.dim))))

    def follow(self, graph: ChannelGraph) -> None:
        """From the next step on the model is that of ``graph``, a restriction of the one so far; sums are kept."""
        self._graph = graph
        device = self._sums.device
        self._axes = {(axis.tensor, axis.dim): _Owners.of(axis, device) for axis in graph.axes_with(Role.CONSUMER)}

    def step(self, model: nn.Module, images: int, *, scale: float = 1.0) -> tuple[Scores, Scores] | None:
        """Take in the passes since the last call: one step, of the mean loss over ``images`` times ``scale``.

        While ``fit`` is None, gives the gate gradients of the mean loss as heard (over this process's images) and as
        the gradients of the weights have them (over those of all), both of shape (channel_count,), for ``settle``.

        Raises:
            ModelError: the readers heard every image of the steps so far, and not of this one.
        """
        passes, self._passes = self._passes, []
        if self.fit is False:
            return None
        if any(one.unfit or one.rows is None for one in passes) or sum(one.images for one in passes) != images:
            if self.fit:
                raise ModelError(
                    "its layers saw the images of a step in another way than those before",
                    where=type(model).__name__,
                    hint="choose the criterion taylor",
                )
            self.fit = False
            return None
        rows = [one.rows for one in passes if one.rows is not None]
        squares = torch.stack([part.to(self._exact).square().sum(dim=0) for part in rows]).sum(dim=0)
        squares *= (images / scale) ** 2
        finite = squares.isfinite().all()  # a step that overflows is skipped by the optimiser, and here
        self._sums += torch.where(finite, squares, torch.zeros_like(squares))
        self._images += torch.where(finite, float(images), 0.0)
        if self.fit is True or not bool(finite):
            return None
        heard = torch.stack([part.to(self._exact).sum(dim=0) for part in rows]).sum(dim=0) / scale
        parameters = parameters_of(model, self._graph.axes_with(Role.CONSUMER))
        gradients = {name: one.grad for name, one in parameters.items() if one.grad is not None}
        return heard.double().cpu().numpy(), gate_gradients(self._graph, parameters, gradients)

    def settle(self, heard: Scores, exact: Scores) -> None:
        """Decide ``fit``: whether gate gradients as heard are those of the weights. Shapes: (channel_count,)."""
        largest = float(np.abs(exact).max(initial=0.0))
        if 0 < largest < np.inf:
            self.fit = bool(np.abs(heard - exact).max() <= _AGREEMENT * largest)

    def sums(self) -> tuple[Scores, int]:
        """Σ_n (Σ_hw a·g)² of this process's images, shape (channel_count,), and their number."""
        return self._sums.double().cpu().numpy(), int(self._images)

    def scores(self, sums: Scores, images: float) -> Scores:
        """Δ_c from the sums over all processes; unjudged where no weight reads. Shape: -> (channel_count,)."""
        scores = sums / (2 * max(images, 1))
        scores[~readable_channels(self._graph)] = UNJUDGED
        return scores

    def reset(self) -> None:
        """Forget all steps."""
        self._sums.zero_()
        self._images.zero_()

    def remove(self) -> None:
        """Take the listeners off the model."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._passes.clear()

    def state_dict(self) -> dict[str, Any]:
        """What ``load_state_dict`` takes back."""
        return {"sums": self._sums.cpu(), "images": self._images.cpu(), "fit": self.fit}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was taken."""
        self._sums.copy_(state["sums"])
        self._images.copy_(state["images"])
        if self.fit is None:
            self.fit = state["fit"]

    def _begin_pass(self, model: nn.Module, arguments: tuple[Any, ...]) -> None:
        """A forward pass that will be followed by a backward one has begun."""
        if not (model.training and torch.is_grad_enabled()):
            return
        images = len(arguments[0]) if arguments and isinstance(arguments[0], Tensor) else 0
        self._passes.append(_Pass(images=images, unfit=images == 0))

    def _listener(self, key: tuple[str, int]) -> Any:
        """A hook for the reader of one axis: hear the gradient of what it reads, through itself alone."""

        def listen(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
            model = self._model()
            if model is None or not (model.training and torch.is_grad_enabled() and self._passes):
                return None
            here, owners = self._passes[-1], self._axes.get(key)
            if owners is None:
                return None
            read = arguments[0] if arguments else None
            channel_dim = 1 if isinstance(module, _ConvNd) else -1
            if not isinstance(read, Tensor) or read.ndim < 2 or len(read) != here.images:
                here.unfit = True
                return None
            if read.shape[channel_dim] % owners.size:
                here.unfit = True
                return None
            value = read.detach()
            own = read.view_as(read) if read.requires_grad else value.clone().requires_grad_()
            own.register_hook(  # type: ignore[no-untyped-call]
                lambda gradient: here.add(value, gradient, owners, channel_dim, self._graph.channel_count)
            )
            return (own, *arguments[1:])

        return listen


@dataclass(frozen=True, slots=True, kw_only=True)
class _Owners:
    """Which channels own the indices of an axis: ``indices`` of it, ``channels`` they belong to, both on the device."""

    size: int
    indices: Tensor
    channels: Tensor

    @classmethod
    def of(cls, axis: Axis, device: torch.device) -> "_Owners":
        owned = np.flatnonzero(axis.channels != FROZEN)
        return cls(
            size=axis.size,
            indices=torch.from_numpy(owned).to(device),
            channels=torch.from_numpy(axis.channels[owned]).to(device),
        )


@dataclass(slots=True, kw_only=True)
class _Pass:
    """One forward pass and its backward. ``rows``: gate gradients heard so far, shape (images, channel_count)."""

    images: int
    unfit: bool = False
    rows: Tensor | None = field(default=None)

    def add(self, value: Tensor, gradient: Tensor, owners: _Owners, channel_dim: int, channel_count: int) -> None:
        """Add what one reader heard: the sum over space of what it reads, times its gradient, for each image."""
        if self.rows is None:
            self.rows = torch.zeros(self.images, channel_count, device=value.device)
        product = (value.float() * gradient.float()).movedim(channel_dim, -1)
        rows = product.reshape(self.images, -1, owners.size).sum(dim=1)
        self.rows.index_add_(1, owners.channels, rows.index_select(1, owners.indices))
