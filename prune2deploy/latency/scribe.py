"""Writing ONNX nodes one after the other, with weights that nobody trained, and names that tell whose they are."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

_POOL = 1 << 20
_TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


class Scribe:
    """Collects the nodes and weights of one ONNX graph; what is written goes by the name of ``part``.

    Every value and node is called ``part/operator_number``, because engines keep now the one name and now the other.
    """

    def __init__(self, precision: str) -> None:
        self.element = _TYPES.get(precision, TensorProto.FLOAT)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.bytes_each = 4 if self.element == TensorProto.FLOAT else 2
        self.part = ""
        self._random = np.random.default_rng(0)
        self._pool: NDArray[np.float32] = self._random.standard_normal(_POOL, dtype=np.float32)

    def node(self, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Write a node with one output, and return the name of that."""
        name = f"{self.part}/{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def weight(self, shape: Sequence[int], *, fan_in: int = 1) -> str:
        """Store normal numbers of variance 1 / ``fan_in``, other ones each time. Returns the name."""
        size = int(np.prod(shape, dtype=np.int64))
        start = int(self._random.integers(_POOL))
        # Cut from a pool that was drawn once: drawing gigabytes takes longer than timing them.
        values = np.resize(np.roll(self._pool, -start) if size > _POOL - start else self._pool[start:], size)
        return self._store((values / np.sqrt(np.float32(fan_in))).reshape(shape), self.element)

    def constant(self, values: Sequence[float]) -> str:
        """Store the given numbers, in the precision of the graph, as a vector. Returns the name."""
        return self._store(np.asarray(values, dtype=np.float32), self.element)

    def scalar(self, value: float) -> str:
        """Store one number, in the precision of the graph. Returns the name."""
        return self._store(np.asarray(value, dtype=np.float32), self.element)

    def integers(self, values: Sequence[int]) -> str:
        """Store sizes or axes. Returns the name."""
        return self._store(np.asarray(values, dtype=np.int64), TensorProto.INT64)

    def _store(self, values: NDArray[Any], element: int) -> str:
        name = f"{self.part}/weight_{len(self.weights)}"
        self.weights.append(helper.make_tensor(name, element, values.shape, _raw(values, element), raw=True))
        return name


def _raw(values: NDArray[Any], element: int) -> bytes:
    if element == TensorProto.FLOAT16:
        return values.astype(np.float16).tobytes()
    if element == TensorProto.BFLOAT16:
        # NumPy has no bfloat16: it is the upper half of a float32.
        return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return values.tobytes()
