"""A price on computing: what a channel is worth, less the FLOPs that its removal saves."""

from prune2deploy.graph.channels import ChannelGraph, ChannelMask
from prune2deploy.graph.marginal import marginal_flops
from prune2deploy.importance.criterion import Scores


def with_flop_penalty(
    graph: ChannelGraph, scores: Scores, penalty: float, *, kept: ChannelMask | None = None
) -> Scores:
    """score_c + β·ΔFLOPs_c, with ΔFLOPs_c the change of the FLOPs, as a share of dense, if channel c went.

    Shape: (channel_count,) -> (channel_count,). ΔFLOPs_c is negative, so that an expensive channel leaves sooner; it
    counts the channel's own layers and every reader, at the widths of ``kept`` (None: the dense ones). ``graph`` is
    that of the dense model. ``penalty`` is β, in units of the score for the whole of the dense FLOPs; unjudged channels
    stay so. Source: Theis et al. 2018, "Faster gaze prediction with dense networks and Fisher pruning", whose C is the
    FLOPs; a share of them makes β independent of the size of the input.
    """
    if penalty == 0:
        return scores
    standing = graph.everything() if kept is None else kept
    return scores - penalty * marginal_flops(graph.cost, standing) / max(graph.cost.dense_flops, 1)
