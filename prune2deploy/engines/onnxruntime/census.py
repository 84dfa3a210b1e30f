"""Which precision ONNX Runtime really computes in, read from its optimised graph.

The names of its kernels tell: its own integer kernels compute in int8, its blocked convolutions in fp32. The rest
compute in the type of what they read; casts that ONNX Runtime put around them are followed.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx
from onnx import TensorProto

from prune2deploy.engines.census import Census
from prune2deploy.engines.engine_census import EngineLayer, census_of_engine

_INTEGER = {
    "ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul", "QGemm", "QAttention",
    "DynamicQuantizeMatMul", "MatMulIntegerToFloat",
}  # fmt: skip
_TYPED = {
    "Conv", "ConvTranspose", "FusedConv", "NhwcFusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "Einsum",
    "Attention", "MultiHeadAttention", "GroupQueryAttention",
}  # fmt: skip
_BLOCKED_DOMAIN = "com.microsoft.nchwc"
_NAMES: Mapping[int, str] = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
# What ONNX Runtime puts around the names of nodes and values that it moves or replaces.
_DECORATION = re.compile(r"^(InsertedPrecisionFreeCast_|fused )+|(_nchwc|_nhwc|_token_\d+)+$")


def optimised_census(optimised: onnx.ModelProto, onnx_path: Path) -> Census:
    """Count the layers of the graph that ONNX Runtime made of an ONNX file."""
    return census_of_engine(_layers(optimised.graph), onnx_path)


def _layers(graph: onnx.GraphProto) -> Iterator[EngineLayer]:
    types = _ElementTypes(graph)
    for node in graph.node:
        if node.op_type in _INTEGER:
            precision = "int8"
        elif node.op_type == "Conv" and node.domain == _BLOCKED_DOMAIN:
            precision = "fp32"
        elif node.op_type in _TYPED:
            precision = types.precision_of(node)
        else:
            continue
        yield EngineLayer(precision=precision, names=file_names(node))


def file_names(node: onnx.NodeProto) -> tuple[str, ...]:
    """The names of nodes and values of the ONNX file that a node of the optimised graph still carries."""
    return tuple(dict.fromkeys(_DECORATION.sub("", name) for name in (node.name, *node.output) if name))


class _ElementTypes:
    """Types of values, followed from where they are stated: the optimiser leaves stale ones beside its graph."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._stated: dict[str, int] = {tensor.name: tensor.data_type for tensor in graph.initializer}
        self._stated |= {value.name: value.type.tensor_type.elem_type for value in graph.input}
        self._makers = {name: node for node in graph.node for name in node.output}

    def precision_of(self, node: onnx.NodeProto) -> str:
        """The type of a layer's weight where it is stored, else of its data."""
        stored = (self._stated[name] for name in node.input[1:] if name in self._stated)
        kind = next((kind for kind in stored if kind in _NAMES), None) or self._type_of(node.input[0])
        return _NAMES.get(kind) or str(TensorProto.DataType.Name(kind)).lower()

    def _type_of(self, name: str) -> int:
        while name not in self._stated:
            maker = self._makers.get(name)
            if maker is None or not maker.input:
                return TensorProto.UNDEFINED
            if maker.op_type == "Cast":
                return next(int(attribute.i) for attribute in maker.attribute if attribute.name == "to")
            # DequantizeLinear gives what its scale is.
            name = maker.input[1] if maker.op_type == "DequantizeLinear" else maker.input[0]
        return self._stated[name]
