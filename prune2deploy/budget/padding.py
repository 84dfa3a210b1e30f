"""What an engine computes for nothing where widths are off its granule.

A model of tiles, not a measurement: every width that a layer sums over or produces is rounded up to the granule.
Positions and rows (images, pixels, tokens of a linear layer) are not: they fill tiles across the whole batch.
"""

from dataclasses import dataclass

from prune2deploy.graph.layers import Layer


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """A width that a layer reads or makes: ``parts`` equal pieces, each rounded up to ``granule`` by itself."""

    width: int
    parts: int
    granule: int

    @property
    def above(self) -> int:
        """The nearest aligned width that is not smaller: the one that is computed."""
        return -(-self.width // (self.parts * self.granule)) * self.parts * self.granule

    @property
    def below(self) -> int | None:
        """The nearest aligned width that is not larger; None where that is zero."""
        return self.width // (self.parts * self.granule) * self.parts * self.granule or None

    @property
    def off(self) -> bool:
        """Whether it is padded."""
        return self.above != self.width


@dataclass(frozen=True, slots=True, kw_only=True)
class PaddedLayer:
    """A layer as an engine computes it."""

    layer: Layer
    input: Side
    output: Side

    @property
    def flops_lost(self) -> int:
        """What is computed beyond the layer's own FLOPs."""
        computed = self.layer.flops * self.input.above * self.output.above // (self.input.width * self.output.width)
        return computed - self.layer.flops


def padded(layer: Layer, granule: int) -> PaddedLayer:
    """A layer at a granule.

    - Of a convolution that reads the image the output alone is padded: engines have kernels of their own for few
      input channels.
    - A depthwise convolution sums over no channels: its one width is padded once.
    - Other groups are computed apart. Where one makes less than a granule of outputs, several share a tile, and it is
      their sum that is padded.
    """
    unpadded = layer.reads_image or layer.depthwise
    shared = layer.output_width // layer.groups < granule
    return PaddedLayer(
        layer=layer,
        input=Side(width=layer.input_width, parts=layer.groups, granule=1 if unpadded else granule),
        output=Side(width=layer.output_width, parts=1 if shared else layer.groups, granule=granule),
    )
