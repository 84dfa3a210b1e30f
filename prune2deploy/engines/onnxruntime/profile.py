"""How long each node of ONNX Runtime's optimised graph takes, from the trace that its own profiler writes."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import onnx

from prune2deploy.engines.capabilities import LayerProfile, LayerTime
from prune2deploy.engines.onnx_nodes import FileNodes
from prune2deploy.engines.onnxruntime.census import file_names
from prune2deploy.errors import EngineError

_SUFFIX = "_kernel_time"
_NS_PER_US = 1000
# Operators that only move or convert values: where the file has no node of their name, ONNX Runtime put them in.
_MOVES = {"Cast", "Transpose", "ReorderInput", "ReorderOutput", "MemcpyFromHost", "MemcpyToHost"}

LEFT_OUT = (
    "ONNX Runtime counts whole microseconds; what a node takes beyond them appears between the layers, "
    "together with the call and with what tracing takes",
)


@dataclass(frozen=True, slots=True)
class _TracedRun:
    """One run: (name, operator, µs) of its nodes in the order in which they began, and µs in all."""

    nodes: tuple[tuple[str, str, int], ...]
    whole: int

    @property
    def between(self) -> int:
        """µs that lie in no node."""
        return max(0, self.whole - sum(duration for _, _, duration in self.nodes))


def profile_from_trace(trace: Path, optimised: onnx.ModelProto, onnx_path: Path, *, runs: int) -> LayerProfile:
    """The median time of each node over the last ``runs`` runs of a trace, and of what lies between them.

    Medians of each part, because some runs meet another process; the run is their sum.

    Raises:
        EngineError: the trace is damaged, holds fewer runs, or its runs differ in their nodes.
    """
    try:
        found = list(_runs(json.loads(trace.read_bytes())))[-runs:]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unreadable(onnx_path, str(error)) from error
    executed = [(name, operator) for name, operator, _ in found[0].nodes] if found else []
    alike = all([(name, operator) for name, operator, _ in run.nodes] == executed for run in found)
    if len(found) < runs or not executed or not alike:
        raise _unreadable(onnx_path, f"it tells of {len(found)} of {runs} runs")
    owned = FileNodes(onnx_path)
    nodes = owned.shared_out(_names_kept(executed, optimised, owned), [operator for _, operator in executed])
    layers = tuple(
        LayerTime(
            name=name,
            operator=operator,
            latency_ns=_NS_PER_US * median(run.nodes[number][2] for run in found),
            nodes=nodes[number],
        )
        for number, (name, operator) in enumerate(executed)
    )
    between_ns = _NS_PER_US * median(run.between for run in found)
    return LayerProfile(
        layers=layers,
        run_ns=sum(layer.latency_ns for layer in layers) + between_ns,
        told_by="ONNX Runtime's profiler, medians node by node",
        left_out=LEFT_OUT,
    )


def _runs(events: Sequence[Mapping[str, Any]]) -> Iterator[_TracedRun]:
    nodes: list[tuple[int, str, str, int]] = []
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith(_SUFFIX):
            name = event["name"].removesuffix(_SUFFIX)
            nodes.append((int(event["ts"]), name, str(event["args"]["op_name"]), int(event["dur"])))
        elif event["name"] == "model_run":
            in_order = tuple((name, operator, duration) for _, name, operator, duration in sorted(nodes))
            yield _TracedRun(in_order, int(event["dur"]))
            nodes = []


def _names_kept(
    executed: Sequence[tuple[str, str]], optimised: onnx.ModelProto, owned: FileNodes
) -> list[tuple[str, ...]]:
    """What is left of the file's names in each executed node.

    A node without a name is executed as ``Operator_index``; of each operator, they stand in the graph in that order.
    """
    named: dict[str, list[onnx.NodeProto]] = {}
    unnamed: dict[str, list[onnx.NodeProto]] = {}
    for node in optimised.graph.node:
        (named.setdefault(node.name, []) if node.name else unnamed.setdefault(node.op_type, [])).append(node)
    kept: list[tuple[str, ...]] = []
    for name, operator in executed:
        waiting = named.get(name) or unnamed.get(operator)
        node = waiting.pop(0) if waiting else None
        # What ONNX Runtime puts in it names; what has no name is from the file, and goes by its output.
        put_in = node is None or (operator in _MOVES and bool(node.name) and node.name not in owned)
        kept.append(() if node is None or put_in else file_names(node))
    return kept


def _unreadable(onnx_path: Path, reason: str) -> EngineError:
    return EngineError(
        f"ONNX Runtime's profile cannot be read ({reason})", where=str(onnx_path), hint="measure without --profile"
    )
