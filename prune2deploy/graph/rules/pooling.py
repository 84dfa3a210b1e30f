"""Operators that work on spatial dimensions and leave batch and channels alone: pooling, resizing, padding."""

from prune2deploy.graph.labels import Block, Value
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


def unpooling(call: Call) -> Result:
    """The inverse of a maximum pooling: values and their places have the same channels."""
    for value in call.values:
        for dim in range(len(call.shape) - 2, len(call.shape)):
            call.state.freeze_dim(value, dim, "is unpooled over this dimension", call.node)
    data, places = (_plane_blocks(value) for value in call.values)
    blocks = []
    for dim in range(len(call.shape) - 2):
        one, other = (next((block for block in found if block.dims == (dim,)), None) for found in (data, places))
        if one is not None and other is not None:
            call.state.unite(one.labels, other.labels)
            blocks.append(one)
        elif (alone := one or other) is not None:
            call.state.freeze(alone.labels, "meets data of fixed size, element by element", call.node)
    return call.result(blocks)


def grid_sampling(call: Call) -> Result:
    """Values between the positions of a map, at places that a grid names: channels are left alone."""
    data, grid = call.tensor("input"), call.tensor("grid")
    for dim in (0, *range(2, len(data.shape))):
        data = call.state.freeze_dim(data, dim, "is sampled over this dimension", call.node)
    call.state.freeze_value(grid, "names places to sample", call.node)
    return call.result(data.blocks)


def _plane_blocks(value: Value) -> list[Block]:
    return [block for block in value.blocks if len(block.dims) == 1]


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
        "_upsample_nearest_exact1d": 1,
        "_upsample_nearest_exact3d": 3,
        "reflection_pad1d": 1,
        "reflection_pad2d": 2,
        "reflection_pad3d": 3,
        "replication_pad1d": 1,
        "replication_pad2d": 2,
        "replication_pad3d": 3,
    }.items()
}
RULES |= {"max_unpool2d": unpooling, "grid_sampler": grid_sampling}
