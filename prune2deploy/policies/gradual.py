"""Pruning during fine-tuning: a few channels at a time, each time by fresh scores.

Two uses, one schedule. *Fisher* as in Crowley et al. 2018, "A closer look at structured pruning for neural network
compression" (after Theis et al. 2018): Δ_c is accumulated from the training steps themselves, every so many steps the
smallest channel of all leaves, and the sums begin anew. And *iterative* pruning by any criterion, in a number of cuts.

Departures. Where widths are aligned the unit is a granule of a group and not a channel. The paper goes on for as many
cuts as its target takes; here the length of the fine-tuning is given, so at each cut as many units leave as the target
asks for by then (the FLOPs go down along a straight line, and at least one unit leaves), and the last cut meets the
target as every other method does: it is the largest plan within it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from prune2deploy.budget.stepwise import cheapest_first
from prune2deploy.errors import InputError
from prune2deploy.graph.channels import ChannelGraph, ChannelMask
from prune2deploy.importance.criteria import criterion_named
from prune2deploy.importance.criterion import Scores
from prune2deploy.importance.flop_penalty import with_flop_penalty
from prune2deploy.importance.normalize import normalise
from prune2deploy.importance.running_fisher import RunningFisher
from prune2deploy.importance.running_taylor import RunningTaylor
from prune2deploy.policies.aim import Aim
from prune2deploy.policies.policy import Decision, Findings, Moment, NoPruning, Setting, StepView, When
from prune2deploy.policies.scoring import training_scores
from prune2deploy.policies.standing import Standing

FISHER = "fisher"
TAYLOR = "taylor"


@dataclass(frozen=True, slots=True, kw_only=True)
class GradualOptions:
    """When gradual pruning cuts, and by what.

    criterion: a registered one. ``fisher`` and ``taylor`` are accumulated from the training steps since the last cut,
        ``fisher`` as it is and not normalised by group, as in the paper; other criteria score the model as it stands,
        on ``images`` of the training split where they need data.
    every_steps: cut every so many optimiser steps (100 in the paper).
    cuts: cut so many times, evenly spread. One of the two is given.
    share: the part of the tuning in which cuts fall; the rest mends.
    flop_penalty: β of ``importance.flop_penalty``.

    Raises:
        InputError: a value is out of its range, or not exactly one of ``every_steps`` and ``cuts`` is given.
    """

    criterion: str = FISHER
    every_steps: int | None = None
    cuts: int | None = None
    share: float = 0.75
    flop_penalty: float = 0.0
    images: int = 1024

    def __post_init__(self) -> None:
        criterion_named(self.criterion)
        if (self.every_steps is None) == (self.cuts is None):
            raise InputError(
                "say when to cut: either every so many steps, or so many times", where="--every-steps, --cuts"
            )
        for option, value in (("--every-steps", self.every_steps), ("--cuts", self.cuts), ("images", self.images)):
            if value is not None and value < 1:
                raise InputError(f"is {value}, but must be at least 1", where=option)
        if not 0 < self.share <= 1:
            raise InputError(f"is {self.share:g}, but must be above 0 and at most 1", where="share")
        if not 0 <= self.flop_penalty < float("inf"):
            raise InputError(f"is {self.flop_penalty:g}, but must be 0 or more", where="--flop-penalty")


def cutting_steps(options: GradualOptions, steps: int) -> tuple[int, ...]:
    """After which of the ``steps`` of a training to cut, counted from 1, ascending.

    Raises:
        InputError: it is too short for a cut, or for as many as are asked for.
    """
    last = int(options.share * steps)
    if options.every_steps is not None:
        found = tuple(range(options.every_steps, last + 1, options.every_steps))
        if not found:
            raise InputError(
                f"no cut falls into the first {last} of the {steps} training steps, which is where they may fall",
                where=f"--every-steps {options.every_steps}",
                hint=f"pass --every-steps {max(last, 1)} or less, or more --epochs",
            )
        return found
    cuts = options.cuts or 1
    if cuts > last:
        raise InputError(
            f"the training has {steps} steps, and cuts may fall into the first {last}",
            where=f"--cuts {cuts}",
            hint=f"pass --cuts {max(last, 1)} or less, or more --epochs",
        )
    return tuple(round(last * number / cuts) for number in range(1, cuts + 1))


class Gradual(NoPruning):
    """Prunes at fixed steps of a training, down to the budget."""

    def __init__(self, graph: ChannelGraph, aim: Aim, options: GradualOptions) -> None:
        """``graph`` is that of the dense model, in which what may not leave is frozen.

        Raises:
            InputError: ``aim`` has no budget.
        """
        if aim.budget is None:
            raise InputError("gradual pruning needs a target", hint="say what may stay, for instance --flops 0.33")
        self._budget = aim.budget
        self._aim = aim
        self._options = options
        self._criterion = criterion_named(options.criterion)
        self._standing = Standing(graph)
        self._setting: Setting | None = None
        self._steps: tuple[int, ...] = ()
        self._granule = aim.widest_granule
        self._fisher: RunningFisher | None = None
        self._taylor: RunningTaylor | None = None
        self._heard: Mapping[str, Any] | None = None
        self._done = False
        self._cuts: list[dict[str, Any]] = []
        self._notes: tuple[str, ...] = ()

    def begin(self, model: nn.Module, setting: Setting) -> None:
        """Lay out the cuts, see that the target can be reached, and begin to listen.

        Raises:
            TargetError: no plan reaches the target.
            InputError: the training is too short for the cuts.
        """
        self._setting = setting
        self._steps = cutting_steps(self._options, setting.epochs * setting.steps_per_epoch)
        if self._done:
            return
        dense = self._standing.dense
        self._granule = self._aim.allocation(dense, np.zeros(dense.channel_count), budget=self._budget).granule
        device = next(model.parameters()).device
        if self._criterion.name == FISHER:
            self._fisher = RunningFisher(self._standing.graph, model)
            if self._heard is not None:
                self._fisher.load_state_dict(self._heard)
        elif self._criterion.name == TAYLOR:
            self._taylor = RunningTaylor(self._standing.graph)
            if self._heard is not None:
                self._taylor.go_on_from(self._heard["sums"].numpy(), self._heard["steps"], device)

    def observe(self, step: StepView) -> None:
        """Take the step into the sums of ``fisher`` or ``taylor``."""
        if self._setting is None:
            return
        if self._taylor is not None:
            self._taylor.add(step.model)
        if self._fisher is not None:
            unsettled = self._fisher.fit is None
            gates = self._fisher.step(step.model, len(step.images), scale=step.loss_scale)
            if unsettled:
                self._settle(self._fisher, gates)

    def decide(self, moment: Moment) -> Decision | None:
        """Cut, at the steps that were laid out, until the target is met.

        Raises:
            TargetError: no plan reaches the target from here.
            InputError: the criterion can judge no channel of this model.
            ModelError: a weight or a gradient is not finite.
        """
        if self._done or moment.when is not When.AFTER_STEP or moment.step not in self._steps:
            return None
        images, scores = self._scores(moment.model)
        kept = self._kept_after(self._steps.index(moment.step) + 1, scores)
        provenance = {"method": "gradual", "criterion": self._criterion.name, "alignment": self._granule}
        removed = int((self._standing.kept & ~kept).sum())
        plan = self._standing.cut_to(kept, provenance)
        self._cuts.append(
            {
                "step": moment.step,
                "epoch": moment.epoch + 1,
                "removed": removed,
                "images": images,
                **self._standing.fractions(self._budget),
            }
        )
        self._begin_anew()
        return Decision(plan=plan)

    def end(self) -> None:
        """Stop listening."""
        if self._fisher is not None:
            self._fisher.remove()

    def findings(self) -> Findings:
        """The cuts, what was left after each, and how scores were taken."""
        document = {
            "method": "gradual",
            "criterion": self._criterion.name,
            "every_steps": self._options.every_steps,
            "share": self._options.share,
            "flop_penalty": self._options.flop_penalty,
            "granule": self._granule,
            "scored": self._scored_how(),
            "planned_cuts": list(self._steps),
            "cuts": [dict(cut) for cut in self._cuts],
        }
        return Findings(notes=self._notes, document=document)

    def state_dict(self) -> Mapping[str, Any]:
        """What is left of the model, the cuts so far, and the sums since the last one."""
        heard: Mapping[str, Any] | None = None
        if self._fisher is not None:
            heard = self._fisher.state_dict()
        elif self._taylor is not None:
            sums, steps = self._taylor.total()
            heard = {"sums": torch.from_numpy(sums.copy()), "steps": steps}
        return {
            "standing": self._standing.state_dict(),
            "granule": self._granule,
            "heard": heard,
            "done": self._done,
            "cuts": [dict(cut) for cut in self._cuts],
            "notes": list(self._notes),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Stand where the state was taken."""
        self._standing.load_state_dict(state["standing"])
        self._granule = int(state["granule"])
        self._heard = state["heard"]
        self._done = bool(state["done"])
        self._cuts = [dict(cut) for cut in state["cuts"]]
        self._notes = tuple(state["notes"])

    def _settle(self, fisher: RunningFisher, gates: tuple[Scores, Scores] | None) -> None:
        """On a first step: whether all processes hear the gradients of all channels, so that all go on alike."""
        setting = self._setting
        if setting is None:
            return
        width = self._standing.dense.channel_count
        heard, exact = gates if gates is not None else (np.zeros(width), np.zeros(width))
        total = setting.summed(np.append(heard, [0.0 if fisher.fit is None else 1.0]))
        if total[-1] > 0:
            fisher.fit = False
        else:
            fisher.settle(total[:-1] / setting.processes, exact)
        if fisher.fit is False:
            self._note(
                "fisher is scored on images of the training split before each cut: what reads the channels of this "
                "model cannot be listened to while it trains"
            )

    def _scores(self, model: nn.Module) -> tuple[int, Scores]:
        """How many images the scores are of (over all processes, 0 for none), and the scores: (channel_count,)."""
        setting = self._setting
        if setting is None:
            raise InputError("is asked before it has begun", where="gradual pruning")
        graph, images = self._standing.graph, 0
        if self._fisher is not None and self._fisher.fit is not False:
            sums, count = self._fisher.sums()
            total = setting.summed(np.append(sums, float(count)))
            images, scores = int(total[-1]), self._fisher.scores(total[:-1], total[-1])
        elif self._taylor is not None:
            sums, steps = self._taylor.total()
            images = int(steps) * setting.batch_size
            scores = normalise(graph, sums / max(steps, 1.0), self._criterion.normalization)
        else:
            images = self._options.images if self._criterion.needs_data else 0
            scores = training_scores(
                self._criterion, graph, model, setting, images=self._options.images, seed=self._aim.seed
            )
        dense = self._standing.dense
        return images, with_flop_penalty(dense, scores, self._options.flop_penalty, kept=self._standing.kept)

    def _kept_after(self, number: int, scores: Scores) -> ChannelMask:
        """What is left after cut ``number``, counted from 1; sets ``_done`` where that is the last."""
        dense, budget = self._standing.dense, self._budget
        if number < len(self._steps):
            whole = budget.share_used(dense.cost, dense.everything())
            goal = whole + (1 - whole) * number / len(self._steps)
            kept = cheapest_first(
                dense,
                scores,
                available=self._standing.kept,
                granule=self._granule,
                enough=lambda mask: budget.share_used(dense.cost, mask) <= goal,
                ranking=self._aim.ranking,
            )
            if budget.share_used(dense.cost, kept) > 1:
                return kept
        left = self._standing.kept
        allocation = self._aim.allocation(dense, scores, budget=budget, available=left)
        allocation = self._aim.settled(allocation, scores, available=left)
        self._granule = allocation.granule
        self._note(*allocation.notes)
        self._done = True
        return allocation.kept

    def _begin_anew(self) -> None:
        """Go on with the model as it stands now, and empty sums; stop listening after the last cut."""
        self._heard = None
        if self._done:
            self.end()
            self._fisher = self._taylor = None
        if self._fisher is not None:
            self._fisher.reset()
            self._fisher.follow(self._standing.graph)
        if self._taylor is not None:
            self._taylor = RunningTaylor(self._standing.graph)

    def _scored_how(self) -> str:
        if self._criterion.name == TAYLOR:
            return "on the training steps"
        if self._criterion.name == FISHER:
            sampled = any("fisher is scored on images" in note for note in self._notes)
            return "on images of the training split" if sampled else "on the training steps"
        return "on images of the training split" if self._criterion.needs_data else "on the weights"

    def _note(self, *texts: str) -> None:
        self._notes = tuple(dict.fromkeys((*self._notes, *texts)))
