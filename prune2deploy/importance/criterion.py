"""What a criterion is: a function from a channel graph and a model to one number a channel."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from prune2deploy.graph.channels import ChannelGraph

Scores = NDArray[np.float64]
"""One importance a channel, shape (channel_count,). The lowest leave first, ``UNJUDGED`` last."""

UNJUDGED = np.inf
"""The score of a channel that a criterion cannot judge (no norm scales it, no weight reads it): it leaves last."""

Batches = Iterable[tuple[Tensor, Tensor]]
"""Images (N, C, H, W), as the model takes them, with labels (N,) of class numbers."""

Normalization = Literal["none", "mean"]


class ScoreFunction(Protocol):
    """The function of a criterion."""

    def __call__(self, graph: ChannelGraph, model: nn.Module, batches: Batches | None, *, seed: int) -> Scores:
        """Score every channel. Shape: -> (channel_count,). The model is left as it was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Criterion:
    """One way to rank channels.

    ``needs_data`` says whether ``function`` reads batches. ``normalization`` is what makes its scores comparable
    between groups, by default. ``source`` names the paper, and where the code departs from it.
    """

    name: str
    needs_data: bool
    normalization: Normalization
    function: ScoreFunction
    source: str
