"""The registry of criteria, one line each, and the one way to use them."""

import difflib
from collections.abc import Iterator

import numpy as np
from torch import Tensor, nn

from prune2deploy.errors import InputError, ModelError
from prune2deploy.graph.channels import ChannelGraph
from prune2deploy.importance.bn_scale import bn_scale
from prune2deploy.importance.criterion import Batches, Criterion, Normalization, Scores
from prune2deploy.importance.fisher import fisher
from prune2deploy.importance.fpgm import fpgm
from prune2deploy.importance.lamp import lamp
from prune2deploy.importance.magnitude import l1, l2
from prune2deploy.importance.normalize import normalise
from prune2deploy.importance.random_scores import random_scores
from prune2deploy.importance.taylor import taylor, taylor_bn
from prune2deploy.progress import SILENT, Progress, Task

# fmt: off
CRITERIA = {criterion.name: criterion for criterion in (
    Criterion(name="l1", needs_data=False, normalization="none", function=l1, source="Li et al. 2017"),
    Criterion(name="l2", needs_data=False, normalization="mean", function=l2, source="Li et al. 2017"),
    Criterion(name="bn-scale", needs_data=False, normalization="mean", function=bn_scale, source="Liu et al. 2017"),
    Criterion(name="lamp", needs_data=False, normalization="none", function=lamp, source="Lee et al. 2021"),
    Criterion(name="fpgm", needs_data=False, normalization="mean", function=fpgm, source="He et al. 2019"),
    Criterion(name="taylor", needs_data=True, normalization="mean", function=taylor, source="Molchanov et al. 2019"),
    Criterion(name="taylor-bn", needs_data=True, normalization="mean", function=taylor_bn, source="the same, as gates"),
    Criterion(name="fisher", needs_data=True, normalization="mean", function=fisher, source="Theis et al. 2018"),
    Criterion(name="random", needs_data=False, normalization="none", function=random_scores, source="the control"),
)}
# fmt: on


def criterion_named(name: str) -> Criterion:
    """The criterion of that name.

    Raises:
        InputError: there is none; the message lists the names.
    """
    if name in CRITERIA:
        return CRITERIA[name]
    near = difflib.get_close_matches(name, CRITERIA, n=1)
    meant = f" (did you mean {near[0]}?)" if near else ""
    raise InputError(f"{name!r} is no criterion{meant}", hint=f"choose one of {', '.join(CRITERIA)}")


def score_channels(
    graph: ChannelGraph,
    model: nn.Module,
    batches: Batches | None = None,
    *,
    criterion: Criterion,
    seed: int = 0,
    normalization: Normalization | None = None,
    progress: Progress = SILENT,
) -> Scores:
    """Score every channel and make the groups comparable. Shape: -> (channel_count,); the lowest leave first.

    ``normalization`` overrules the criterion's own. Scores are finite, or ``UNJUDGED`` (infinite) for channels that
    the criterion cannot judge; ``progress`` is told which groups those are. The model is left as it was.

    Raises:
        InputError: the criterion needs batches and there are none, or can judge no channel at all.
        ModelError: a weight or a gradient is not finite.
    """
    _check_finite(model)
    if criterion.needs_data and batches is None:
        raise InputError(f"the criterion {criterion.name} needs data", hint="pass --data, or choose l2")
    with progress.task(f"scoring channels by {criterion.name}") as task:
        counted = _Counted(batches, task) if criterion.needs_data and batches is not None else None
        scores = criterion.function(graph, model, counted, seed=seed)
    if counted is not None and counted.images == 0:
        raise InputError(f"the criterion {criterion.name} was given no images", hint="pass --data with images in it")
    unjudged = [group.name for group in graph.groups if np.isinf(scores[group.channels]).any()]
    if len(unjudged) == len(graph.groups):
        raise InputError(f"the criterion {criterion.name} can judge no channel of this model", hint="choose l2")
    if unjudged:
        progress.note(f"{criterion.name} cannot judge the channels of {_listing(unjudged)}; they leave last")
    return normalise(graph, scores, normalization or criterion.normalization)


def _check_finite(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise ModelError("holds values that are not finite", where=name, hint="use another checkpoint")


class _Counted:
    """Batches that count themselves into a task."""

    def __init__(self, batches: Batches, task: Task) -> None:
        self._batches = batches
        self._task = task
        self.images = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in self._batches:
            yield images, labels
            self.images += len(images)
            self._task.advance()
            self._task.describe(f"{self.images} images")


def _listing(names: list[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
