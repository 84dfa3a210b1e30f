"""Precision census: which precision the layers of a network really compute in, by count and by share of the FLOPs.

A file or an engine that is called fp16 can hold no half layer at all (TensorRT 10 builds such engines without a word,
ONNX Runtime's CPU provider widens every half tensor). So the layers are counted, and not the name believed.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from prune2deploy.engines.onnx_file import load_onnx_proto
from prune2deploy.engines.onnx_flops import layer_costs, layer_precisions
from prune2deploy.errors import EngineError, InputError

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

    @property
    def leading(self) -> str | None:
        """The precision of most of the FLOPs, or of most layers where FLOPs are not known; None without layers."""
        weights = self.flops or self.layers
        return max(weights, key=lambda precision: weights[precision]) if weights else None

    def in_words(self) -> str:
        """``fp16 95.2%, fp32 4.8% of FLOPs``, or ``fp16 20, fp32 1 of 21 layers``, the largest part first."""
        if not self.layers:
            return "no layers"
        if self.flops:
            parts = (f"{precision} {_percent(share)}" for precision, share in _falling(self.flops))
            return f"{', '.join(parts)} of FLOPs"
        parts = (f"{precision} {count}" for precision, count in _falling(self.layers))
        return f"{', '.join(parts)} of {sum(self.layers.values())} layers"

    def to_document(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "Census":
        """From the JSON object that ``to_document`` made."""
        return cls(layers=document["layers"], flops=document["flops"], origin=document["origin"])


def file_census(path: Path) -> Census:
    """What the layers of an ONNX file compute in, as it states it; shares of the FLOPs only where shapes are known.

    Raises:
        InputError: the file cannot be read, or the type of a layer's data is not known.
    """
    model = load_onnx_proto(path)
    try:
        layers = [(layer.precision, layer.flops) for layer in layer_costs(model)]
    except InputError:  # sizes that only a run tells
        layers = [(precision, 0) for _, precision in layer_precisions(model)]
    return Census.of(layers, origin="file")


def require_layers_of(census: Census, precision: str, *, where: str) -> None:
    """Refuse an engine or a file that holds layers, but none that computes in the precision it is called by.

    ``tf32`` is a way to compute fp32 layers, and counts as that. A network without layers has no precision, and passes.

    Raises:
        EngineError: no layer is of that precision; the message says what there is instead.
    """
    wanted = "fp32" if precision == "tf32" else precision
    if not census.layers or census.layers.get(wanted):
        return
    hint = (
        f"use an engine with {precision} kernels (`p2d doctor`), or call it {census.leading}"
        if census.origin == "engine"
        else f"export it with --precision {precision}"
    )
    raise EngineError(
        f"the {census.origin} was to be {precision} and holds no {wanted} layer ({census.in_words()})",
        where=where,
        hint=hint,
    )


def _falling(weights: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(weights.items(), key=lambda item: -item[1])


def _percent(share: float) -> str:
    """Neither all nor nothing by rounding: 99.97% is not 100%."""
    if 0 < share < 0.001:
        return "<0.1%"
    return ">99.9%" if 0.9995 <= share < 1 else f"{share:.1%}" if share < 1 else "100%"
