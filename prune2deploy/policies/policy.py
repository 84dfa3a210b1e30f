"""The one Protocol of all methods that prune before, during or after training.

A policy watches the training and sometimes returns a plan. It never cuts: the loop owns what a plan disturbs (the
module, the optimiser's state, the distributed wrapper), applies it and goes on.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from prune2deploy.budget.plan import PrunePlan


class When(enum.Enum):
    """The moments at which a policy is asked."""

    BEFORE_TRAINING = "before training"
    AFTER_STEP = "after a step"
    AFTER_EPOCH = "after an epoch"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepView:
    """One training step, seen after the backward pass and before the optimiser moves the weights.

    ``model`` is the bare module, whose parameters hold the gradients in ``.grad`` (unscaled and not yet clipped).
    Shapes: ``images`` (N, C, H, W), ``labels`` (N,), ``logits`` (N, classes) and ``loss`` () without the penalty, both
    detached; N is this process's share of the batch. ``epoch`` and ``step`` (over the whole training) count from 0.
    """

    model: nn.Module
    images: Tensor
    labels: Tensor
    logits: Tensor
    loss: Tensor
    epoch: int
    step: int


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


class Policy(Protocol):
    """A method: when to prune, and what.

    With several processes each has its own policy and shows it its own share of the data; the plan of the main
    process is applied everywhere.
    """

    def penalty(self, model: nn.Module) -> Tensor | None:
        """A scalar that is added to the loss of every step, or None."""

    def observe(self, step: StepView) -> None:
        """Watch one training step."""

    def decide(self, moment: Moment) -> PrunePlan | None:
        """A plan for ``moment.model`` as it stands (its fingerprint, its numbering of indices), or None to go on."""

    def state_dict(self) -> Mapping[str, Any]:
        """What a resumed training needs: tensors and plain Python values (no other objects)."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` gave."""


class NoPruning:
    """The policy of plain training."""

    def penalty(self, model: nn.Module) -> Tensor | None:
        """Add nothing."""
        return None

    def observe(self, step: StepView) -> None:
        """Ignore it."""

    def decide(self, moment: Moment) -> PrunePlan | None:
        """Go on."""
        return None

    def state_dict(self) -> Mapping[str, Any]:
        """Nothing to keep."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing was kept."""
