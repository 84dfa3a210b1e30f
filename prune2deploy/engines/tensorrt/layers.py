"""The layers of a built engine as TensorRT's inspector tells them, and the precision census of it.

The inspector's JSON differs between versions, and says of fused layers what it likes; so everything here is read as far
as it is there. What TensorRT 10 lists under "Bindings", TensorRT 11 lists under "I/O Tensors"; neither is needed.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prune2deploy.engines.census import Census
from prune2deploy.engines.onnx_flops import layer_costs
from prune2deploy.errors import InputError

# In the order of narrowness, and so that what contains another's name comes first: BFloat16 contains float16.
_PRECISIONS = (
    ("int8", re.compile("int8", re.IGNORECASE)),
    ("fp8", re.compile("fp8|float8", re.IGNORECASE)),
    ("bf16", re.compile("bf16|bfloat16", re.IGNORECASE)),
    ("fp16", re.compile("fp16|half|float16", re.IGNORECASE)),
    ("fp32", re.compile("fp32|tf32|float", re.IGNORECASE)),
)
_NARROWNESS = {precision: number for number, (precision, _) in enumerate(_PRECISIONS)}
_NODE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_BETWEEN_NODES = re.compile(r"\s*\+\s*|\s*,\s*|\.\.\.|\|\||[{}\[\]]")
_COMPUTES = re.compile("conv|gemm|matmul|matrix|multiply|xmma|cask|attention|mha", re.IGNORECASE)

_REFORMATS = re.compile("reformat", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLayer:
    """One layer of an engine. ``nodes`` are the ONNX nodes that it was made of, as far as it tells.

    ``precision`` is the narrowest type that it reads, weights included; None where it does not tell. ``computes`` is
    whether its name or kernel speaks of convolutions or matrix products.
    """

    name: str
    kind: str
    precision: str | None
    output_types: tuple[str, ...]
    nodes: frozenset[str]
    computes: bool

    @classmethod
    def named(cls, name: str) -> "EngineLayer":
        """A layer of which only the name is known."""
        return _layer(name)

    @property
    def reformats(self) -> bool:
        """Whether TensorRT put it in to change the layout or the type of a tensor."""
        return bool(_REFORMATS.search(self.name) or _REFORMATS.search(self.kind))


def engine_layers(text: str) -> tuple[EngineLayer, ...]:
    """The layers in the inspector's JSON; none where it is no JSON."""
    try:
        document = json.loads(text)
    except ValueError:
        return ()
    entries = document.get("Layers", []) if isinstance(document, dict) else []
    return tuple(_layer(entry) for entry in entries)


def layer_summary(layers: Sequence[EngineLayer]) -> dict[str, Any]:
    """How many layers there are, by type and by the type of their outputs."""
    outputs = Counter(kind for layer in layers for kind in layer.output_types)
    return {
        "layers": len(layers),
        "layers_by_type": dict(sorted(Counter(layer.kind for layer in layers).items())),
        "outputs_by_type": dict(sorted(outputs.items())),
    }


def engine_census(layers: Sequence[EngineLayer], flops: Mapping[str, int]) -> Census:
    """Which precision the layers that cost FLOPs run in. ``flops`` are those of each ONNX node that has any, by name.

    A node belongs to the layer that tells of it, and of several to one that speaks of computing. Where no layer tells
    of nodes, those that speak of computing are counted, without FLOPs. Layers that tell no precision are left out.
    """
    cost: dict[int, int] = {}
    for node, count in flops.items():
        owners = [number for number, layer in enumerate(layers) if node in layer.nodes and layer.precision]
        if owners:
            owner = next((number for number in owners if layers[number].computes), owners[0])
            cost[owner] = cost.get(owner, 0) + count
    if not cost:
        cost = {number: 0 for number, layer in enumerate(layers) if layer.computes and layer.precision}
    counted = ((layers[number].precision, count) for number, count in cost.items())
    return Census.of(((precision, count) for precision, count in counted if precision), origin="engine")


def node_flops(path: Path) -> dict[str, int]:
    """FLOPs of each ONNX node that has any, by name; none where sizes are only known when the file runs."""
    try:
        return {layer.name: layer.flops for layer in layer_costs(path)}
    except InputError:
        return {}


def _layer(entry: object) -> EngineLayer:
    # Without detailed profiling verbosity a layer is its name alone.
    fields: Mapping[str, Any] = entry if isinstance(entry, dict) else {"Name": str(entry)}
    name = str(fields.get("Name", ""))
    read = [_type(tensor) for tensor in _tensors(fields.get("Inputs"))]
    weights = fields.get("Weights")
    if isinstance(weights, dict):
        read.append(str(weights.get("Type", "")))
    known = [precision for precision in map(_precision, read) if precision is not None]
    told = _NODE.findall(str(fields.get("Metadata", "")))
    spoken = (name, fields.get("LayerType"), fields.get("ParameterType"), fields.get("TacticName"))
    return EngineLayer(
        name=name,
        kind=str(fields.get("LayerType", "")),
        precision=min(known, key=lambda precision: _NARROWNESS[precision], default=None),
        output_types=tuple(_type(tensor) for tensor in _tensors(fields.get("Outputs"))),
        nodes=frozenset(told or (part for part in _BETWEEN_NODES.split(name) if part)),
        computes=any(_COMPUTES.search(str(text)) for text in spoken if text),
    )


def _tensors(value: object) -> list[Mapping[str, Any]]:
    return [tensor for tensor in value if isinstance(tensor, dict)] if isinstance(value, list) else []


def _type(tensor: Mapping[str, Any]) -> str:
    for key in ("Format/Datatype", "DataType", "Datatype", "Format"):
        if key in tensor:
            return str(tensor[key])
    return ""


def _precision(text: str) -> str | None:
    return next((precision for precision, pattern in _PRECISIONS if pattern.search(text)), None)
