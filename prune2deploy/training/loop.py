"""The training loop: plain training, fine-tuning, and training that is pruned on the way.

The loop owns everything that a policy's plan disturbs: it cuts the module, slices the optimiser's state, wraps the
module for its processes anew, and goes on in the same schedule. Accelerate carries device, mixed precision and
distributed data parallelism; ``accelerate launch`` needs nothing more.
"""

import math
import time
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from prune2deploy.budget.plan import PrunePlan
from prune2deploy.data.splits import DataSplits
from prune2deploy.errors import DataError, InputError
from prune2deploy.policies.policy import Moment, NoPruning, Policy, StepView, When
from prune2deploy.progress import SILENT, Progress, Task
from prune2deploy.surgery.apply import apply_plan
from prune2deploy.surgery.optimizer import slice_optimizer_state
from prune2deploy.training.device import accelerator_for, placed
from prune2deploy.training.evaluate import Evaluation, check_labels, checked_logits, dataset_size, evaluate
from prune2deploy.training.history import EpochRecord, TrainingResult
from prune2deploy.training.optimisation import optimizer_for, scheduler_for
from prune2deploy.training.randomness import EpochOrder, epoch_seed, own_randomness, seed_everything
from prune2deploy.training.recipe import TrainingRecipe
from prune2deploy.training.state import TrainingState

# Reading the loss waits for a GPU, so it is looked at now and then; on a CPU it costs nothing.
_STEPS_BETWEEN_CHECKS_ON_GPU = 20


def train(
    model: nn.Module,
    splits: DataSplits,
    recipe: TrainingRecipe,
    *,
    state_path: Path | None = None,
    resume: bool = False,
    policy: Policy | None = None,
    description: str = "training",
    progress: Progress = SILENT,
) -> TrainingResult:
    """Train ``model`` in place on ``splits.train``, evaluating on ``splits.evaluation`` after every epoch.

    ``description`` names the work in ``progress``. With ``state_path`` the state at the end of each epoch is kept
    there, atomically. With ``resume`` and such a file the training goes on from it: on a CPU the final weights and
    the history (apart from seconds) equal those of an uninterrupted training, bit by bit; where all epochs are done,
    it returns at once. ``model`` is then to be the one that the training began with; what a policy had cut is cut
    again. The caller's random generators, the model's device and its training flags are left as they were.

    Raises:
        InputError: a value of the recipe does not fit the data or the processes; the loss is not finite (the state of
            the epoch before stays); the state file is damaged or belongs to another training.
        DataError: a split is empty, or a label is no class of the model.
        ModelError: the model does not return class scores.
        EngineError: the mixed precision is not available on this device.
        StorageError: the state cannot be written; the state of the epoch before is intact.
    """
    flags = {module: module.training for module in model.modules()}
    training = _Training(model, splits, recipe, state_path, policy, description, progress)
    device = training.accelerator.device
    try:
        with own_randomness(device), placed(model, device):
            return training.run(resume=resume)
    finally:
        training.release()
        for module, flag in flags.items():
            module.training = flag


class _Training:
    """One training in progress."""

    def __init__(
        self,
        model: nn.Module,
        splits: DataSplits,
        recipe: TrainingRecipe,
        state_path: Path | None,
        policy: Policy | None,
        description: str,
        progress: Progress,
    ) -> None:
        self.accelerator = accelerator_for(recipe.mixed_precision)
        self.model = model
        self.splits = splits
        self.recipe = recipe
        self.state_path = state_path
        self.description = description
        self.plain = policy is None
        self.policy = policy if policy is not None else NoPruning()
        self.progress = progress if self.accelerator.is_main_process else SILENT
        self.train_size = dataset_size(splits.train)
        self.history: tuple[EpochRecord, ...] = ()
        self.plan: PrunePlan | None = None
        self.own_forward = model.__dict__.get("forward")
        self._check_sizes()

    def run(self, *, resume: bool) -> TrainingResult:
        """Train from the first epoch that is not done to the last."""
        self._set_up(self._stored_state() if resume else None)
        resumed_at = len(self.history)
        evaluation = None
        with self.progress.task(self.description, total=self.recipe.epochs * self.steps_per_epoch) as task:
            task.advance(resumed_at * self.steps_per_epoch)
            if resumed_at == 0:
                seed_everything(epoch_seed(self.recipe.seed, 0))
                self._ask(Moment(when=When.BEFORE_TRAINING, model=self.model, epoch=0, step=0))
            for epoch in range(resumed_at, self.recipe.epochs):
                evaluation = self._epoch(epoch, task)
        if evaluation is None:
            evaluation = self._evaluate()
        seconds = sum(record.seconds for record in self.history)
        return TrainingResult(
            recipe=self.recipe,
            history=self.history,
            accuracy=evaluation.accuracy,
            loss=evaluation.loss,
            images_per_second=len(self.history) * self._images_per_epoch() / seconds,
            device=str(self.accelerator.device),
            processes=self.accelerator.num_processes,
            plan=self.plan,
            resumed_at=resumed_at,
        )

    def release(self) -> None:
        """Take off the model what Accelerate put on it."""
        for attribute in ("_original_forward", "_is_accelerate_prepared", "forward"):
            self.model.__dict__.pop(attribute, None)
        if self.own_forward is not None:
            self.model.__dict__["forward"] = self.own_forward
        self.accelerator.free_memory()

    def _check_sizes(self) -> None:
        if self.train_size == 0:
            raise DataError("the training split is empty", where=self.splits.name, hint="pass other data with --data")
        processes = self.accelerator.num_processes
        if self.recipe.batch_size % processes:
            raise InputError(
                f"is {self.recipe.batch_size}, which does not divide among {processes} processes",
                where="batch_size",
                hint=f"pass --batch-size with a multiple of {processes}",
            )

    def _set_up(self, state: TrainingState | None) -> None:
        device = self.accelerator.device
        loader: DataLoader[Any] = DataLoader(
            self.splits.train,
            batch_size=self.recipe.batch_size,
            sampler=EpochOrder(range(self.train_size), seed=self.recipe.seed),
            num_workers=self.recipe.workers,
            pin_memory=device.type == "cuda",
            # A last batch of one image would give batch normalisation nothing to take a variance of.
            drop_last=self.train_size > self.recipe.batch_size and self.train_size % self.recipe.batch_size == 1,
        )
        self.loader = self.accelerator.prepare_data_loader(loader)
        self.steps_per_epoch = len(self.loader)
        if state is not None:
            self.model.load_state_dict(state.model)
        self.wrapped = self.accelerator.prepare_model(self.model)
        self.optimizer = optimizer_for(self.model, self.recipe)
        self.scheduler = scheduler_for(self.optimizer, self.recipe, steps_per_epoch=self.steps_per_epoch)
        if state is not None:
            self.optimizer.load_state_dict(dict(state.optimizer))
            self.scheduler.load_state_dict(dict(state.scheduler))
            if self.accelerator.scaler is not None and state.scaler is not None:
                self.accelerator.scaler.load_state_dict(dict(state.scaler))
            self.policy.load_state_dict(state.policy)
            self.history = state.history
        self.stepper = self.accelerator.prepare_optimizer(self.optimizer)

    def _epoch(self, epoch: int, task: Task) -> Evaluation:
        seed_everything(epoch_seed(self.recipe.seed, epoch, process=self.accelerator.process_index))
        self.loader.set_epoch(epoch)
        started = time.perf_counter()
        loss, accuracy, learning_rate = self._steps(epoch, task)
        seconds = time.perf_counter() - started
        parameters = _learnable_count(self.model)
        evaluation = self._evaluate()
        if not math.isfinite(evaluation.loss):
            raise self._diverged(epoch)
        record = EpochRecord(
            epoch=epoch + 1,
            loss=loss,
            training_accuracy=accuracy,
            accuracy=evaluation.accuracy,
            learning_rate=learning_rate,
            seconds=seconds,
            parameters=parameters,
        )
        self.history = (*self.history, record)
        moment = Moment(
            when=When.AFTER_EPOCH,
            model=self.model,
            epoch=epoch + 1,
            step=(epoch + 1) * self.steps_per_epoch,
            training_loss=loss,
            training_accuracy=accuracy,
            evaluation_accuracy=evaluation.accuracy,
        )
        if self._ask(moment) and epoch + 1 == self.recipe.epochs:
            evaluation = self._evaluate()
        self._save_state()
        task.describe(f"epoch {epoch + 1}/{self.recipe.epochs}, loss {loss:.4f}, accuracy {evaluation.accuracy:.4f}")
        return evaluation

    def _steps(self, epoch: int, task: Task) -> tuple[float, float, float]:
        """All steps of an epoch: mean loss, accuracy, and the learning rate of the last one."""
        self.model.train()
        device = self.accelerator.device
        exact = torch.float32 if device.type == "mps" else torch.float64
        totals = torch.zeros(3, dtype=exact, device=device)
        step = epoch * self.steps_per_epoch
        learning_rate = self.recipe.learning_rate
        for number, (images, labels) in enumerate(self.loader):
            learning_rate = float(self.optimizer.param_groups[0]["lr"])
            loss, hits = self._step(images, labels, epoch=epoch, step=step)
            totals += torch.stack([loss * len(labels), hits, torch.full_like(loss, len(labels))]).to(exact)
            step += 1
            if device.type == "cpu" or number % _STEPS_BETWEEN_CHECKS_ON_GPU == 0:
                self._check_finite(totals, epoch)
            if self._ask(Moment(when=When.AFTER_STEP, model=self.model, epoch=epoch, step=step)):
                self.model.train()
            task.advance()
        totals = self.accelerator.reduce(totals, reduction="sum")
        self._check_finite(totals, epoch)
        loss_total, hit_count, image_count = totals.tolist()
        return loss_total / image_count, hit_count / image_count, learning_rate

    def _step(self, images: Tensor, labels: Tensor, *, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """One step: its loss and number of right answers, both scalars on the device."""
        logits = checked_logits(self.wrapped(images), image_count=len(images))
        if epoch == 0 or labels.device.type == "cpu":
            check_labels(labels, class_count=logits.shape[1])
        logits = logits.float()
        loss = functional.cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing)
        penalty = self.policy.penalty(self.model, loss.detach())
        self.stepper.zero_grad()
        self.accelerator.backward(loss if penalty is None else loss + penalty)
        self._show(images, labels, logits, loss, epoch=epoch, step=step)
        self.stepper.step()
        if not self.stepper.step_was_skipped:
            self.scheduler.step()
        return loss.detach(), (logits.detach().argmax(dim=1) == labels).sum().to(loss.dtype)

    def _show(self, images: Tensor, labels: Tensor, logits: Tensor, loss: Tensor, *, epoch: int, step: int) -> None:
        """Let the policy see the gradients, and then clip them."""
        self.accelerator.unscale_gradients(self.stepper)
        view = StepView(
            model=self.model,
            images=images,
            labels=labels,
            logits=logits.detach(),
            loss=loss.detach(),
            epoch=epoch,
            step=step,
        )
        self.policy.observe(view)
        if self.recipe.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.gradient_clip)

    def _ask(self, moment: Moment) -> bool:
        """Ask the policy, and cut what it says. Whether there was a plan."""
        decision = self.policy.decide(moment)
        if self.accelerator.num_processes > 1 and not self.plain:
            decision = broadcast_object_list([decision])[0]
        if decision is None:
            return False
        plan = decision.plan
        dense = dict(self.model.named_parameters(remove_duplicate=False))
        apply_plan(self.model, plan)
        slice_optimizer_state(self.optimizer, self.model, plan, dense_parameters=dense)
        self.plan = plan if self.plan is None else self.plan.then(plan)
        if self.accelerator.num_processes > 1:
            # The wrapper of the dense module holds buckets of its gradients.
            self.release()
            self.wrapped = self.accelerator.prepare_model(self.model)
        return True

    def _evaluate(self) -> Evaluation:
        return evaluate(
            self.wrapped,
            self.splits.evaluation,
            batch_size=max(self.recipe.batch_size, 256),
            workers=self.recipe.workers,
            accelerator=self.accelerator,
        )

    def _stored_state(self) -> TrainingState | None:
        """The state to resume from, with the model cut as it says; None where none was written yet."""
        if self.state_path is None:
            raise InputError("there is no file to resume from", where="--resume", hint="name a run folder with --out")
        if not self.state_path.exists():
            return None
        state = TrainingState.load(self.state_path)
        where = str(self.state_path)
        state.check_repeats(recipe=self.recipe, data=self._data_name(), where=where)
        if state.plan is not None:
            apply_plan(self.model, state.plan)
            self.plan = state.plan
        state.check_fits(self.model.state_dict(), where=where)
        return state

    def _save_state(self) -> None:
        if self.state_path is not None and self.accelerator.is_main_process:
            TrainingState(
                recipe=self.recipe,
                data=self._data_name(),
                history=self.history,
                model=self.model.state_dict(),
                optimizer=self.optimizer.state_dict(),
                scheduler=self.scheduler.state_dict(),
                scaler=None if self.accelerator.scaler is None else self.accelerator.scaler.state_dict(),
                policy=self.policy.state_dict(),
                plan=self.plan,
            ).save(self.state_path)
        self.accelerator.wait_for_everyone()

    def _data_name(self) -> str:
        return f"{self.splits.name} ({self.train_size} + {dataset_size(self.splits.evaluation)} images)"

    def _images_per_epoch(self) -> int:
        return min(self.train_size, self.steps_per_epoch * self.recipe.batch_size)

    def _check_finite(self, totals: Tensor, epoch: int) -> None:
        if not bool(totals.isfinite().all()):
            raise self._diverged(epoch)

    def _diverged(self, epoch: int) -> InputError:
        kept = f"; the state after epoch {epoch} is kept" if self.state_path is not None and epoch else ""
        return InputError(
            f"the loss is no longer a finite number in epoch {epoch + 1}{kept}",
            where="training",
            hint=f"pass a --lr below {self.recipe.learning_rate:g}, or a longer --warmup-epochs",
        )


def _learnable_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
