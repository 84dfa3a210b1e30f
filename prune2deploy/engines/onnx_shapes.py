"""The shapes of all values in an ONNX file, at one batch size."""

import math
from collections.abc import Iterator, Mapping

import onnx
from onnx import TensorProto

from prune2deploy.errors import InputError

# Larger initializers hold weights, and never the sizes that shape inference reads.
_LARGEST_SIZE_TENSOR = 1024


def with_shapes(
    model: onnx.ModelProto, batch: int, *, where: str, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> onnx.ModelProto:
    """The network with the type and shape of every value that can be known, at ``batch`` where its batch is free.

    Inputs that ``shapes`` names have that shape, and so has whatever shares the name of a size with them. Large weights
    become inputs of the same shape, so that nothing large is copied; ``model`` stays as it is.

    Raises:
        InputError: the shapes in the file contradict each other.
    """
    graph = model.graph
    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    light.graph.name = graph.name or "graph"
    light.graph.node.extend(graph.node)
    light.graph.input.extend(graph.input)
    light.graph.output.extend(graph.output)
    light.graph.value_info.extend(graph.value_info)
    declared = {value.name for value in graph.input}
    for tensor in graph.initializer:
        if math.prod(tensor.dims) <= _LARGEST_SIZE_TENSOR and tensor.data_location != TensorProto.EXTERNAL:
            light.graph.initializer.append(tensor)
        elif tensor.name not in declared:
            shape = list(tensor.dims)
            light.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, shape))
    symbol = _batch_symbol(graph)
    known = {symbol: batch} if symbol else {}
    for value in light.graph.input:
        for size, given in zip(value.type.tensor_type.shape.dim, (shapes or {}).get(value.name, ()), strict=False):
            if size.dim_param:
                known[size.dim_param] = given
            size.dim_value = given
    for value in values_of(light.graph):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param in known:
                size.dim_value = known[size.dim_param]
            elif size.dim_param:  # an expression of the batch, or a size of its own: inference tells
                size.ClearField("dim_param")
    if not symbol:
        _fill_batch(light.graph, batch)
    try:
        return onnx.shape_inference.infer_shapes(light, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"its shapes cannot be inferred ({reason})", where=where, hint="export it anew") from error


def _batch_symbol(graph: onnx.GraphProto) -> str:
    """What the first input calls its free first dimension."""
    stored = {tensor.name for tensor in graph.initializer}
    for value in graph.input:
        if value.name not in stored and value.type.tensor_type.shape.dim:
            return str(value.type.tensor_type.shape.dim[0].dim_param)
    return ""


def _fill_batch(graph: onnx.GraphProto, batch: int) -> None:
    """Give inputs whose first dimension has neither a size nor a name the batch."""
    for value in graph.input:
        sizes = value.type.tensor_type.shape.dim
        if sizes and not sizes[0].HasField("dim_value"):
            sizes[0].dim_value = batch


def values_of(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    """Everything that has a type and a shape: inputs, values between, outputs."""
    yield from graph.input
    yield from graph.value_info
    yield from graph.output
