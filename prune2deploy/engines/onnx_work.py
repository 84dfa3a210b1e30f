"""What the nodes of an ONNX file have to do for inputs of given shapes: FLOPs, widths, and bytes that must be moved."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import onnx
from onnx import helper

from prune2deploy.engines.onnx_file import load_onnx_proto
from prune2deploy.engines.onnx_flops import LayerCost, layer_costs
from prune2deploy.engines.onnx_nodes import node_name
from prune2deploy.engines.onnx_shapes import values_of, with_shapes
from prune2deploy.errors import InputError


class FileWork:
    """An ONNX file with the sizes of its values, for inputs of the ``shapes``. Weights beside the file are not read.

    ``costs`` are its convolutions and matrix products by name, empty where sizes are only known when the file runs.
    """

    def __init__(self, path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
        model = load_onnx_proto(path)
        batch = next((shape[0] for shape in shapes.values() if shape), 1)
        for value in model.graph.input:
            for size, given in zip(value.type.tensor_type.shape.dim, shapes.get(value.name, ()), strict=False):
                size.dim_value = given
        self._nodes = {node_name(node): node for node in model.graph.node}
        self._outputs = {value.name for value in model.graph.output}
        self._readers: dict[str, set[str]] = {}
        for name, node in self._nodes.items():
            for value in node.input:
                self._readers.setdefault(value, set()).add(name)
        try:
            self.costs: dict[str, LayerCost] = {cost.name: cost for cost in layer_costs(model, batch)}
            self._bytes = _bytes_by_value(with_shapes(model, batch, where=str(path)).graph)
        except InputError:
            self.costs, self._bytes = {}, {}

    def operators(self, nodes: Iterable[str]) -> frozenset[str]:
        """The operators of some nodes; one outside of the standard as ``domain::operator``."""
        found = (self._nodes[name] for name in nodes if name in self._nodes)
        return frozenset(
            node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}" for node in found
        )

    def bytes_moved(self, nodes: Iterable[str]) -> int | None:
        """The bytes of what some nodes read from elsewhere and of what others read of them, each counted once.

        That is what must be moved at the least where they run as one layer, weights included. None where a size is
        not known.
        """
        inside = {name for name in nodes if name in self._nodes}
        made = {value for name in inside for value in self._nodes[name].output if value}
        read = {value for name in inside for value in self._nodes[name].input if value}
        leaving = {value for value in made if value in self._outputs or self._readers.get(value, set()) - inside}
        sizes = [self._bytes.get(value) for value in (read - made) | leaving]
        known = [size for size in sizes if size is not None]
        return sum(known) if known and len(known) == len(sizes) else None


def _bytes_by_value(graph: onnx.GraphProto) -> dict[str, int]:
    sizes = {tensor.name: math.prod(tensor.dims) * _item_bytes(tensor.data_type) for tensor in graph.initializer}
    for value in values_of(graph):
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(size.HasField("dim_value") for size in kind.shape.dim):
            sizes[value.name] = math.prod(size.dim_value for size in kind.shape.dim) * _item_bytes(kind.elem_type)
    return sizes


def _item_bytes(kind: int) -> int:
    return int(helper.tensor_dtype_to_np_dtype(kind).itemsize)
