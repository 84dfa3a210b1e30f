"""PruneTrain: drive channels to zero from the first step on, and cut the dead ones out every few epochs.

Source: Lym et al. 2019, "PruneTrain: fast neural network training by dynamic sparse model reconfiguration".
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prune2deploy.errors import InputError
from prune2deploy.graph.channels import ChannelGraph, ChannelMask
from prune2deploy.policies.aim import Aim
from prune2deploy.policies.batch_growth import activation_sizes, grown_batch
from prune2deploy.policies.group_lasso import GroupLasso
from prune2deploy.policies.policy import Decision, Findings, Moment, NoPruning, Setting, When
from prune2deploy.policies.standing import Standing
from prune2deploy.policies.widths import counts_from

_STEPS_OF_THE_PAPER = 182 * 391
_FEW_STEPS = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneTrainOptions:
    """ratio: share of the penalty in the loss of the first step, which fixes its coefficient for good.
    interval: epochs from one reconfiguration to the next (10 for CIFAR, 5 for ImageNet in the paper).
    dead_below: largest absolute weight of a channel that is dead.
    dynamic_batch: let the batch, and the learning rate with it, grow into the memory that became free.
    largest_batch: images that it may grow to; None: as memory allows, while an epoch keeps at least ten steps.

    Raises:
        InputError: a value is out of its range; the option is named.
    """

    ratio: float = 0.2
    interval: int = 10
    dead_below: float = 1e-4
    dynamic_batch: bool = True
    largest_batch: int | None = None

    def __post_init__(self) -> None:
        largest = self.largest_batch
        for holds, name, rule in (
            (0 < self.ratio < 1, "ratio", "above 0 and below 1"),
            (self.interval >= 1, "interval", "at least 1 epoch"),
            (0 < self.dead_below < math.inf, "dead_below", "above 0"),
            (largest is None or largest >= 1, "largest_batch", "at least 1 image, or none"),
        ):
            if not holds:
                raise InputError(f"is {getattr(self, name)}, but must be {rule}", where=f"prunetrain {name}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Survivors:
    """What a reconfiguration leaves. ``kept``, shape (channel_count,), is what stays; the rest counts channels.

    ``dead``: below the threshold. ``rounded``: dead ones that stay for an aligned width; ``last``: those that stay
    because a layer may not become empty. ``branches``: names of residual branches that leave whole.
    """

    kept: ChannelMask
    dead: int
    rounded: int
    last: int
    branches: tuple[str, ...] = ()


def reconfigured(
    graph: ChannelGraph, kept: ChannelMask, strengths: NDArray[np.float64], *, dead_below: float, granule: int
) -> Survivors:
    """What stays of ``kept``. ``strengths`` are largest absolute weights; both have shape (channel_count,).

    ``graph`` is the dense one, by whose widths groups are aligned. A branch with an empty group leaves whole.
    """
    stays = kept.copy()
    alive_in = [int((strengths[group.channels] >= dead_below)[kept[group.channels]].sum()) for group in graph.groups]
    gone = [branch for branch in graph.branches if not all(alive_in[index] for index in branch.groups)]
    standing = tuple(branch.name for branch in gone if kept[graph.groups[branch.groups[0]].channels].any())
    emptied = {index for branch in gone for index in branch.groups}
    dead = rounded = last = 0
    for group, alive in zip(graph.groups, alive_in, strict=True):
        left = group.channels[kept[group.channels]]
        dead += len(left) - alive
        if group.index in emptied:
            stays[left] = False
        if alive == len(left) or group.index in emptied:
            continue
        count = min(one for one in counts_from(group, granule, left=len(left)) if one >= alive)
        rounded += count - alive if alive else 0
        last += 0 if alive else count
        stays[left[np.argsort(-strengths[left], kind="stable")[count:]]] = False
    return Survivors(kept=stays, dead=dead, rounded=rounded, last=last, branches=standing)


class PruneTrain(NoPruning):
    """Group lasso from scratch, with reconfigurations.

    The loss is CE + lambda * GL (``GroupLasso``), with lambda = r * CE0 / ((1 - r) * GL0) of the first step: CE0 is the
    mean over all processes, of the loss without the penalty. After every ``interval`` epochs, and after the last
    one, channels whose weights are *all* below ``dead_below`` leave: every slice that makes the channel and every slice
    that reads it, in every layer that shares it. So the dead outputs of a layer meet the dead inputs of the next one,
    and a channel of a residual stream goes when it is dead all along it; as dead outputs alone would not do, since a
    norm behind them scales what is left up again. A layer whose channels are all dead takes its residual branch with it
    where the graph knows that branch; elsewhere it keeps its strongest channel, or its smallest aligned width. Aligned
    groups keep their strongest dead channels up to the next multiple of the granule: a departure for the engine's sake,
    which a granule of 1 turns off.

    ``aim.budget`` is a stop: at the first reconfiguration that is at or below it the penalty ends and no more is cut.
    A cut is not shrunk to land on the budget, because what it would keep is dead. Whether it was ever reached is in the
    findings (``reached``).

    Batches grow as ``grown_batch`` says: the paper grows them into free memory, its exact rule is not known.
    """

    def __init__(self, graph: ChannelGraph, aim: Aim, options: PruneTrainOptions) -> None:
        self._standing = Standing(graph)
        self._aim = aim
        self._options = options
        self._lasso: GroupLasso | None = None
        self._setting: Setting | None = None
        self._coefficient: float | None = None
        self._schedule: dict[str, int] = {}
        self._batch_size = 0
        self._stopped_at: int | None = None
        self._shares: list[dict[str, Any]] = []
        self._reconfigurations: list[dict[str, Any]] = []

    def begin(self, model: nn.Module, setting: Setting) -> None:
        """Find the weights to regularise.

        Raises:
            InputError: nothing of this model can leave.
        """
        self._setting = setting
        self._lasso = GroupLasso(self._standing.graph, model)
        if self._schedule:  # resumed: what counts is the batch that the training began with
            return
        if self._lasso.is_empty:
            raise InputError(
                "no weight of this model makes or reads channels that can leave, so there is nothing to regularise",
                where="prunetrain",
                hint="see why with `p2d inspect`",
            )
        self._batch_size = setting.batch_size
        self._schedule = {
            "epochs": setting.epochs,
            "steps_per_epoch": setting.steps_per_epoch,
            "batch_size": setting.batch_size,
            "steps": setting.epochs * setting.steps_per_epoch,
        }

    def penalty(self, model: nn.Module, loss: Tensor) -> Tensor | None:
        """lambda * GL; at the first call, which all processes make, lambda is set."""
        lasso = self._lasso_of(model)
        if self._stopped_at is not None or lasso.is_empty:
            return None
        slices = lasso.penalty(model)
        if self._coefficient is None:
            assert self._setting is not None, "begin comes first"
            entropy = float(self._setting.summed(np.array([float(loss)]))[0]) / self._setting.processes
            ratio = self._options.ratio
            self._coefficient = ratio * entropy / ((1 - ratio) * float(slices.detach()))
        return self._coefficient * slices

    def decide(self, moment: Moment) -> Decision | None:
        """After an epoch: note the penalty; every ``interval`` epochs and after the last one, cut what is dead."""
        lasso = self._lasso_of(moment.model)
        if moment.when is not When.AFTER_EPOCH or self._stopped_at is not None or lasso.is_empty:
            return None
        self._note_share(lasso, moment)
        last = moment.epoch == self._schedule["epochs"]
        if moment.epoch % self._options.interval and not last:
            return None
        strengths = lasso.strengths(moment.model)
        survivors = reconfigured(
            self._standing.dense,
            self._standing.kept,
            strengths,
            dead_below=self._options.dead_below,
            granule=self._aim.widest_granule,
        )
        before, removed = self._batch_size, int((self._standing.kept & ~survivors.kept).sum())
        plan = self._standing.cut_to(survivors.kept, self._provenance(moment)) if removed else None
        if removed and self._options.dynamic_batch and not last:
            self._batch_size = self._grown_batch()
        self._note(moment, survivors, removed)
        if self._is_reached():
            self._stopped_at = moment.epoch
        if plan is None:
            return None
        self._lasso = None  # it was of the model as it stood
        return Decision(plan=plan, batch_factor=_factor(before, self._batch_size))

    def findings(self) -> Findings:
        """lambda, the penalty's share after each epoch, and every reconfiguration."""
        document = {
            "method": "prunetrain",
            "ratio": self._options.ratio,
            "lambda": self._coefficient,
            "schedule": dict(self._schedule),
            "penalty_shares": list(self._shares),
            "reconfigurations": list(self._reconfigurations),
            "reached": None if self._aim.budget is None else self._is_reached(),
            "stopped_at": self._stopped_at,
            **self._standing.fractions(self._aim.budget),
        }
        return Findings(notes=self._notes(), document=document)

    def state_dict(self) -> Mapping[str, Any]:
        """The model's standing, lambda and all that was noted."""
        return {
            "standing": self._standing.state_dict(),
            "coefficient": self._coefficient,
            "schedule": dict(self._schedule),
            "batch_size": self._batch_size,
            "stopped_at": self._stopped_at,
            "shares": list(self._shares),
            "reconfigurations": list(self._reconfigurations),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was taken."""
        self._standing.load_state_dict(state["standing"])
        self._coefficient = state["coefficient"]
        self._schedule = dict(state["schedule"])
        self._batch_size = state["batch_size"]
        self._stopped_at = state["stopped_at"]
        self._shares = list(state["shares"])
        self._reconfigurations = list(state["reconfigurations"])

    def _lasso_of(self, model: nn.Module) -> GroupLasso:
        if self._lasso is None:
            self._lasso = GroupLasso(self._standing.graph, model)
        return self._lasso

    def _is_reached(self) -> bool:
        budget = self._aim.budget
        return budget is not None and budget.share_used(self._standing.dense.cost, self._standing.kept) <= 1

    def _grown_batch(self) -> int:
        assert self._setting is not None, "begin comes first"
        cost, kept = self._standing.dense.cost, self._standing.kept
        return grown_batch(
            self._schedule["batch_size"],
            current=self._batch_size,
            memory_ratio=activation_sizes(cost, kept)
            / max(activation_sizes(cost, self._standing.dense.everything()), 1),
            largest=self._options.largest_batch,
            images=self._schedule["steps_per_epoch"] * self._schedule["batch_size"],
            processes=self._setting.processes,
        )

    def _provenance(self, moment: Moment) -> dict[str, Any]:
        return {
            "method": "prunetrain",
            "ratio": self._options.ratio,
            "dead_below": self._options.dead_below,
            "granule": self._aim.widest_granule,
            "epoch": moment.epoch,
        }

    def _note_share(self, lasso: GroupLasso, moment: Moment) -> None:
        """The share of the penalty in the loss of the epoch, with the weights at its end."""
        with torch.no_grad():
            penalty = (self._coefficient or 0.0) * float(lasso.penalty(moment.model))
        loss = moment.training_loss
        share = None if loss is None else penalty / max(loss + penalty, 1e-12)
        self._shares.append({"epoch": moment.epoch, "penalty": penalty, "loss": loss, "share": share})

    def _note(self, moment: Moment, survivors: Survivors, removed: int) -> None:
        graph, kept = self._standing.dense, self._standing.kept
        widths = graph.kept_widths(kept)
        self._reconfigurations.append(
            {
                "epoch": moment.epoch,
                "dead": survivors.dead,
                "removed": removed,
                "kept_for_alignment": survivors.rounded,
                "kept_as_last": survivors.last,
                "branches": list(survivors.branches),
                "widths": {group.name: width for group, width in zip(graph.groups, widths, strict=True)},
                "batch_size": self._batch_size,
                **self._standing.fractions(self._aim.budget),
            }
        )

    def _notes(self) -> tuple[str, ...]:
        notes = []
        steps = self._schedule.get("steps", 0)
        removed = sum(one["removed"] for one in self._reconfigurations)
        left = (
            f"{removed} of {self._standing.dense.channel_count} channels were removed"
            if removed
            else "no channel was removed"
        )
        notes.append(f"the schedule has {steps} steps; {left}")
        if steps < _FEW_STEPS:
            notes[0] += (
                ": the penalty moves weights a little at every step, and few channels reach zero in so few"
                f" (the paper's schedule for CIFAR has {_STEPS_OF_THE_PAPER}); train longer, or with a smaller batch"
            )
        if self._reconfigurations:
            latest = self._reconfigurations[-1]
            if latest["kept_for_alignment"]:
                notes.append(
                    f"{latest['kept_for_alignment']} dead channels stay, because widths are multiples of"
                    f" {self._aim.widest_granule} (--align 1 removes them)"
                )
            if latest["kept_as_last"]:
                notes.append(f"{latest['kept_as_last']} dead channels stay, because a layer may not become empty")
        if self._stopped_at is not None:
            notes.append(f"the target was reached after epoch {self._stopped_at}: penalty and cuts ended there")
        elif self._aim.budget is not None and not self._is_reached():
            notes.append(f"the target was not reached: {self._standing.spelled(self._aim.budget)} stay")
        return tuple(notes)


def _factor(before: int, after: int) -> float:
    """The factor by which ``before`` times it, rounded down, is ``after``."""
    factor = after / before
    while int(before * factor) < after:
        factor = math.nextafter(factor, math.inf)
    return factor
