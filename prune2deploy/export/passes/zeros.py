"""Dropping additions of zeros: what is left in a graph of a residual branch that was removed.

The exporter writes zeros of the shape of a value as ``Expand(0, Shape(value))``, or as a constant where the batch is
fixed, and its optimiser keeps them: an engine would compute and add them at every run.
"""

import numpy as np
import onnx_graphsurgeon as gs

_KEEP_ZERO = frozenset(
    {"Cast", "Dropout", "Elu", "Gelu", "HardSwish", "Identity", "LeakyRelu", "Mish", "Relu", "Tanh", "Transpose"}
)
"""Operators whose result is zero where their first input is."""


def drop_added_zeros(graph: gs.Graph) -> int:
    """Let what reads ``x + 0`` read x, where the zeros do not broadcast x. Returns how many additions went.

    ``graph`` is changed in place; call its ``cleanup`` afterwards, so that what made the zeros goes too. Nothing is
    dropped where a shape is not known, or where the sum is an output of the graph.
    """
    dropped = 0
    outputs = {id(tensor) for tensor in graph.outputs}
    for node in graph.nodes:
        if node.op != "Add" or id(node.outputs[0]) in outputs:
            continue
        total = node.outputs[0]
        for zeros, other in (node.inputs, reversed(node.inputs)):
            if _is_zero(zeros) and other.shape is not None and _same(other.shape, total.shape):
                for reader in list(total.outputs):
                    reader.inputs = [other if one is total else one for one in reader.inputs]
                dropped += 1
                break
    return dropped


def _is_zero(tensor: gs.Tensor) -> bool:
    """Whether every entry is zero, whatever the inputs of the graph are."""
    if isinstance(tensor, gs.Constant):
        return not np.any(tensor.values)
    if not tensor.inputs:
        return False
    maker = tensor.inputs[0]
    if maker.op == "ConstantOfShape":
        value = maker.attrs.get("value")
        return value is None or not np.any(value.values)
    return (maker.op in _KEEP_ZERO or maker.op == "Expand") and _is_zero(maker.inputs[0])


def _same(shape: object, other: object) -> bool:
    """Whether two shapes are known and equal; sizes that depend on the batch are equal by name."""
    return isinstance(shape, list | tuple) and isinstance(other, list | tuple) and list(shape) == list(other)
