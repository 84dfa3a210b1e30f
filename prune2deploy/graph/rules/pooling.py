"""Operators that work on spatial dimensions and leave batch and channels alone: pooling, resizing, padding."""

from prune2deploy.graph.labels import Block
from prune2deploy.graph.rules.call import Call, Result, Rule


def per_channel(spatial: int) -> Rule:
    """A rule for an operator on the last ``spatial`` dimensions, each channel by itself."""

    def rule(call: Call) -> Result:
        data = call.values[0]
        for dim in range(len(data.shape) - spatial, len(data.shape)):
            data = call.state.freeze_dim(data, dim, "is pooled or resized over this dimension", call.node)
        blocks = [Block(block.dims, block.labels, block.keys) for block in data.blocks]
        results = tuple(call.state.value(shape, blocks, call.node) for shape in call.shapes)
        return results if isinstance(call.node.meta["val"], list | tuple) else results[0]

    return rule


RULES: dict[str, Rule] = {
    f"{kind}{rank}d": per_channel(rank)
    for rank in (1, 2, 3)
    for kind in ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "lp_pool")
}
RULES |= {
    name: per_channel(rank)
    for name, rank in {
        "max_pool2d_with_indices": 2,
        "upsample_nearest1d": 1,
        "upsample_linear1d": 1,
        "upsample_nearest2d": 2,
        "upsample_bilinear2d": 2,
        "upsample_bicubic2d": 2,
        "_upsample_nearest_exact2d": 2,
        "_upsample_bilinear2d_aa": 2,
        "_upsample_bicubic2d_aa": 2,
        "upsample_nearest3d": 3,
        "upsample_trilinear3d": 3,
        "reflection_pad2d": 2,
        "replication_pad2d": 2,
    }.items()
}
