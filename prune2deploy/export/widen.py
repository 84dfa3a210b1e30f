"""A float32 copy of a bfloat16 file that rounds as bfloat16 does, for engines without bfloat16 convolutions.

ONNX Runtime's CPU provider has none, and the gate needs an engine that runs everywhere. The copy computes every
operator in float32, as hardware accumulates, and rounds every result to bfloat16 by a pair of Casts, which ONNX Runtime
keeps. It rounds at least as often as an engine that fuses operators does.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from prune2deploy.export.external_data import write_onnx

# Results that hold nothing but values of their inputs: rounding them again changes nothing.
_EXACT = frozenset(
    {
        "Concat", "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather", "GlobalMaxPool", "Identity", "Max",
        "MaxPool", "Min", "Neg", "Pad", "Relu", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile",
        "Transpose", "Unsqueeze", "Where",
    }
)  # fmt: skip


def write_widened(source: Path, target: Path) -> None:
    """Write the float32 copy of the bfloat16 file ``source`` to ``target``, with external weights where it must.

    Inputs and outputs of bfloat16 become float32 too; other types stay.
    """
    write_onnx(widened(onnx.load(source)), target, external=False)


def widened(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same network with float32 in place of bfloat16, and every result that was bfloat16 rounded to it.

    ``model`` holds its weights and the types of all tensors between its nodes, as exported files do.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    values = (*graph.input, *graph.output, *graph.value_info)
    bfloat16 = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.BFLOAT16}
    for value in values:
        if value.name in bfloat16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for tensor in graph.initializer:
        _widen(tensor)
    nodes = []
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                _widen(attribute.t)
        to_bfloat16 = _retarget(node)
        nodes.append(node)
        if to_bfloat16 or node.op_type not in _EXACT:
            nodes += [
                cast for index, name in enumerate(node.output) if name in bfloat16 for cast in _round(node, index)
            ]
    del graph.node[:]
    graph.node.extend(nodes)
    return result


def _widen(tensor: onnx.TensorProto) -> None:
    if tensor.data_type == TensorProto.BFLOAT16:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))


def _retarget(node: onnx.NodeProto) -> bool:
    """Let a node that states bfloat16 as the type of its result state float32; whether it did."""
    found = False
    for attribute in node.attribute:
        if attribute.name in ("to", "dtype") and attribute.i == TensorProto.BFLOAT16:
            attribute.i = TensorProto.FLOAT
            found = True
    return found


def _round(node: onnx.NodeProto, index: int) -> list[onnx.NodeProto]:
    """Rename a result, and give its name to what two Casts make of it."""
    name = node.output[index]
    exact, rounded = f"{name}/exact", f"{name}/bfloat16"
    node.output[index] = exact
    return [
        helper.make_node("Cast", [exact], [rounded], name=f"{rounded}/down", to=TensorProto.BFLOAT16),
        helper.make_node("Cast", [rounded], [name], name=f"{rounded}/up", to=TensorProto.FLOAT),
    ]
