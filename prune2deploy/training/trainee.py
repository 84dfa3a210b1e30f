"""The model in training with all that has its shapes, so that a cut in the middle disturbs none of it."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import nn
from torch.optim import Optimizer

from prune2deploy.budget.plan import PrunePlan
from prune2deploy.errors import InputError
from prune2deploy.policies.policy import Decision
from prune2deploy.surgery.apply import apply_plan
from prune2deploy.surgery.optimizer import slice_optimizer_state
from prune2deploy.surgery.verify import count_flops
from prune2deploy.training.averaging import WeightAverage
from prune2deploy.training.device import compiled
from prune2deploy.training.optimisation import move_schedule, optimizer_for, scheduler_for
from prune2deploy.training.recipe import TrainingRecipe
from prune2deploy.training.state import TrainingState


class Trainee:
    """A model, what wraps, compiles and averages it, its optimiser and its schedule.

    ``model`` is the bare module; ``prepared`` wraps it for its processes, ``stepped`` is what a training step calls.
    ``flops`` are forward FLOPs of one image as the model stands, ``dense_flops`` those it began with. ``plan`` is all
    that was cut since. A model is cut, trained and its state taken in place.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: TrainingRecipe,
        accelerator: Accelerator,
        *,
        input_shape: tuple[int, int, int],
        reinitialise: Callable[[nn.Module], object] | None,
    ) -> None:
        self.model = model
        self.plan: PrunePlan | None = None
        self._recipe = recipe
        self._accelerator = accelerator
        self._input_shape = input_shape
        self._reinitialise = reinitialise
        self._own_forward = model.__dict__.get("forward")

    def restore(self, state: TrainingState, *, where: str) -> None:
        """Cut the model as that of a stored state was, and take its weights.

        Raises:
            InputError: the state is of another model.
        """
        if state.plan is not None:
            apply_plan(self.model, state.plan)
            self.plan = state.plan
        state.check_fits(self.model.state_dict(), where=where)
        self.model.load_state_dict(state.model)

    def set_up(self, state: TrainingState | None, *, steps_per_epoch: int) -> None:
        """Make all that goes with the model; with ``state``, as it was there. The model is on its device."""
        self.flops = self.flops_of(self.model)
        self.dense_flops = self.flops if state is None else state.dense_flops
        # A copy of the model, so before anything is put on it.
        ema = self._recipe.ema_decay
        self.average = None if ema is None else WeightAverage(self.model, decay=ema)
        self.prepared: nn.Module = self._accelerator.prepare_model(self.model)
        self.stepped = compiled(self.prepared, self._recipe.compile)
        self.optimizer: Optimizer = optimizer_for(self.model, self._recipe)
        self.scheduler = scheduler_for(self.optimizer, self._recipe, steps_per_epoch=steps_per_epoch)
        if state is not None:
            self._take_back(state)
        self.stepper: Any = self._accelerator.prepare_optimizer(self.optimizer)

    def _take_back(self, state: TrainingState) -> None:
        self.optimizer.load_state_dict(dict(state.optimizer))
        self.scheduler.load_state_dict(dict(state.scheduler))
        if self._accelerator.scaler is not None and state.scaler is not None:
            self._accelerator.scaler.load_state_dict(dict(state.scaler))
        if self.average is not None and state.average is not None:
            self.average.load_state_dict(state.average)

    def step(self) -> None:
        """Move the weights by the gradients that they hold, the schedule with them, and the average."""
        self.stepper.step()
        if not self.stepper.step_was_skipped:
            self.scheduler.step()
        if self.average is not None:
            self.average.update(self.model)

    def carry_out(self, decision: Decision) -> None:
        """Cut everything as decided; weights are drawn anew if that was asked for.

        Raises:
            InputError: the plan is not of the model as it stands, or there is nothing to draw weights with.
        """
        plan = decision.plan
        dense = dict(self.model.named_parameters(remove_duplicate=False))
        apply_plan(self.model, plan)
        slice_optimizer_state(self.optimizer, self.model, plan, dense_parameters=dense)
        if self.average is not None:
            self.average.cut(plan)
        self.plan = plan if self.plan is None else self.plan.then(plan)
        if decision.fresh_weights:
            self._draw_anew()
        if self._accelerator.num_processes > 1:
            # The wrapper of the dense module holds buckets of its gradients.
            self.release()
            self.prepared = self._accelerator.prepare_model(self.model)
        self.stepped = compiled(self.prepared, self._recipe.compile)
        self.flops = self.flops_of(self.model)

    def reschedule(self, *, steps_per_epoch: int, epochs_done: int, factor: float) -> None:
        """Go on in the schedule with another number of steps an epoch and all rates times ``factor``."""
        self.scheduler = move_schedule(
            self.optimizer, self._recipe, steps_per_epoch=steps_per_epoch, epochs_done=epochs_done, factor=factor
        )

    def evaluated(self) -> nn.Module:
        """The model that counts: the averaged one, if there is one. Called by all processes together."""
        if self.average is None:
            return self.prepared
        # The wrapper does so for the model itself: the statistics of the first process are everyone's.
        broadcast(list(self.average.model.buffers()))
        return self.average.model

    def finish(self) -> None:
        """Leave the weights that count in the model."""
        if self.average is not None:
            self.average.copy_to(self.model)

    def release(self) -> None:
        """Take off the model what Accelerate put on it."""
        for attribute in ("_original_forward", "_is_accelerate_prepared", "forward"):
            self.model.__dict__.pop(attribute, None)
        if self._own_forward is not None:
            self.model.__dict__["forward"] = self._own_forward
        self._accelerator.free_memory()

    def state(self) -> Mapping[str, Any]:
        """The fields of a ``TrainingState`` that are the model's."""
        scaler = self._accelerator.scaler
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "plan": self.plan,
            "dense_flops": self.dense_flops,
        }

    def flops_of(self, model: nn.Module) -> int:
        """Forward FLOPs of ``model`` for one image."""
        like = next(model.parameters())
        return count_flops(model, (torch.zeros(1, *self._input_shape, device=like.device, dtype=like.dtype),))

    def learnable_count(self) -> int:
        """Learnable values, as the model stands."""
        return sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)

    def _draw_anew(self) -> None:
        if self._reinitialise is None:
            raise InputError("fresh weights were asked for, and nothing draws them", where="reinitialise")
        self._reinitialise(self.model)
        self.optimizer.state.clear()
        if self.average is not None:
            self.average.restart(self.model)
