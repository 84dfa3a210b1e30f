"""The types of a file's inputs and outputs: float32 around a network of half precision, or the network's own."""

from collections.abc import Iterable

import onnx
from onnx import TensorProto, helper

from prune2deploy.export.external_data import with_shapes

ONNX_HALVES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
"""The ONNX types of the precisions of two bytes."""


def with_float32_ends(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same network, with every input and output of half precision replaced by float32 and a Cast.

    Names of inputs and outputs stay; the tensors inside get the suffix ``_half``.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    for value in graph.input:
        half = value.type.tensor_type.elem_type
        if half in ONNX_HALVES.values():
            inner = _free_name(f"{value.name}_half", graph)
            _rename_read(graph.node, value.name, inner)
            graph.node.insert(0, _cast(graph, value.name, inner, half))
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for value in graph.output:
        if value.type.tensor_type.elem_type in ONNX_HALVES.values():
            inner = _free_name(f"{value.name}_half", graph)
            _rename_made(graph.node, value.name, inner)
            _rename_read(graph.node, value.name, inner)
            graph.node.append(_cast(graph, inner, value.name, TensorProto.FLOAT))
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    return result


def with_half_ends(model: onnx.ModelProto, half: int) -> onnx.ModelProto:
    """The same network, with every float32 input and output replaced by one of the ONNX type ``half``.

    A Cast that stood at an end goes; where something else does (a normalisation that is computed in float32, a
    softmax), a Cast is put before it. Bytes and whole numbers stay as they are.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    for value in graph.input:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            _retype_input(graph, value, half)
    for value in graph.output:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            _retype_output(graph, value, half)
    return with_shapes(result)


def _retype_input(graph: onnx.GraphProto, value: onnx.ValueInfoProto, half: int) -> None:
    value.type.tensor_type.elem_type = half
    readers = [node for node in graph.node if value.name in node.input]
    needless = [node for node in readers if node.op_type == "Cast" and _target(node) == half]
    in_float32 = [node for node in readers if node not in needless]
    if in_float32:
        inner = _free_name(f"{value.name}_float", graph)
        _rename_read(in_float32, value.name, inner)
        graph.node.insert(0, _cast(graph, value.name, inner, TensorProto.FLOAT))
    for node in needless:
        _forget(graph, node.output[0])
        _rename_read(graph.node, node.output[0], value.name)
        graph.node.remove(node)


def _retype_output(graph: onnx.GraphProto, value: onnx.ValueInfoProto, half: int) -> None:
    value.type.tensor_type.elem_type = half
    maker = next(node for node in graph.node if value.name in node.output)
    if maker.op_type == "Cast" and not any(value.name in node.input for node in graph.node):
        inner = maker.input[0]
        if _type_inside(graph, inner) == half:
            graph.node.remove(maker)
            _forget(graph, inner)
            _rename_made(graph.node, inner, value.name)
            _rename_read(graph.node, inner, value.name)
            return
    inner = _free_name(f"{value.name}_float", graph)
    _rename_made(graph.node, value.name, inner)
    _rename_read(graph.node, value.name, inner)
    graph.node.append(_cast(graph, inner, value.name, half))


def _cast(graph: onnx.GraphProto, source: str, target: str, to: int) -> onnx.NodeProto:
    taken = {node.name for node in graph.node}
    return helper.make_node("Cast", [source], [target], name=_numbered(f"cast_{source}", taken), to=to)


def _target(cast: onnx.NodeProto) -> int:
    return int(next(attribute.i for attribute in cast.attribute if attribute.name == "to"))


def _type_inside(graph: onnx.GraphProto, name: str) -> int | None:
    """The type of a tensor between nodes; None for an input or output, or where it is not known."""
    return next((value.type.tensor_type.elem_type for value in graph.value_info if value.name == name), None)


def _rename_read(nodes: Iterable[onnx.NodeProto], old: str, new: str) -> None:
    for node in nodes:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new


def _rename_made(nodes: Iterable[onnx.NodeProto], old: str, new: str) -> None:
    for node in nodes:
        for index, name in enumerate(node.output):
            if name == old:
                node.output[index] = new


def _forget(graph: onnx.GraphProto, name: str) -> None:
    for value in list(graph.value_info):
        if value.name == name:
            graph.value_info.remove(value)


def _free_name(wanted: str, graph: onnx.GraphProto) -> str:
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    return _numbered(wanted, taken | {tensor.name for tensor in graph.initializer})


def _numbered(wanted: str, taken: set[str]) -> str:
    name, number = wanted, 2
    while name in taken:
        name, number = f"{wanted}_{number}", number + 1
    return name
