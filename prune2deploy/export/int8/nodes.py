"""Which nodes of a network compute in int8, and where the quantisers of residual adds belong."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx

_WEIGHTED = ("Conv", "Gemm", "MatMul")
_CARRIED_THROUGH = ("Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool")
"""Operators that take bytes in and give bytes out where everything around them is int8."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightLayer:
    """A convolution or matrix product with a stored weight.

    ``node`` is the node's name and ``weight`` the initializer's. ``channels`` is the smaller of its input and output
    widths, all groups together; of a first layer the output's and of a last one the input's, since pictures have few
    channels anyway, and tasks few classes.
    """

    node: str
    weight: str
    channels: int

    @property
    def name(self) -> str:
        """What a person calls it: the module that holds the weight."""
        return self.weight.removesuffix(".weight")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidualAdd:
    """An addition of two activations, one of which a convolution has just computed.

    ``fused`` is the position of that input (0 or 1): engines add the other one while the convolution writes. Where
    both come from convolutions, it is the one that is computed later.
    """

    node: str
    fused: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeChoice:
    """``layers`` compute in int8, ``floating`` stay as they are. ``adds`` are the residual adds among int8 layers."""

    layers: tuple[WeightLayer, ...]
    floating: tuple[WeightLayer, ...]
    adds: tuple[ResidualAdd, ...]


def choose_nodes(graph: onnx.GraphProto, *, ends: bool) -> NodeChoice:
    """Every convolution and every product with a stored weight; without ``ends`` neither the first nor the last ones.

    A layer is among the first if it reads no other's result, and among the last if no other reads its own; a network
    with two heads has two last layers. Products of two activations (attention), normalisations, softmax and activations
    other than rectifiers stay float: they need more than 8 bits, or gain nothing.
    """
    stored = _stored(graph)
    nodes = {node.name: node for node in graph.node if _is_weight_layer(node, stored)}
    first, last = _ends(graph, set(nodes))
    layers = tuple(_weight_layer(node, stored, name in first, name in last) for name, node in nodes.items())
    chosen = set(nodes) if ends else set(nodes) - first - last
    return NodeChoice(
        layers=tuple(layer for layer in layers if layer.node in chosen),
        floating=tuple(layer for layer in layers if layer.node not in chosen),
        adds=_residual_adds(graph, chosen),
    )


def carried_through(graph: onnx.GraphProto) -> tuple[str, ...]:
    """Names of rectifiers and pools, which stay in bytes between two int8 layers."""
    return tuple(node.name for node in graph.node if node.op_type in _CARRIED_THROUGH)


def _stored(graph: onnx.GraphProto) -> Mapping[str, tuple[int, ...]]:
    """Shapes of the initializers by name."""
    return {initializer.name: tuple(initializer.dims) for initializer in graph.initializer}


def _is_weight_layer(node: onnx.NodeProto, stored: Mapping[str, tuple[int, ...]]) -> bool:
    if node.op_type not in _WEIGHTED or len(node.input) < 2 or node.input[1] not in stored:
        return False
    return node.op_type == "Conv" or len(stored[node.input[1]]) == 2


def _weight_layer(
    node: onnx.NodeProto, stored: Mapping[str, tuple[int, ...]], is_first: bool, is_last: bool
) -> WeightLayer:
    outgoing, incoming = _widths(node, stored[node.input[1]])
    if is_first == is_last:
        channels = max(outgoing, incoming) if is_first else min(outgoing, incoming)
    else:
        channels = outgoing if is_first else incoming
    return WeightLayer(node=node.name, weight=node.input[1], channels=channels)


def _widths(node: onnx.NodeProto, shape: tuple[int, ...]) -> tuple[int, int]:
    """(output, input) channels of a weight: (O, I/groups, ...) of Conv, (K, N) of MatMul, either way of Gemm."""
    if node.op_type == "Conv":
        groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
        return shape[0], shape[1] * groups
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return (shape[0], shape[1]) if transposed else (shape[1], shape[0])


def _ends(graph: onnx.GraphProto, layers: set[str]) -> tuple[set[str], set[str]]:
    """Layers that no other layer precedes, and layers that none follows."""
    first: set[str] = set()
    followed: set[str] = set()
    behind: dict[str, frozenset[str]] = {}
    for node in graph.node:
        before = _union(behind.get(name, frozenset()) for name in node.input)
        if node.name in layers:
            if not before:
                first.add(node.name)
            followed |= before
            # Those further back are followed already; the nearest ones stand for them.
            before = frozenset((node.name,))
        for output in node.output:
            behind[output] = before
    return first, layers - followed


def _union(sets: Iterable[frozenset[str]]) -> frozenset[str]:
    return frozenset().union(*sets)


def _residual_adds(graph: onnx.GraphProto, chosen: set[str]) -> tuple[ResidualAdd, ...]:
    order = {node.name: position for position, node in enumerate(graph.node)}
    makers: Mapping[str, onnx.NodeProto] = {output: node for node in graph.node for output in node.output}
    stored = _stored(graph)
    readers: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    outputs = {value.name for value in graph.output}
    found = []
    for node in graph.node:
        if node.op_type != "Add" or any(name in stored for name in node.input):
            continue
        fusible = [
            (order[maker.name], position)
            for position, name in enumerate(node.input)
            if (maker := makers.get(name)) is not None
            and maker.op_type == "Conv"
            and maker.name in chosen
            and readers[name] == 1
            and name not in outputs
        ]
        if fusible:
            found.append(ResidualAdd(node=node.name, fused=max(fusible)[1]))
    return tuple(found)
