"""EPI: train densely until the widths that pruning would leave no longer move; then prune, and go on.

After each epoch the channels are ranked and the widths found that would remain at the target; nothing is removed or
zeroed for that. The early pruning indicator says how alike these widths are to those of the epochs before
(``policies.stability``). The network is pruned once, in the first epoch in which the indicator is above a threshold and
not below its five predecessors, and the training goes on in the same schedule. Source: Shen et al. 2022, "When to
prune? A policy towards early structural pruning". A layer is here a group of channels that leave together, and its
widths are those that the allocation, with its alignment, would give.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from prune2deploy.budget.allocate import Allocation
from prune2deploy.errors import InputError
from prune2deploy.graph.channels import ChannelGraph
from prune2deploy.importance.criteria import criterion_named
from prune2deploy.importance.criterion import Criterion, Scores
from prune2deploy.importance.normalize import normalise
from prune2deploy.importance.running_taylor import RunningTaylor
from prune2deploy.policies.aim import Aim
from prune2deploy.policies.policy import Decision, Findings, Moment, NoPruning, Setting, StepView, When
from prune2deploy.policies.scoring import check_images, training_scores
from prune2deploy.policies.stability import has_settled, indicator
from prune2deploy.policies.standing import Standing

THRESHOLDS = {"l1": 0.983, "l2": 0.983, "taylor": 0.944}
"""Of the indicator, by criterion: as reported for magnitude and for Taylor (not read in the paper itself)."""

_ACCUMULATED = "taylor"


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyOptions:
    """How EPI ranks channels and when it prunes.

    criterion: ``l2``, ``taylor`` (accumulated over the steps of each epoch, from gradients that are there anyway), or
        any other registered criterion; those that need data are given ``images`` training images after each epoch.
    window: earlier networks that each network is compared with; the indicator begins after as many epochs and one.
    threshold: of the indicator; None for the known one: 0.983 for l1 and l2, 0.944 for taylor.
    fallback_epoch: prune after this many epochs even if the indicator never got there; None for half of the training.
    prune_epoch: prune after this many epochs and look at no indicator; 0 is before training. For a grid search.
    images: for criteria that need data, other than taylor.

    Raises:
        InputError: a value is out of its range, or the criterion has no known threshold and none is given.
    """

    criterion: str = "l2"
    window: int = 5
    threshold: float | None = None
    fallback_epoch: int | None = None
    prune_epoch: int | None = None
    images: int = 256

    def __post_init__(self) -> None:
        criterion_named(self.criterion)
        if self.window < 1:
            raise InputError(f"is {self.window}, but a network is compared with at least 1", where="--window")
        if self.images < 2:
            raise InputError(f"is {self.images}, but batch statistics need at least 2 images", where="--score-images")
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise InputError(f"is {self.threshold}, but the indicator lies between 0 and 1", where="--threshold")
        if self.fallback_epoch is not None and self.fallback_epoch < 1:
            raise InputError(f"is {self.fallback_epoch}, but epochs count from 1", where="--fallback-epoch")
        if self.prune_epoch is not None and self.prune_epoch < 0:
            raise InputError(f"is {self.prune_epoch}, but 0 is before training", where="--prune-epoch")
        if self.prune_epoch is None and self.tau is None:
            raise InputError(
                f"the indicator has no known threshold for the criterion {self.criterion}",
                where="--threshold",
                hint="pass --threshold with a number below 1, such as 0.95, or choose l2 or taylor",
            )

    @property
    def tau(self) -> float | None:
        """The threshold that is used; None where there is none, which a fixed epoch does without."""
        return self.threshold if self.threshold is not None else THRESHOLDS.get(self.criterion)


class Early(NoPruning):
    """Prunes once, when the widths have settled."""

    def __init__(self, graph: ChannelGraph, aim: Aim, options: EarlyOptions | None = None) -> None:
        """``graph`` is that of the dense model, in which what may not leave is frozen.

        Raises:
            InputError: ``aim`` has no budget.
        """
        if aim.budget is None:
            raise InputError("the method epi needs a target", hint="say what may stay, for instance --flops 0.33")
        self._budget = aim.budget
        self._aim = aim
        self._options = options or EarlyOptions()
        self._criterion: Criterion = criterion_named(self._options.criterion)
        self._standing = Standing(graph)
        self._latest_scores: Scores | None = None
        self._accumulated = RunningTaylor(graph)
        self._setting: Setting | None = None
        self._widths: list[tuple[int, ...]] = []
        self._curve: list[float | None] = []
        self._pruned_at: dict[str, Any] | None = None
        self._notes: tuple[str, ...] = ()

    def begin(self, model: nn.Module, setting: Setting) -> None:
        """Check, before anything is trained, that the target and the epochs to prune at can be reached.

        Raises:
            TargetError: no plan reaches the target, or nothing would be pruned.
            InputError: no epoch would be left to train the pruned network.
        """
        self._setting = setting
        if self._pruned_at is not None:
            return
        for option, epoch in {
            "--prune-epoch": self._options.prune_epoch,
            "--fallback-epoch": self._latest(setting.epochs) if self._options.prune_epoch is None else None,
        }.items():
            if epoch is not None and epoch >= setting.epochs:
                raise InputError(
                    f"pruning after {epoch} of {setting.epochs} epochs leaves none to train the pruned network",
                    where=option,
                    hint=f"pass {option} with a smaller number, or more --epochs",
                )
        if self._criterion.needs_data:
            check_images(self._options.images, setting)
        graph = self._standing.dense
        self._aim.allocation(graph, np.ones(graph.channel_count), budget=self._budget)

    def observe(self, step: StepView) -> None:
        """Accumulate Taylor from the gradients of this step, until the network is pruned."""
        if self._pruned_at is None and self._accumulates:
            self._accumulated.add(step.model)

    def decide(self, moment: Moment) -> Decision | None:
        """Rank, compare with the epochs before, and prune if that has settled or it is time.

        Raises:
            InputError: the criterion can judge no channel of this model.
            ModelError: a weight or a gradient is not finite.
        """
        if self._pruned_at is not None or self._setting is None:
            return None
        options = self._options
        if moment.when is When.BEFORE_TRAINING and options.prune_epoch == 0:
            return self._cut(self._allocation(moment.model, self._setting), epoch=0, how="fixed")
        if moment.when is not When.AFTER_EPOCH:
            return None
        allocation = self._allocation(moment.model, self._setting)
        self._accumulated.forget()
        self._widths.append(self._standing.dense.kept_widths(allocation.kept))
        self._curve.append(indicator(self._widths, options.window))
        if options.prune_epoch is not None:
            return (
                self._cut(allocation, epoch=moment.epoch, how="fixed") if moment.epoch == options.prune_epoch else None
            )
        if options.tau is not None and has_settled(self._curve, options.tau):
            return self._cut(allocation, epoch=moment.epoch, how="indicator")
        if moment.epoch >= self._latest(self._setting.epochs):
            self._notes = (self._fallback_note(moment.epoch),)
            return self._cut(allocation, epoch=moment.epoch, how="fallback")
        return None

    def findings(self) -> Findings:
        """The curve of the indicator with the would-be widths, and when the network was pruned, and why then."""
        options = self._options
        curve = [
            {"epoch": number, "epi": epi, "widths": list(widths)}
            for number, (epi, widths) in enumerate(zip(self._curve, self._widths, strict=True), start=1)
        ]
        groups = self._standing.dense.groups
        document = {
            "method": "epi",
            "criterion": options.criterion,
            "window": options.window,
            "threshold": options.tau,
            "layers": [group.name for group in groups],
            "dense_widths": [group.width for group in groups],
            "curve": curve,
            "pruned": dict(self._pruned_at) if self._pruned_at is not None else None,
        }
        return Findings(notes=self._notes, document=document)

    def state_dict(self) -> Mapping[str, Any]:
        """What is left of the dense model, the curve so far and when it was pruned. Taken between epochs."""
        return {
            "standing": self._standing.state_dict(),
            "widths": [list(widths) for widths in self._widths],
            "curve": list(self._curve),
            "pruned": self._pruned_at,
            "notes": list(self._notes),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the state was taken."""
        self._standing.load_state_dict(state["standing"])
        self._widths = [tuple(widths) for widths in state["widths"]]
        self._curve = list(state["curve"])
        self._pruned_at = state["pruned"]
        self._notes = tuple(state["notes"])

    @property
    def _accumulates(self) -> bool:
        return self._criterion.name == _ACCUMULATED

    def _latest(self, epochs: int) -> int:
        """The epoch to prune after if nothing settles before."""
        return max(1, epochs // 2) if self._options.fallback_epoch is None else self._options.fallback_epoch

    def _allocation(self, model: nn.Module, setting: Setting) -> Allocation:
        self._latest_scores = self._scores(model, setting)
        return self._aim.allocation(self._standing.dense, self._latest_scores, budget=self._budget)

    def _scores(self, model: nn.Module, setting: Setting) -> Scores:
        """Taylor over the epoch that just ended; before any step, and of other criteria, on the model as it stands."""
        graph = self._standing.dense
        if self._accumulates:
            # Gradients are the same in every process, but a GPU's sums may differ in the last bit.
            total, steps = self._accumulated.total()
            shared = setting.summed(np.append(total, steps))
            if shared[-1] > 0:
                return normalise(graph, shared[:-1] / shared[-1], self._criterion.normalization)
        return training_scores(self._criterion, graph, model, setting, images=self._options.images, seed=self._aim.seed)

    def _cut(self, allocation: Allocation, *, epoch: int, how: str) -> Decision:
        if self._latest_scores is not None:
            allocation = self._aim.settled(allocation, self._latest_scores)
        self._notes = (*self._notes, *allocation.notes)
        provenance = {
            "method": "epi",
            "criterion": self._options.criterion,
            "epoch": epoch,
            "how": how,
            "ranking": self._aim.ranking,
            "targets": dict(self._budget.fractions),
            "alignment": allocation.granule,
            "seed": self._aim.seed,
        }
        plan = self._standing.cut_to(allocation.kept, provenance)
        self._pruned_at = {
            "epoch": epoch,
            "how": how,
            "epi": self._curve[-1] if self._curve else None,
            "alignment": allocation.granule,
            **self._standing.fractions(self._budget),
        }
        return Decision(plan=plan)

    def _fallback_note(self, epoch: int) -> str:
        defined = [epi for epi in self._curve if epi is not None]
        reached = f"its highest value was {max(defined):.3f}" if defined else "it was not defined yet"
        return (
            f"the early pruning indicator had not settled above {self._options.tau} by epoch {epoch} ({reached}): "
            "the network was pruned at the fallback epoch"
        )
