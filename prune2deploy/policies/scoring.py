"""Scoring in the middle of a training: any criterion, the same scores in every process, nothing disturbed."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from prune2deploy.errors import InputError
from prune2deploy.graph.channels import ChannelGraph
from prune2deploy.importance.criteria import score_channels
from prune2deploy.importance.criterion import UNJUDGED, Criterion, Scores
from prune2deploy.importance.normalize import normalise
from prune2deploy.importance.statistics import statistics_of
from prune2deploy.policies.policy import Setting


def check_images(images: int, setting: Setting) -> None:
    """Make sure that every process has a batch to take statistics of.

    Raises:
        InputError: there are fewer than two images for each process.
    """
    if images < 2 * setting.processes:
        raise InputError(
            f"{images} images are too few to score channels with",
            hint=f"pass at least {2 * setting.processes}: two for each process",
        )


@contextmanager
def own_generators(model: nn.Module) -> Iterator[None]:
    """Leave torch's generators, which a data loader draws from, as they were: the training goes on as if alone."""
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)):
        yield


def training_scores(
    criterion: Criterion, graph: ChannelGraph, model: nn.Module, setting: Setting, *, images: int, seed: int
) -> Scores:
    """Scores of all channels of ``model`` as it stands, normalised as the criterion asks. Shape: -> (channel_count,).

    Criteria that need data see the first ``images`` images of ``setting.samples``, with the batch statistics of these
    as constants in batch norms; what the processes find is averaged by their images. Call it in all processes.

    Raises:
        InputError: the criterion can judge no channel of this model.
        DataError: a label is no class of the model.
        ModelError: a weight or a gradient is not finite, or the model does not return class scores.
    """
    if not criterion.needs_data:
        return score_channels(graph, model, criterion=criterion, seed=seed)
    with own_generators(model), statistics_of(model, setting.samples(images)):
        own = _Counted(setting.samples(images))
        scores = score_channels(graph, model, own, criterion=criterion, seed=seed, normalization="none")
    judged = np.isfinite(scores)
    total = setting.summed(np.append(np.where(judged, scores, 0.0) * own.images, float(own.images)))
    return normalise(graph, np.where(judged, total[:-1] / total[-1], UNJUDGED), criterion.normalization)


class _Counted:
    """Batches that count their images, without empty ones (the share of a process in a short last batch)."""

    def __init__(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        self._batches = batches
        self.images = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in self._batches:
            if len(images):
                self.images += len(images)
                yield images, labels
