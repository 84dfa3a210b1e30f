"""How long each node that OpenVINO executes takes, from the counters of a network that was compiled with them."""

import time
from pathlib import Path
from typing import Any

from prune2deploy.engines.capabilities import LayerProfile, LayerTime
from prune2deploy.engines.onnx_nodes import FileNodes

# The first runs lay out memory and pack weights.
_RUNS_TO_SETTLE = 3
_NS_PER_S = 1e9

LEFT_OUT = (
    "OpenVINO keeps means in whole microseconds; what a node takes beyond them appears between the layers, "
    "together with the call and with what counting takes",
)


def profile_of_request(request: Any, onnx_path: Path, *, runs: int) -> LayerProfile:
    """The mean time of each executed node over ``runs`` runs of a fresh request whose inputs are bound.

    OpenVINO counts from the first run on; the runs to settle are taken out of its means again.
    """
    _seconds_of(request, _RUNS_TO_SETTLE)
    settling = {number: seconds for number, (_, seconds) in enumerate(_counted(request))}
    seconds_in_all = _seconds_of(request, runs)
    total = _RUNS_TO_SETTLE + runs
    kept = {
        node.get_friendly_name(): node.get_rt_info()["originalLayersNames"].astype(str)
        for node in request.get_compiled_model().get_runtime_model().get_ops()
    }
    counted = _counted(request)
    # Fused nodes are listed as well, and lie in no layer of their own; what took less than a microsecond has its layer.
    names = [[name for name in kept.get(info.node_name, "").split(",") if name] for info, _ in counted]
    nodes = FileNodes(onnx_path).shared_out(names, [_onnx_operator(info.node_type) for info, _ in counted])
    layers = tuple(
        LayerTime(
            name=info.node_name,
            operator=info.node_type,
            latency_ns=max(0.0, seconds * total - settling[number] * _RUNS_TO_SETTLE) / runs * _NS_PER_S,
            nodes=nodes[number],
        )
        for number, (info, seconds) in enumerate(counted)
        if info.status == info.Status.EXECUTED
    )
    told_by = "OpenVINO's performance counters, means node by node"
    run_ns = seconds_in_all / runs * _NS_PER_S
    return LayerProfile(layers=layers, run_ns=run_ns, told_by=told_by, left_out=LEFT_OUT)


def _seconds_of(request: Any, runs: int) -> float:
    begun = time.perf_counter()
    for _ in range(runs):
        request.start_async()
        request.wait()
    return time.perf_counter() - begun


def _onnx_operator(operator: str) -> str | None:
    """What ONNX calls an operator that may be named by a node after it; None for the others, which keep all names."""
    if operator.startswith("FullyConnected"):
        return "MatMul"
    return {"Convolution": "Conv", "GroupConvolution": "Conv", "MatMul": "MatMul"}.get(operator)


def _counted(request: Any) -> list[tuple[Any, float]]:
    """What the counters say of each node: the node, and its mean in seconds since the first run."""
    return [(info, info.real_time.total_seconds()) for info in request.get_profiling_info()]
