"""Fourier transforms and complex numbers: each channel by itself, as long as channels are not what is transformed."""

from prune2deploy.graph.rules.call import Call, Result, Rule


def transform(default_dims: int | None) -> Rule:
    """A rule for a transform over the dimensions that are named, else over the last ``default_dims`` (None: all)."""

    def rule(call: Call) -> Result:
        data = call.values[0]
        rank = len(data.shape)
        named = call.arguments.get("dim")
        if named is None:
            dims = list(range(0 if default_dims is None else rank - default_dims, rank))
        else:
            dims = [int(dim) % rank for dim in (named if isinstance(named, list | tuple) else [named])]
        for dim in dims:
            data = call.state.freeze_dim(data, dim, "is transformed as a whole", call.node)
        return call.result(data.blocks)

    return rule


def pairs_as_complex(call: Call) -> Result:
    """Real and imaginary parts stand next to each other in the last dimension, which goes."""
    data = call.values[0]
    return call.result(call.state.freeze_dim(data, len(data.shape) - 1, "makes complex numbers", call.node).blocks)


RULES: dict[str, Rule] = {
    "view_as_complex": pairs_as_complex,
    **{
        f"fft_{kind}{name}": transform(dims)
        for kind in ("", "i", "r", "ir", "h", "ih")
        for name, dims in (("fft", 1), ("fft2", 2), ("fftn", None))
    },
    "fft_fftshift": transform(None),
    "fft_ifftshift": transform(None),
}
