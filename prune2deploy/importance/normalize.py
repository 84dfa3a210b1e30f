"""Making the scores of different groups comparable, so that one ranking can cover the whole network."""

import numpy as np

from prune2deploy.errors import InputError
from prune2deploy.graph.channels import ChannelGraph
from prune2deploy.importance.criterion import Normalization, Scores


def normalise(graph: ChannelGraph, scores: Scores, how: Normalization) -> Scores:
    """Divide the scores of each group by their mean (``"mean"``), or leave them alone (``"none"``).

    Shape: (channel_count,) -> (channel_count,). Magnitudes depend on a layer's fan-in, so unnormalised ones
    empty the layers with small weights first; a mean of 1 in every group takes that away. Unjudged channels stay
    so and count in no mean; a group whose judged scores are all 0 stays at 0.

    Raises:
        InputError: ``how`` is neither.
    """
    if how == "none":
        return scores.copy()
    if how != "mean":
        raise InputError(f"{how!r} is no normalisation of scores", hint="use none or mean")
    scaled = scores.copy()
    for group in graph.groups:
        values = scores[group.channels]
        judged = np.isfinite(values)
        mean = float(values[judged].mean()) if judged.any() else 0.0
        if mean > 0:
            scaled[group.channels] = values / mean
    return scaled
