"""Which nodes of an ONNX file each layer of an engine was made of, from the few names that the engine keeps."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import onnx

from prune2deploy.engines.onnx_file import load_onnx_proto

# Engines make the one of the other.
_PRODUCTS = ("Gemm", "MatMul")
# Nobody fuses these away; where no layer tells of one, it belongs to none.
_COMPUTING = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum")


def node_name(node: onnx.NodeProto) -> str:
    """A node's name, or its first output where it has none."""
    return node.name or next(iter(node.output), "")


class FileNodes:
    """The nodes of a file by name, and by the values that they make."""

    def __init__(self, source: onnx.ModelProto | Path) -> None:
        model = load_onnx_proto(source) if isinstance(source, Path) else source
        self._nodes = tuple(model.graph.node)
        self._by_name = {node_name(node): number for number, node in enumerate(self._nodes)}
        self._makers = {value: number for number, node in enumerate(self._nodes) for value in node.output if value}

    def __contains__(self, name: str) -> bool:
        """Whether a node has this name."""
        return name in self._by_name

    def shared_out(
        self, layers: Sequence[Iterable[str]], operators: Sequence[str | None] | None = None
    ) -> list[tuple[str, ...]]:
        """The names of the nodes of each layer, in the file's order; no node belongs to two layers.

        ``layers`` has for each layer, in the order in which they run, the names of nodes or of values that the engine
        tells of; a layer without names was put in by the engine, and gets nothing. An engine that keeps only a last
        name gives the ``operators`` of its layers as well, as ONNX calls them: a layer of another operator than the
        node that it is named by holds what lies before that, back to a node of its own operator (the convolution
        before a ReLU). What is left was fused into the layer that made what it reads (the addition after a
        convolution), of several into the last to run; DequantizeLinear belongs to the layer that reads it.
        """
        owners: dict[int, int] = {}
        for layer, names in enumerate(layers):
            for name in names:
                number = self._by_name.get(name, self._makers.get(name))
                if number is not None:
                    owners.setdefault(number, layer)
        if operators is not None:
            for number, layer in sorted(owners.items()):
                operator = operators[layer]
                if operator is not None:
                    self._claim_before(number, layer, operator, owners)
        self._claim_scales(owners)
        for number in range(len(self._nodes)):
            if number not in owners and self._nodes[number].op_type not in _COMPUTING:
                before = [owners[maker] for maker in self._before(number) if maker in owners]
                if before:
                    owners[number] = max(before)
        found: list[list[str]] = [[] for _ in layers]
        for number in sorted(owners):
            found[owners[number]].append(node_name(self._nodes[number]))
        return [tuple(names) for names in found]

    def _claim_before(self, number: int, layer: int, operator: str, owners: dict[int, int]) -> None:
        own = [self._nodes[claimed].op_type for claimed, owner in owners.items() if owner == layer]
        if any(_same(operator, kind) for kind in own):
            return
        waiting = [maker for maker in self._before(number) if maker not in owners]
        while waiting:
            maker = waiting.pop()
            kind = self._nodes[maker].op_type
            if maker in owners or (kind in _COMPUTING and not _same(operator, kind)):
                continue
            owners[maker] = layer
            if not _same(operator, kind):
                waiting += self._before(maker)

    def _claim_scales(self, owners: dict[int, int]) -> None:
        for number in sorted(owners):
            for maker in self._before(number):
                if maker not in owners and self._nodes[maker].op_type == "DequantizeLinear":
                    owners[maker] = owners[number]

    def _before(self, number: int) -> Iterator[int]:
        """The nodes that make what a node reads."""
        return (self._makers[value] for value in self._nodes[number].input if value in self._makers)


def _same(executed: str, stored: str) -> bool:
    """Whether an engine's operator does what the file calls ``stored``: QLinearConv and FusedConv do what Conv does."""
    if stored in _PRODUCTS:
        return executed.endswith(_PRODUCTS)
    return executed == stored or (stored == "Conv" and executed.endswith("Conv"))
