"""What keeping channels is worth, so that cuts in different layers can be weighed against each other.

The importance of a model is the geometric mean of the shares of importance that its groups keep, each group weighted
by the FLOPs that depend on it. Two reasons, measured in ``docs/decisions/0024-worth.md``. A geometric mean, because
layers follow each other: where one keeps a tenth, the others cannot make up for it, and a sum of scores, which knows no
such thing, empties the dear layers for the sake of the cheap ones. By FLOPs, because the dense architecture is taken to
be balanced: what its designers spent on a layer is what they found the layer worth. So a target in FLOPs alone cuts by
scores alone, and a target in milliseconds cuts deeper where the engine gets fewer FLOPs out of a millisecond.
"""

import numpy as np
from numpy.typing import NDArray

from prune2deploy.graph.channels import ChannelGraph
from prune2deploy.graph.marginal import marginal_flops


def group_weights(graph: ChannelGraph) -> NDArray[np.float64]:
    """The share of the dense FLOPs that hangs on each group, as it would leave channel by channel. Sums to 1.

    Shape: -> (groups,). A layer hangs on what it reads and on what it makes, and counts for both. Where no group has
    FLOPs, all weigh the same.
    """
    marginal = marginal_flops(graph.cost, graph.everything())
    weights = np.array([marginal[group.channels].sum() for group in graph.groups], dtype=np.float64)
    total = weights.sum()
    return weights / total if total > 0 else np.full(len(weights), 1 / max(len(weights), 1))


def log_kept(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """The logarithm of the share of a group's importance that its best channels keep: entry k that of the best k.

    Shape: (channels,), descending -> (channels + 1,). Importance is the sum of scores, in units of their mean, and one
    more, which stays when all channels have left: the shortcut beside the branch, without which they could not. A
    negative score counts as 0 and an infinite one as much as all others together; where all are 0, all are alike.
    """
    finite = scores[np.isfinite(scores)]
    positive = np.clip(np.nan_to_num(scores, posinf=max(float(np.abs(finite).sum()), 1.0), neginf=0.0), 0, None)
    mean = positive.mean() if len(positive) else 0.0
    kept = np.concatenate([[0.0], np.cumsum(positive / mean if mean > 0 else np.ones_like(positive))])
    return np.asarray(np.log1p(kept) - np.log1p(kept[-1]))
