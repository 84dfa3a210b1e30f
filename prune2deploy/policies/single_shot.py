"""3SP: single shot structured pruning before training.

One forward and one backward pass at initialisation score every channel; the network is pruned once, and then trained.
The score of channel j is the sensitivity of the loss to a gate on it where it is read, for each FLOP that its removal
saves: |dL/dc_j| / F_j, ranked over the whole network. What F_j counts exactly is not stated in the abstract of the
method (van Amersfoort et al., "Single shot structured pruning before training"), so ``SingleShotOptions.per`` chooses.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from torch import nn

from prune2deploy.errors import InputError, ModelError
from prune2deploy.graph.channels import ChannelGraph
from prune2deploy.graph.marginal import marginal_flops, own_layer_flops
from prune2deploy.importance.criteria import criterion_named
from prune2deploy.importance.criterion import UNJUDGED, Scores
from prune2deploy.importance.gates import readable_channels
from prune2deploy.importance.sensitivity import per_flop, summed_gate_gradients
from prune2deploy.policies.aim import Aim
from prune2deploy.policies.policy import Decision, Findings, Moment, NoPruning, Setting, When
from prune2deploy.policies.scoring import check_images, own_generators, training_scores
from prune2deploy.policies.standing import Standing

Per = Literal["marginal", "own-layer", "none"]
SENSITIVITY = "sensitivity"


@dataclass(frozen=True, slots=True, kw_only=True)
class SingleShotOptions:
    """How 3SP scores.

    per: the FLOPs that a score is divided by: ``marginal``, those that the whole model loses with the channel;
        ``own-layer``, those of the layers that make it; ``none``, plain scores.
    images: how many are scored with; None for one training batch.
    criterion: ``sensitivity``, or a registered criterion in its place (``l2``, ``random``, ``taylor``, ...), for
        comparison. It is divided by the same FLOPs.

    Raises:
        InputError: a value is not one of these.
    """

    per: Per = "marginal"
    images: int | None = None
    criterion: str = SENSITIVITY

    def __post_init__(self) -> None:
        if self.per not in get_args(Per):
            raise InputError(f"is {self.per!r}", where="--per", hint=f"choose one of {', '.join(get_args(Per))}")
        if self.images is not None and self.images < 2:
            raise InputError(f"is {self.images}, but batch statistics need at least 2 images", where="--score-images")
        if self.criterion != SENSITIVITY:
            criterion_named(self.criterion)


class SingleShot(NoPruning):
    """Prunes once, before the first step."""

    def __init__(self, graph: ChannelGraph, aim: Aim, options: SingleShotOptions | None = None) -> None:
        """``graph`` is that of the dense model, in which what may not leave is frozen.

        Raises:
            InputError: ``aim`` has no budget.
        """
        if aim.budget is None:
            raise InputError("the method 3sp needs a target", hint="say what may stay, for instance --flops 0.33")
        self._budget = aim.budget
        self._aim = aim
        self._options = options or SingleShotOptions()
        self._standing = Standing(graph)
        self._setting: Setting | None = None
        self._images = 0
        self._findings = Findings()

    def begin(self, model: nn.Module, setting: Setting) -> None:
        """Check that there are enough images in a batch.

        Raises:
            InputError: there are too few.
        """
        self._images = setting.batch_size if self._options.images is None else self._options.images
        check_images(self._images, setting)
        self._setting = setting

    def decide(self, moment: Moment) -> Decision | None:
        """Score, allocate and cut, at the first moment of all.

        Raises:
            TargetError: no plan reaches the target, or nothing would be pruned.
            InputError: the criterion can judge no channel of this model.
            DataError: a label is no class of the model.
            ModelError: a gradient is not finite, or the model does not return class scores.
        """
        if moment.when is not When.BEFORE_TRAINING or self._setting is None:
            return None
        graph, options = self._standing.dense, self._options
        started = time.perf_counter()
        scores = self._scores(moment.model, self._setting)
        scored = time.perf_counter()
        allocation = self._aim.settled(self._aim.allocation(graph, scores, budget=self._budget), scores)
        document: dict[str, Any] = {
            "method": "3sp",
            "criterion": options.criterion,
            "per": options.per,
            "images": self._images if options.criterion == SENSITIVITY or _needs_data(options.criterion) else 0,
            "ranking": self._aim.ranking,
            "targets": dict(self._budget.fractions),
            "alignment": allocation.granule,
            "seed": self._aim.seed,
        }
        plan = self._standing.cut_to(allocation.kept, document)
        finished = time.perf_counter()
        unjudged = [group.name for group in graph.groups if np.isinf(scores[group.channels]).all()]
        notes = [f"nothing tells how much {name} matters: its channels leave last" for name in unjudged]
        self._findings = Findings(
            notes=(*notes, *allocation.notes),
            document={
                **document,
                "seconds": {
                    "scoring": scored - started,
                    "allocating": finished - scored,
                    "total": finished - started,
                },
                "kept": self._standing.fractions(self._budget),
                "widths": {
                    group.name: {"dense": group.width, "kept": width}
                    for group, width in zip(graph.groups, graph.kept_widths(allocation.kept), strict=True)
                },
            },
        )
        return Decision(plan=plan)

    def findings(self) -> Findings:
        """What was removed, with which scores, and how long scoring and allocating took."""
        return self._findings

    def state_dict(self) -> Mapping[str, Any]:
        """What is left of the dense model, and the findings."""
        return {
            "standing": self._standing.state_dict(),
            "notes": list(self._findings.notes),
            "document": dict(self._findings.document),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Stand where the state was taken."""
        self._standing.load_state_dict(state["standing"])
        self._findings = Findings(notes=tuple(state["notes"]), document=dict(state["document"]))

    def _scores(self, model: nn.Module, setting: Setting) -> Scores:
        graph, options = self._standing.dense, self._options
        if options.criterion == SENSITIVITY:
            scores = sensitivity_scores(graph, model, setting, images=self._images)
        else:
            criterion = criterion_named(options.criterion)
            scores = training_scores(criterion, graph, model, setting, images=self._images, seed=self._aim.seed)
        if options.per == "none":
            return scores
        flops_of = marginal_flops if options.per == "marginal" else own_layer_flops
        return per_flop(scores, flops_of(graph.cost, graph.everything()))


def sensitivity_scores(graph: ChannelGraph, model: nn.Module, setting: Setting, *, images: int) -> Scores:
    """|dL/dc| of every channel, L the mean loss over ``images`` training images of all processes.

    Shape: -> (channel_count,). Unit: nat. The absolute value is taken last, after summing over weights, images and
    processes. Channels that no weight reads are unjudged. Call it in all processes.

    Raises:
        InputError: there were no images.
        DataError: a label is no class of the model.
        ModelError: the gradients are not finite, or the model does not return class scores.
    """
    with own_generators(model):
        own, count = summed_gate_gradients(graph, model, setting.samples(images))
    total = setting.summed(np.append(own, float(count)))
    if total[-1] == 0:
        raise InputError("there were no images to score channels with", hint="pass more with --score-images")
    scores = np.abs(total[:-1]) / total[-1]
    if not np.isfinite(scores).all():
        raise ModelError("the gradients of the loss are not finite at the start", hint="check the initial weights")
    return np.where(readable_channels(graph), scores, UNJUDGED)


def _needs_data(criterion: str) -> bool:
    return criterion_named(criterion).needs_data
