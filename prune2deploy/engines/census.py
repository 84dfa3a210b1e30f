"""Precision census: which precision the layers of a network really compute in, by count and by share of the FLOPs.

A file or an engine that is called fp16 can hold no half layer at all (TensorRT 10 builds such engines without a word,
ONNX Runtime's CPU provider widens every half tensor). So the layers are counted, and not the name believed.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Origin = Literal["file", "engine"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Census:
    """What computes in which precision.

    ``layers`` counts the layers that cost FLOPs (convolutions and matrix products) by precision: "fp32", "fp16",
    "bf16", "int8". ``flops`` holds each precision's share of the FLOPs, in [0, 1]; empty where they are not known.
    ``origin`` says what was counted: the nodes of the ONNX file, or the layers of the engine that was built of it.
    """

    layers: Mapping[str, int]
    flops: Mapping[str, float]
    origin: Origin

    @classmethod
    def of(cls, layers: Iterable[tuple[str, int]], *, origin: Origin) -> "Census":
        """From (precision, FLOPs) of each layer; shares of the FLOPs are left out where these are all zero."""
        counts: dict[str, int] = {}
        flops: dict[str, int] = {}
        for precision, cost in layers:
            counts[precision] = counts.get(precision, 0) + 1
            flops[precision] = flops.get(precision, 0) + cost
        total = sum(flops.values())
        shares = {precision: cost / total for precision, cost in sorted(flops.items())} if total else {}
        return cls(layers=dict(sorted(counts.items())), flops=shares, origin=origin)

    def to_document(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)
