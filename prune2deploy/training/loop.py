"""The training loop: plain training, fine-tuning, and training that is pruned on the way.

The loop takes the steps, asks the policy, carries out what it decides (``trainee``), grows the batch, evaluates, and
keeps the state of every epoch. Accelerate carries device, mixed precision and distributed data parallelism;
``accelerate launch`` needs nothing more.
"""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from numpy.typing import NDArray
from torch import Tensor, nn

from prune2deploy.data.splits import DataSplits
from prune2deploy.errors import DataError, InputError
from prune2deploy.policies.policy import Decision, Moment, NoPruning, Policy, Setting, StepView, When
from prune2deploy.processes import gathered, on_main
from prune2deploy.progress import SILENT, Progress, Task
from prune2deploy.training.batches import epoch_loader, parts, sample_batches
from prune2deploy.training.cost import CostMeter
from prune2deploy.training.device import accelerator_for, placed
from prune2deploy.training.evaluate import Evaluation, check_labels, checked_logits, dataset_size, evaluate
from prune2deploy.training.history import EpochRecord, TrainingResult
from prune2deploy.training.objective import Objective
from prune2deploy.training.randomness import epoch_seed, own_randomness, seed_everything
from prune2deploy.training.recipe import TrainingRecipe
from prune2deploy.training.state import TrainingState
from prune2deploy.training.trainee import Trainee

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
    teacher: nn.Module | None = None,
    reinitialise: Callable[[nn.Module], object] | None = None,
    description: str = "training",
    progress: Progress = SILENT,
) -> TrainingResult:
    """Train ``model`` in place on ``splits.train``, evaluating on ``splits.evaluation`` after every epoch.

    ``teacher`` is a model whose scores are distilled, by the recipe's ``distill_weight``. ``reinitialise`` draws all
    weights of the model anew, for policies that ask for it. ``description`` names the work in ``progress``. With
    ``state_path`` the state at the end of each epoch is kept there, atomically. With ``resume`` and such a file the
    training goes on from it: on a CPU the final weights and the history (apart from seconds) equal those of an
    uninterrupted training, bit by bit; where all epochs are done, it returns at once. ``model`` is then to be the one
    that the training began with; what a policy had cut is cut again. The caller's random generators, the model's device
    and its training flags are left as they were.

    Raises:
        InputError: a value of the recipe does not fit the data or the processes; the loss is not finite (the state of
            the epoch before stays); the state file is damaged or belongs to another training; a policy cannot be used.
        TargetError: a policy cannot reach its target.
        DataError: a split is empty, or a label is no class of the model.
        ModelError: the model or the teacher does not return class scores.
        EngineError: the mixed precision or the compiler is not available here.
        StorageError: the state cannot be written; the state of the epoch before is intact.
    """
    flags = {module: module.training for module in model.modules()}
    training = _Training(model, splits, recipe, state_path, policy, teacher, reinitialise, description, progress)
    device = training.accelerator.device
    try:
        with own_randomness(device), placed(model, device), training.objective.ready():
            return training.run(resume=resume)
    finally:
        training.policy.end()
        training.trainee.release()
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
        teacher: nn.Module | None,
        reinitialise: Callable[[nn.Module], object] | None,
        description: str,
        progress: Progress,
    ) -> None:
        self.accelerator = accelerator_for(recipe.mixed_precision)
        self.model = model
        self.trainee = Trainee(
            model, recipe, self.accelerator, input_shape=splits.input_shape, reinitialise=reinitialise
        )
        self.splits = splits
        self.recipe = recipe
        self.state_path = state_path
        self.description = description
        self.plain = policy is None
        self.policy = policy if policy is not None else NoPruning()
        self.objective = Objective(recipe, teacher, self.accelerator)
        self.progress = progress if self.accelerator.is_main_process else SILENT
        self.train_size = dataset_size(splits.train)
        self.history: tuple[EpochRecord, ...] = ()
        self.batch_size = recipe.batch_size
        self._check_sizes()

    def run(self, *, resume: bool) -> TrainingResult:
        """Train from the first epoch that is not done to the last."""
        self._set_up(self._stored_state() if resume else None)
        resumed_at = len(self.history)
        evaluation = None
        scheduled = self.steps_per_epoch
        with self.progress.task(self.description, total=self.recipe.epochs * scheduled) as task:
            task.advance(resumed_at * scheduled)
            if resumed_at == 0:
                seed_everything(epoch_seed(self.recipe.seed, 0))
                self._ask(Moment(when=When.BEFORE_TRAINING, model=self.model, epoch=0, step=0))
                self._grow_batch(epoch=0)
            for epoch in range(resumed_at, self.recipe.epochs):
                steps = self.steps_per_epoch
                evaluation = self._epoch(epoch, task)
                if steps < scheduled:
                    task.advance(scheduled - steps)
        if evaluation is None:
            evaluation = self._evaluate()
        self.trainee.finish()
        cost = self.meter.total()
        return TrainingResult(
            recipe=self.recipe,
            history=self.history,
            accuracy=evaluation.accuracy,
            loss=evaluation.loss,
            images_per_second=cost.images / sum(record.seconds for record in self.history),
            device=str(self.accelerator.device),
            processes=self.accelerator.num_processes,
            cost=cost,
            plan=self.trainee.plan,
            findings=self.policy.findings(),
            resumed_at=resumed_at,
        )

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
        if state is not None:
            self.batch_size = state.batch_size
            self.history = state.history
        self._set_batches()
        self.trainee.set_up(state, steps_per_epoch=self.steps_per_epoch)
        teacher = self.objective.teacher
        self.teacher_flops = 0 if teacher is None else self.trainee.flops_of(teacher)
        self.meter = CostMeter(self.accelerator.device, None if state is None else state.cost)
        self.steps_done = self.meter.total().steps
        self.wanted_batch_size = self.batch_size
        if state is not None:
            self.policy.load_state_dict(state.policies[self.accelerator.process_index if not self.plain else 0])
        self.policy.begin(self.model, self._setting())

    def _set_batches(self) -> None:
        self.loader = epoch_loader(self.accelerator, self.splits.train, self.recipe, batch_size=self.batch_size)
        self.steps_per_epoch = len(self.loader)

    def _setting(self) -> Setting:
        def samples(images: int) -> Any:
            return sample_batches(
                self.accelerator,
                self.splits.calibration,
                self.recipe,
                batch_size=self.recipe.batch_size,
                images=images,
            )

        return Setting(
            epochs=self.recipe.epochs,
            steps_per_epoch=self.steps_per_epoch,
            batch_size=self.batch_size,
            processes=self.accelerator.num_processes,
            samples=samples,
            summed=self._summed,
        )

    def _summed(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.accelerator.num_processes == 1:
            return values
        device = self.accelerator.device
        total = self.accelerator.reduce(torch.from_numpy(np.array(values, dtype=np.float64)).to(device), "sum")
        summed: NDArray[np.float64] = total.cpu().numpy()
        return summed

    def _epoch(self, epoch: int, task: Task) -> Evaluation:
        seed_everything(epoch_seed(self.recipe.seed, epoch, process=self.accelerator.process_index))
        self.loader.set_epoch(epoch)
        started = time.perf_counter()
        elsewhere = self._seconds_elsewhere()
        loss, accuracy, learning_rate = self._steps(epoch, task)
        seconds = time.perf_counter() - started - (self._seconds_elsewhere() - elsewhere)
        self.meter.add_seconds("training", seconds)
        parameters, flops, batch_size = self.trainee.learnable_count(), self.trainee.flops, self.batch_size
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
            flops=flops,
            batch_size=batch_size,
        )
        self.history = (*self.history, record)
        moment = Moment(
            when=When.AFTER_EPOCH,
            model=self.model,
            epoch=epoch + 1,
            step=self.steps_done,
            training_loss=loss,
            training_accuracy=accuracy,
            evaluation_accuracy=evaluation.accuracy,
        )
        if self._ask(moment) and epoch + 1 == self.recipe.epochs:
            evaluation = self._evaluate()
        self._grow_batch(epoch=epoch + 1)
        with self.meter.phase("saving"):
            self._save_state()
        task.describe(f"epoch {epoch + 1}/{self.recipe.epochs}, loss {loss:.4f}, accuracy {evaluation.accuracy:.4f}")
        return evaluation

    def _seconds_elsewhere(self) -> float:
        """Seconds that were counted to a policy's moments, some of which lie between steps."""
        seconds = self.meter.total().seconds
        return seconds.get("deciding", 0.0) + seconds.get("cutting", 0.0)

    def _steps(self, epoch: int, task: Task) -> tuple[float, float, float]:
        """All steps of an epoch: mean loss, accuracy, and the learning rate of the last one."""
        self.model.train()
        device = self.accelerator.device
        exact = torch.float32 if device.type == "mps" else torch.float64
        totals = torch.zeros(3, dtype=exact, device=device)
        learning_rate = self.recipe.learning_rate
        left = self.train_size
        for number, (images, labels) in enumerate(self.loader):
            learning_rate = float(self.trainee.optimizer.param_groups[0]["lr"])
            loss, hits = self._step(images, labels, epoch=epoch)
            totals += torch.stack([loss * len(labels), hits, torch.full_like(loss, len(labels))]).to(exact)
            taken = min(left, self.batch_size)
            left -= taken
            self.meter.add_step(
                taken,
                flops=self.trainee.flops,
                dense_flops=self.trainee.dense_flops,
                teacher_flops=self.teacher_flops,
            )
            self.steps_done += 1
            if device.type == "cpu" or number % _STEPS_BETWEEN_CHECKS_ON_GPU == 0:
                self._check_finite(totals, epoch)
            if self._ask(Moment(when=When.AFTER_STEP, model=self.model, epoch=epoch, step=self.steps_done)):
                self.model.train()
            task.advance()
        totals = self.accelerator.reduce(totals, reduction="sum")
        self._check_finite(totals, epoch)
        loss_total, hit_count, image_count = totals.tolist()
        return loss_total / image_count, hit_count / image_count, learning_rate

    def _step(self, images: Tensor, labels: Tensor, *, epoch: int) -> tuple[Tensor, Tensor]:
        """One step: its loss and number of right answers, both scalars on the device."""
        self.trainee.stepper.zero_grad()
        pieces = list(parts(images, labels, self.recipe.micro_batches))
        mean, scores = torch.zeros((), device=images.device), []
        for number, (some, theirs) in enumerate(pieces, start=1):
            last = number == len(pieces)
            with nullcontext() if last else self.accelerator.no_sync(self.trainee.prepared):
                logits = checked_logits(self.trainee.stepped(some), image_count=len(some))
                if epoch == 0 or theirs.device.type == "cpu":
                    check_labels(theirs, class_count=logits.shape[1])
                logits = logits.float()
                loss = self.objective.loss(some, theirs, logits)
                if len(pieces) > 1:
                    loss = loss * (len(some) / len(images))
                mean = mean + loss.detach() if len(pieces) > 1 else loss.detach()
                penalty = self.policy.penalty(self.model, mean) if last else None
                self.accelerator.backward(loss if penalty is None else loss + penalty)
            scores.append(logits.detach())
        logits = scores[0] if len(scores) == 1 else torch.cat(scores)
        self._show(images, labels, logits, mean, epoch=epoch)
        self.trainee.step()
        return mean, (logits.argmax(dim=1) == labels).sum().to(mean.dtype)

    def _show(self, images: Tensor, labels: Tensor, logits: Tensor, loss: Tensor, *, epoch: int) -> None:
        """Let the policy see the gradients, and then clip them."""
        self.accelerator.unscale_gradients(self.trainee.stepper)
        scaler = self.accelerator.scaler
        view = StepView(
            model=self.model,
            images=images,
            labels=labels,
            logits=logits,
            loss=loss,
            epoch=epoch,
            step=self.steps_done,
            loss_scale=1.0 if self.plain or scaler is None else float(scaler.get_scale()),
        )
        self.policy.observe(view)
        if self.recipe.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.gradient_clip)

    def _ask(self, moment: Moment) -> bool:
        """Ask the policy, and do what it says. Whether it said anything."""
        with self.meter.phase("deciding"):
            decision = self.policy.decide(moment)
            if self.accelerator.num_processes > 1 and not self.plain:
                decision = broadcast_object_list([decision])[0]
        if decision is None:
            return False
        with self.meter.phase("cutting"):
            self._carry_out(decision, moment)
        return True

    def _carry_out(self, decision: Decision, moment: Moment) -> None:
        if decision.batch_factor > 1 and moment.when is When.AFTER_STEP:
            raise InputError("a batch can grow between epochs only", where="batch_factor")
        self.trainee.carry_out(decision)
        self.wanted_batch_size = int(self.batch_size * decision.batch_factor)

    def _grow_batch(self, *, epoch: int) -> None:
        """Take the batch that was decided on from ``epoch`` on, and scale the learning rate by the same factor."""
        processes = self.accelerator.num_processes
        wanted = min(self.wanted_batch_size, self.train_size) // processes * processes
        if wanted <= self.batch_size:
            return
        self.batch_size = self.wanted_batch_size = wanted
        self._set_batches()
        self.trainee.reschedule(
            steps_per_epoch=self.steps_per_epoch, epochs_done=epoch, factor=wanted / self.recipe.batch_size
        )

    def _evaluate(self) -> Evaluation:
        with self.meter.phase("evaluating"):
            return evaluate(
                self.trainee.evaluated(),
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
        state.check_repeats(
            recipe=self.recipe,
            data=self._data_name(),
            processes=None if self.plain else self.accelerator.num_processes,
            where=where,
        )
        self.trainee.restore(state, where=where)
        return state

    def _save_state(self) -> None:
        if self.state_path is None:
            return
        # What a policy has not yet added up differs from process to process.
        policies = tuple(gathered(dict(self.policy.state_dict())))
        on_main(lambda: self._state(policies).save(cast(Path, self.state_path)))

    def _state(self, policies: tuple[Mapping[str, Any], ...]) -> TrainingState:
        return TrainingState(
            recipe=self.recipe,
            data=self._data_name(),
            history=self.history,
            policies=policies,
            batch_size=self.batch_size,
            cost=self.meter.total(),
            **self.trainee.state(),
        )

    def _data_name(self) -> str:
        return f"{self.splits.name} ({self.train_size} + {dataset_size(self.splits.evaluation)} images)"

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
