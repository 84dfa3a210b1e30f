"""Activation density: size each layer by the share of its activations that are not zero, in rounds.

Source: Foldy-Porto, Venkatesha, Panda 2020, "Activation density driven energy-efficient pruning in training".
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from prune2deploy.errors import InputError
from prune2deploy.graph.channels import ChannelGraph, ChannelMask
from prune2deploy.graph.rectifiers import Activation
from prune2deploy.policies.activation_counts import ActivationCounter
from prune2deploy.policies.aim import Aim
from prune2deploy.policies.density_rounds import Cut, cut_by_density, moved, plateaued
from prune2deploy.policies.policy import Decision, Findings, Moment, NoPruning, Setting, StepView, When
from prune2deploy.policies.standing import Standing

Keep = Literal["keep-densest", "reinitialise"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationDensityOptions:
    """keep: ``keep-densest`` goes on with the weights of the densest channels, ``reinitialise`` draws all anew.
    window: epochs over which densities are averaged where a plateau is looked for.
    epsilon: largest change of a density that counts as none.
    minimum_epochs: epochs that every round trains at least, the one after the last cut too; None: two windows.
    threshold: count |a| > threshold, and so size layers with GELU or SiLU too; None: count what is not zero.
    max_rounds: most cuts; None for no limit.
    accuracy_drop: loss of training accuracy from one round to a later one with which nothing is cut.
    every: look at one training step of so many.

    Raises:
        InputError: a value is out of its range; the option is named.
    """

    keep: Keep = "keep-densest"
    window: int = 3
    epsilon: float = 0.01
    minimum_epochs: int | None = None
    threshold: float | None = None
    max_rounds: int | None = None
    accuracy_drop: float = 0.02
    every: int = 1

    def __post_init__(self) -> None:
        least, threshold, rounds = self.minimum_epochs, self.threshold, self.max_rounds
        for holds, name, rule in (
            (self.keep in get_args(Keep), "keep", " or ".join(get_args(Keep))),
            (self.window >= 1, "window", "at least 1 epoch"),
            (0 < self.epsilon < 1, "epsilon", "above 0 and below 1"),
            (least is None or least >= 2 * self.window, "minimum_epochs", f"at least two windows ({2 * self.window})"),
            (threshold is None or 0 <= threshold < math.inf, "threshold", "0 or more, or none"),
            (rounds is None or rounds >= 1, "max_rounds", "at least 1, or none"),
            (0 <= self.accuracy_drop <= 1, "accuracy_drop", "in [0, 1]"),
            (self.every >= 1, "every", "at least 1 step"),
        ):
            if not holds:
                raise InputError(f"is {getattr(self, name)}, but must be {rule}", where=f"activation-density {name}")

    @property
    def least_epochs(self) -> int:
        """Epochs of a round at least."""
        return 2 * self.window if self.minimum_epochs is None else self.minimum_epochs


class ActivationDensity(NoPruning):
    """Rounds of training and cutting, each layer to its width times its density.

    The density of a group of channels is the share of values that its rectifiers let through in the training steps of
    an epoch; of several rectifiers (a residual stream, a concatenation) the largest share counts. Batch norms are
    in training mode there, and images augmented. A round ends when the densities of all groups have plateaued: the mean
    of the last ``window`` epochs is within ``epsilon`` of that of the ``window`` before, ``minimum_epochs`` after the
    round began, because at initialisation every density is about a half. Then every group keeps
    max(1, round(width * density)) channels, as near as alignment allows, those that were densest over the last window.

    The cuts end, and training goes on, when the densities at the end of a round are within ``epsilon`` of those at
    the end of the round before; when no width would change; after ``max_rounds`` cuts; when too few epochs are left for
    another round; or when ``aim.budget`` is met. The cut that meets it takes of every group only the share of its cut
    that is needed. While the mean training accuracy over the last window is more than ``accuracy_drop`` below that of
    an earlier round, the round goes on: it may recover, and if it does not, nothing more leaves (nothing comes back
    either). That is accuracy on the training split, so that the evaluation split decides nothing.

    Groups that no rectifier sees keep their widths, and the findings say so. GELU, SiLU and their like give no zeros,
    so groups behind them count as seen by none unless ``threshold`` is given. ``activations`` are those of the
    trace that ``graph`` is of (``graph.rectifiers.activations_of``).

    Departures from the paper, or gaps in what is known of it: the plateau test, the stopping rules, which channels
    stay.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        aim: Aim,
        options: ActivationDensityOptions,
        *,
        activations: Sequence[Activation],
    ) -> None:
        self._standing = Standing(graph)
        self._aim = aim
        self._options = options
        self._counter = ActivationCounter(activations, threshold=options.threshold)
        counted = [options.threshold is not None or one.rectifies for one in activations for _ in one.dimensions]
        self._counted = np.array(counted, dtype=bool)
        seen = [one.channels for activation in activations for one in activation.dimensions]
        self._groups = _groups_seen(graph, [one for one, counts in zip(seen, counted, strict=True) if counts])
        self._setting: Setting | None = None
        self._epochs = 0
        self._steps = 0
        self._stopped: str | None = None
        self._waits: str | None = None
        self._curve: list[dict[str, Any]] = []
        self._rounds: list[dict[str, Any]] = []
        self._channels: list[NDArray[np.float64]] = []

    def begin(self, model: nn.Module, setting: Setting) -> None:
        """Begin to watch the forward passes of ``model``.

        Raises:
            InputError: no rectifier sees channels that can leave.
        """
        if not self._groups:
            raise InputError(
                "no rectifier (ReLU) of this model sees channels that can leave",
                where="activation-density",
                hint="pass --threshold to count activations of GELU or SiLU networks by their size,"
                " or see with `p2d inspect` what can leave",
            )
        self._setting = setting
        self._epochs = setting.epochs
        if not self._rounds:
            self._begin_round(0)
        self._counter.stand_at(self._standing.kept)
        self._counter.attach(model)
        self._watch()

    def observe(self, step: StepView) -> None:
        """Count steps, of which one of ``every`` is watched."""
        self._steps += 1
        self._watch()

    def decide(self, moment: Moment) -> Decision | None:
        """After an epoch: note its densities; at the end of a round, cut."""
        if moment.when is not When.AFTER_EPOCH:
            return None
        self._note(moment)
        self._begin_epoch()
        recent, options = self._recent(), self._options
        if (
            self._stopped is not None
            or len(recent) < options.least_epochs
            or not plateaued(recent, window=options.window, epsilon=options.epsilon)
        ):
            return None
        densities = np.mean(recent[-options.window :], axis=0)
        cut = self._cut(densities)
        self._close_round(densities)
        self._waits = self._reason_to_wait()
        self._stopped = None if self._waits else self._reason_to_stop(moment, densities, cut)
        if self._stopped is not None or self._waits is not None:
            return None
        plan = self._standing.cut_to(cut.kept, self._provenance(moment))
        self._begin_round(moment.epoch)
        self._counter.stand_at(self._standing.kept)
        if self._is_reached():
            self._stopped = "the target is met"
        elif len(self._rounds) - 1 == options.max_rounds:
            self._stopped = f"{options.max_rounds} rounds were asked for at most"
        return Decision(plan=plan, fresh_weights=options.keep == "reinitialise")

    def end(self) -> None:
        """Take the hooks off the model."""
        self._counter.detach()

    def findings(self) -> Findings:
        """Densities after every epoch, widths and cost of every round, and the complexity of the training."""
        document = {
            "method": "activation-density",
            "keep": self._options.keep,
            "curve": list(self._curve),
            "rounds": [dict(one) for one in self._rounds],
            "stopped": self._stopped or self._waits,
            "unseen": self._unseen(),
            "training_complexity": self._complexity(),
            "reached": None if self._aim.budget is None else self._is_reached(),
            **self._standing.fractions(self._aim.budget),
        }
        return Findings(notes=self._notes(), document=document)

    def state_dict(self) -> Mapping[str, Any]:
        """The model's standing and all that was noted."""
        return {
            "standing": self._standing.state_dict(),
            "epochs": self._epochs,
            "stopped": self._stopped,
            "waits": self._waits,
            "curve": list(self._curve),
            "rounds": [dict(one) for one in self._rounds],
            "channels": [torch.from_numpy(one.copy()) for one in self._channels],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was taken."""
        self._standing.load_state_dict(state["standing"])
        self._epochs = state["epochs"]
        self._stopped = state["stopped"]
        self._waits = state["waits"]
        self._curve = list(state["curve"])
        self._rounds = [dict(one) for one in state["rounds"]]
        self._channels = [one.numpy().copy() for one in state["channels"]]

    def _watch(self) -> None:
        self._counter.is_on = self._steps % self._options.every == 0

    def _begin_epoch(self) -> None:
        """Count anew; the round knows how many epochs it was trained."""
        self._rounds[-1]["epochs"] += 1
        self._counter.reset()
        self._steps = 0
        self._watch()

    def _note(self, moment: Moment) -> None:
        assert self._setting is not None, "begin comes first"
        shares = self._counter.shares(self._setting.summed)[self._counted]
        densities = {}
        for index in self._groups:
            group = self._standing.dense.groups[index]
            left = group.channels[self._standing.kept[group.channels]]
            densities[group.name] = float(_largest(_means(shares[:, left])))
        # per channel, too, the largest share: a channel is as dense as where it is read most
        self._channels = [*self._channels, _largest(shares)][-self._options.window :]
        self._curve.append(
            {
                "epoch": moment.epoch,
                "round": len(self._rounds) - 1,
                "densities": densities,
                "training_accuracy": moment.training_accuracy,
            }
        )

    def _recent(self) -> list[list[float]]:
        """The densities of all groups after each epoch of this round."""
        now = len(self._rounds) - 1
        return [list(one["densities"].values()) for one in self._curve if one["round"] == now]

    def _cut(self, densities: NDArray[np.float64]) -> Cut:
        return cut_by_density(
            self._standing.dense,
            self._standing.kept,
            dict(zip(self._groups, densities.tolist(), strict=True)),
            channel_densities=np.mean(self._channels, axis=0),
            granule=self._aim.widest_granule,
            budget=self._aim.budget,
        )

    def _begin_round(self, epoch: int) -> None:
        graph, kept = self._standing.dense, self._standing.kept
        widths = graph.kept_widths(kept)
        self._channels = []
        self._rounds.append(
            {
                "begins_after": epoch,
                "epochs": 0,
                "widths": {group.name: width for group, width in zip(graph.groups, widths, strict=True)},
                "densities": None,
                "training_accuracy": None,
                **self._standing.fractions(self._aim.budget),
            }
        )

    def _close_round(self, densities: NDArray[np.float64]) -> None:
        """Note what the round came to; it may go on where nothing is cut."""
        latest = [one["training_accuracy"] for one in self._curve[-self._options.window :]]
        known = [one for one in latest if one is not None]
        names = [self._standing.dense.groups[index].name for index in self._groups]
        self._rounds[-1]["densities"] = dict(zip(names, densities.tolist(), strict=True))
        self._rounds[-1]["training_accuracy"] = sum(known) / len(known) if known else None

    def _reason_to_stop(self, moment: Moment, densities: NDArray[np.float64], cut: Cut) -> str | None:
        """Why there is no further cut, whatever comes, or None."""
        earlier = self._rounds[:-1]
        if self._is_reached():
            return "the target is met"
        if earlier and not moved(list(earlier[-1]["densities"].values()), densities, epsilon=self._options.epsilon):
            return "densities no longer move"
        if np.array_equal(cut.kept, self._standing.kept):
            return "no width would change"
        if self._epochs - moment.epoch < self._options.least_epochs:
            return f"fewer than {self._options.least_epochs} epochs were left for another round"
        return None

    def _reason_to_wait(self) -> str | None:
        """Why the round goes on for now, or None."""
        known = [one["training_accuracy"] for one in self._rounds if one["training_accuracy"] is not None]
        now = self._rounds[-1]["training_accuracy"]
        if now is not None and now < max(known) - self._options.accuracy_drop:
            return f"training accuracy is {now:.3f} after {max(known):.3f} in an earlier round"
        return None

    def _is_reached(self) -> bool:
        budget = self._aim.budget
        return budget is not None and budget.share_used(self._standing.dense.cost, self._standing.kept) <= 1

    def _provenance(self, moment: Moment) -> dict[str, Any]:
        return {
            "method": "activation-density",
            "keep": self._options.keep,
            "round": len(self._rounds),
            "granule": self._aim.widest_granule,
            "epoch": moment.epoch,
        }

    def _unseen(self) -> list[str]:
        return [group.name for group in self._standing.dense.groups if group.index not in self._groups]

    def _complexity(self) -> float | None:
        """Sum over rounds of MACs times epochs, over that of dense training in the same schedule."""
        spent = sum(one["flops"] * one["epochs"] for one in self._rounds)
        return spent / self._epochs if self._epochs else None

    def _notes(self) -> tuple[str, ...]:
        cuts = max(len(self._rounds) - 1, 0)
        ended = (
            self._stopped
            or self._waits
            or "the densities of all layers did not plateau again before the training ended"
        )
        notes = [f"rounds that ended in a cut: {cuts}; there was no other because {ended}"]
        if unseen := self._unseen():
            notes.append(
                f"groups that keep their widths, because no rectifier sees them ({len(unseen)}):"
                f" {', '.join(unseen[:3])}{' ...' if len(unseen) > 3 else ''}"
            )
        if self._aim.budget is not None and not self._is_reached():
            notes.append(f"the target was not reached: {self._standing.spelled(self._aim.budget)} stay")
        return tuple(notes)


def _groups_seen(graph: ChannelGraph, dimensions: Sequence[NDArray[np.int64]]) -> tuple[int, ...]:
    """Indices of the groups all of whose channels some dimension holds."""
    seen: ChannelMask = np.zeros(graph.channel_count, dtype=bool)
    for channels in dimensions:
        seen[channels[channels >= 0]] = True
    return tuple(group.index for group in graph.groups if seen[group.channels].all())


def _means(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of what is known of each row, NaN where nothing is. Shape: (rows, channels) -> (rows,)."""
    known = ~np.isnan(shares)
    total, count = np.where(known, shares, 0.0).sum(axis=1), known.sum(axis=1)
    means: NDArray[np.float64] = np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
    return means


def _largest(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """The largest of each column, NaN only where all are. Shape: (rows, ...) -> (...)."""
    largest: NDArray[np.float64] = np.asarray(np.fmax.reduce(shares, axis=0))
    return largest
