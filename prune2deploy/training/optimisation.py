"""Torch's own optimisers and schedulers, as a recipe asks for them."""

import warnings

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LinearLR, LRScheduler, MultiStepLR, SequentialLR

from prune2deploy.errors import ModelError
from prune2deploy.training.recipe import TrainingRecipe

_WARMUP_START = 0.01


def optimizer_for(model: nn.Module, recipe: TrainingRecipe) -> Optimizer:
    """The optimiser over all parameters that require gradients; those with fewer than two dimensions are not decayed.

    Raises:
        ModelError: there are none.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ModelError("has no parameters to train", where=type(model).__name__, hint="pass a model that has some")
    groups = [
        {"params": [parameter for parameter in parameters if parameter.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [parameter for parameter in parameters if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "adamw":
        return AdamW(groups, lr=recipe.learning_rate)
    nesterov = recipe.nesterov and recipe.momentum > 0
    return SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=nesterov)


def scheduler_for(optimizer: Optimizer, recipe: TrainingRecipe, *, steps_per_epoch: int) -> LRScheduler:
    """The schedule, to be moved once after every optimiser step."""
    total = recipe.epochs * steps_per_epoch
    warmup = min(round(recipe.warmup_epochs * steps_per_epoch), total // 2)
    if recipe.schedule == "step":
        warmup = min(warmup, recipe.milestones[0] * steps_per_epoch - 1)
    main = _main_schedule(optimizer, recipe, steps_per_epoch=steps_per_epoch, warmup=warmup, total=total)
    if warmup == 0:
        return main
    rising = LinearLR(optimizer, start_factor=_WARMUP_START, total_iters=warmup)
    return SequentialLR(optimizer, [rising, main], milestones=[warmup])


def move_schedule(
    optimizer: Optimizer, recipe: TrainingRecipe, *, steps_per_epoch: int, epochs_done: int, factor: float
) -> LRScheduler:
    """The schedule with another number of steps an epoch, after ``epochs_done`` epochs, all rates times ``factor``."""
    for group in optimizer.param_groups:
        group["lr"] = recipe.learning_rate * factor
        group.pop("initial_lr", None)
    scheduler = scheduler_for(optimizer, recipe, steps_per_epoch=steps_per_epoch)
    with warnings.catch_warnings():
        # Torch takes moving the schedule for a mistake where the optimiser has not made a step since.
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step()`")
        for _ in range(epochs_done * steps_per_epoch):
            scheduler.step()
    return scheduler


def _main_schedule(
    optimizer: Optimizer, recipe: TrainingRecipe, *, steps_per_epoch: int, warmup: int, total: int
) -> LRScheduler:
    if recipe.schedule == "cosine":
        return CosineAnnealingLR(optimizer, T_max=max(total - warmup, 1))
    if recipe.schedule == "step":
        # SequentialLR starts this schedule at the end of the warm-up, so its milestones count from there.
        milestones = [epoch * steps_per_epoch - warmup for epoch in recipe.milestones]
        return MultiStepLR(optimizer, milestones=milestones, gamma=recipe.gamma)
    return ConstantLR(optimizer, factor=1.0, total_iters=0)
