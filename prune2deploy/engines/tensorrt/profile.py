"""How long each layer of a TensorRT engine takes, by the library's own profiler. For finding what is slow, not for
comparing: the layers are timed one by one, without a CUDA graph.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from prune2deploy.engines.capabilities import LayerProfile, LayerTime
from prune2deploy.engines.onnx_nodes import FileNodes
from prune2deploy.engines.tensorrt.layers import EngineLayer

_NS_PER_MS = 1e6

LEFT_OUT = (
    "TensorRT times its layers one by one, without the CUDA graph that the timed runs have",
    "what launching the graph takes, waiting for it, and gaps inside it are one figure: the time between the layers",
)


def layer_profiler(library: Any, times: dict[str, list[float]]) -> Any:
    """A profiler of the library (``IProfiler``) that adds the milliseconds of each layer to ``times``, by its name."""

    class KeepingProfiler(library.IProfiler):  # type: ignore[misc]  # the base is only known at run time
        def __init__(self) -> None:
            library.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            times.setdefault(layer_name, []).append(ms)

    return KeepingProfiler()


def profile_from_times(
    times: Mapping[str, Sequence[float]], layers: Sequence[EngineLayer], onnx_path: Path, *, runs: int
) -> LayerProfile:
    """The median time of each layer, or the mean of those that were reported under one name several times a run.

    ``times`` are in ms by the name of the layer, in the order in which they ran; ``layers`` are what the inspector
    tells of them. A layer that it does not tell of goes by the nodes that its name lists.
    """
    told = {layer.name: layer for layer in layers}
    found = [told.get(name) or EngineLayer.named(name) for name in times]
    nodes = FileNodes(onnx_path).shared_out([() if layer.reformats else sorted(layer.nodes) for layer in found])
    return LayerProfile(
        layers=tuple(
            LayerTime(
                name=name,
                operator=layer.kind or ("Reformat" if layer.reformats else ""),
                latency_ns=_NS_PER_MS * (median(reported) if len(reported) == runs else sum(reported) / runs),
                nodes=nodes[number],
            )
            for number, ((name, reported), layer) in enumerate(zip(times.items(), found, strict=True))
        ),
        run_ns=None,
        told_by="TensorRT's profiler, medians layer by layer",
        left_out=LEFT_OUT,
    )
