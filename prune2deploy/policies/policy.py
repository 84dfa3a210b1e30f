"""The one Protocol of all methods that prune before, during or after training.

A policy watches the training and sometimes returns a decision. It never cuts: the loop owns what a decision disturbs
(the module, the optimiser's state, averaged copies, compiled graphs, the distributed wrapper, the batch), and goes on.
"""

import enum
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from prune2deploy.budget.plan import PrunePlan
from prune2deploy.errors import InputError


class When(enum.Enum):
    """The moments at which a policy is asked."""

    BEFORE_TRAINING = "before training"
    AFTER_STEP = "after a step"
    AFTER_EPOCH = "after an epoch"


def alone(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The sum over all processes where there is only one."""
    return values


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """The training that a policy is part of.

    ``epochs`` and ``steps_per_epoch`` as scheduled (a batch that grows takes fewer steps); ``batch_size`` counts images
    over all ``processes``. ``samples(n)`` gives this process's share of the first n images of the training split in a
    random order, not augmented, in batches on the device of the model, with their labels: the same images at each call,
    whatever the number of processes. ``summed`` adds an array up over all processes, and must be called by all.
    """

    epochs: int
    steps_per_epoch: int
    batch_size: int
    processes: int
    samples: Callable[[int], Iterable[tuple[Tensor, Tensor]]]
    summed: Callable[[NDArray[np.float64]], NDArray[np.float64]] = alone


@dataclass(frozen=True, slots=True, kw_only=True)
class StepView:
    """One training step, seen after the backward pass and before the optimiser moves the weights.

    ``model`` is the bare module, whose parameters hold the gradients in ``.grad``: unscaled, not yet clipped, of the
    mean loss of the whole batch (over all processes) with the penalty. Shapes: ``images`` (N, C, H, W), ``labels``
    (N,), ``logits`` (N, classes) and ``loss`` () without the penalty, both detached; N is this process's share of the
    batch. ``epoch`` and ``step`` (over the whole training) count from 0. ``loss_scale`` is what mixed precision
    multiplied the loss by during the backward pass, for those who watched it.
    """

    model: nn.Module
    images: Tensor
    labels: Tensor
    logits: Tensor
    loss: Tensor
    epoch: int
    step: int
    loss_scale: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """A point at which a plan can be applied.

    ``epoch`` and ``step`` count what is complete: epochs, and optimiser steps over the whole training.
    ``training_loss`` (nat), ``training_accuracy`` and ``evaluation_accuracy`` (fractions) are those of the epoch that
    just ended, None at other moments.
    """

    when: When
    model: nn.Module
    epoch: int
    step: int
    training_loss: float | None = None
    training_accuracy: float | None = None
    evaluation_accuracy: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a policy wants done.

    ``plan`` cuts the model as it stands (its fingerprint, its numbering of indices). ``batch_factor`` from the next
    epoch on multiplies the batch, and the learning rate with it (only after an epoch or before training).
    ``fresh_weights``: all weights are drawn anew after the cut, and the optimiser forgets.

    Raises:
        InputError: ``batch_factor`` is below 1.
    """

    plan: PrunePlan
    batch_factor: float = 1.0
    fresh_weights: bool = False

    def __post_init__(self) -> None:
        if self.batch_factor < 1:
            raise InputError(f"is {self.batch_factor}, but a batch only grows", where="batch_factor")


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What a policy saw: ``notes`` for the user, and ``document``, a JSON object for the manifest and the report."""

    notes: tuple[str, ...] = ()
    document: Mapping[str, Any] = field(default_factory=dict)


class Policy(Protocol):
    """A method: when to prune, and what.

    With several processes each has its own policy and shows it its own share of the data. Gradients are those of the
    whole batch already; what a policy counts by itself it adds up with ``Setting.summed`` before it decides, so that
    all decide alike.
    """

    def begin(self, model: nn.Module, setting: Setting) -> None:
        """Called once, before the first step, or after ``load_state_dict`` where a training is resumed.

        ``model`` is the bare module as it stands, on its device. Hooks may be put on it; they survive cuts.

        Raises:
            TargetError: the method cannot reach its target within ``setting``.
            InputError: the method cannot be used on this model.
        """

    def penalty(self, model: nn.Module, loss: Tensor) -> Tensor | None:
        """A scalar that is added to the loss of every step, or None. ``loss`` () is this process's, detached."""

    def observe(self, step: StepView) -> None:
        """Watch one training step."""

    def decide(self, moment: Moment) -> Decision | None:
        """What to do now, or None to go on. What it returns is carried out."""

    def end(self) -> None:
        """Called once when the training ends, however it does: take off the model what ``begin`` put on it."""

    def findings(self) -> Findings:
        """What was seen so far. Callable after the training."""

    def state_dict(self) -> Mapping[str, Any]:
        """What a resumed training needs: tensors and plain Python values (no other objects)."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` gave."""


class NoPruning:
    """The policy of plain training, and what others inherit where they do nothing."""

    def begin(self, model: nn.Module, setting: Setting) -> None:
        """Nothing to prepare."""

    def penalty(self, model: nn.Module, loss: Tensor) -> Tensor | None:
        """Add nothing."""
        return None

    def observe(self, step: StepView) -> None:
        """Ignore it."""

    def decide(self, moment: Moment) -> Decision | None:
        """Go on."""
        return None

    def end(self) -> None:
        """Nothing to take off."""

    def findings(self) -> Findings:
        """Nothing was seen."""
        return Findings()

    def state_dict(self) -> Mapping[str, Any]:
        """Nothing to keep."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing was kept."""
