"""What is minimised: cross-entropy with the labels, and where there is a teacher, agreement with it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional

from prune2deploy.errors import ModelError
from prune2deploy.training.device import placed
from prune2deploy.training.recipe import TrainingRecipe


class Objective:
    """The loss of a recipe, with the teacher that it distils from, if there is one.

    The teacher runs in ``eval`` mode and is never changed.
    """

    def __init__(self, recipe: TrainingRecipe, teacher: nn.Module | None, accelerator: Accelerator) -> None:
        self._recipe = recipe
        self._teacher = teacher if recipe.distill_weight > 0 else None
        self._accelerator = accelerator

    @property
    def teacher(self) -> nn.Module | None:
        """The model that is distilled from."""
        return self._teacher

    @contextmanager
    def ready(self) -> Iterator[None]:
        """The teacher on the device and in ``eval`` mode; afterwards it is as it was."""
        if self._teacher is None:
            yield
            return
        flags = {module: module.training for module in self._teacher.modules()}
        try:
            self._teacher.eval()
            with placed(self._teacher, self._accelerator.device):
                yield
        finally:
            for module, flag in flags.items():
                module.training = flag

    def loss(self, images: Tensor, labels: Tensor, logits: Tensor) -> Tensor:
        """The mean loss over a batch. Shapes: (N, C, H, W), (N,), (N, classes) -> (). Unit: nat.

        Raises:
            ModelError: the teacher has other classes.
        """
        weight = self._recipe.distill_weight
        if self._teacher is None:
            return self._of_labels(logits, labels)
        with torch.no_grad(), self._accelerator.autocast():
            taught = self._teacher(images).float()
        if taught.shape != logits.shape:
            raise ModelError(
                f"the teacher gives scores of shape {tuple(taught.shape)}, the student of shape {tuple(logits.shape)}",
                where="distillation",
                hint="distil from a model with the same classes",
            )
        distilled = distillation_loss(logits, taught, temperature=self._recipe.distill_temperature)
        return distilled if weight == 1 else weight * distilled + (1 - weight) * self._of_labels(logits, labels)

    def _of_labels(self, logits: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(logits, labels, label_smoothing=self._recipe.label_smoothing)


def distillation_loss(logits: Tensor, taught: Tensor, *, temperature: float) -> Tensor:
    """KL(teacher || student) at ``temperature`` T, times T², mean over the batch. Shapes: 2 x (N, classes) -> ().

    Unit: nat. T² keeps the size of its gradients beside that of the labels. Source: Hinton, Vinyals and Dean 2015,
    "Distilling the knowledge in a neural network", section 2.
    """
    student = functional.log_softmax(logits / temperature, dim=1)
    teacher = functional.log_softmax(taught / temperature, dim=1)
    return functional.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2
