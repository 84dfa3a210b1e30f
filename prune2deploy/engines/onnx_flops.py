"""What each layer of an ONNX file costs and in which precision it computes, read from the file alone.

FLOPs are counted as ``graph.cost`` and ``torch.utils.flop_counter`` count them: two for each multiply-add of
convolutions and matrix products, nothing for the rest. So the file of a variant costs what its run folder says.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto

from prune2deploy.engines.onnx_file import load_onnx_proto
from prune2deploy.engines.onnx_shapes import values_of, with_shapes
from prune2deploy.errors import InputError

_PRECISIONS: Mapping[int, str] = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.DOUBLE: "fp64",
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "int8",
}
# Where each operator takes its data and its second operand.
_CONVOLUTIONS = {"Conv": (0, 1), "ConvTranspose": (0, 1), "ConvInteger": (0, 1), "QLinearConv": (0, 3)}
_PRODUCTS = {"Gemm": (0, 1), "MatMul": (0, 1), "MatMulInteger": (0, 1), "QLinearMatMul": (0, 3)}
_OPERANDS = {**_CONVOLUTIONS, **_PRODUCTS, "Einsum": (0, 1)}
_STANDARD = ("", "ai.onnx")
# They move values and compute nothing; engines dequantise after them.
_MOVES = ("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCost:
    """One convolution or matrix product.

    ``flops`` are those of one run at the asked batch: 2 x ``positions`` x kernel x ``input_width`` / ``groups`` x
    ``output_width``. ``input_width`` and ``output_width`` count channels of all groups, or the summed and the last
    dimension of a matrix product. ``positions`` are the places where the kernel is applied, or the rows of the
    product, of the whole batch. ``kernel`` is () for products. ``weight`` names the stored second operand, None
    where both are activations (attention). ``precision`` is "fp32", "fp16", "bf16" or "int8": the type of the data,
    or int8 where data and second operand come out of DequantizeLinear.
    """

    name: str
    operator: str
    precision: str
    flops: int
    input_width: int
    output_width: int
    groups: int
    kernel: tuple[int, ...]
    positions: int
    weight: str | None


def layer_costs(
    source: onnx.ModelProto | Path, batch: int = 1, *, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> tuple[LayerCost, ...]:
    """Every layer that costs FLOPs, in the file's order.

    What lies in subgraphs (If, Loop) and in operators of several products (Attention, LSTM) is not seen.

    ``batch`` takes the place of a free batch dimension; one that the file fixes stays. ``shapes`` are those of inputs
    with more free sizes, by name. External weights are not read.

    Raises:
        InputError: the file cannot be read, or the shapes of a layer (named) do not follow from those of the inputs.
    """
    graph = _Graph(source, batch, shapes)
    return tuple(graph.cost(node) for node in graph.layers)


def layer_precisions(source: onnx.ModelProto | Path) -> tuple[tuple[str, str], ...]:
    """(name, precision) of every layer that costs FLOPs; sizes need not be known.

    Raises:
        InputError: the file cannot be read, or the type of a layer's data does not follow from those of the inputs.
    """
    graph = _Graph(source, 1)
    return tuple((_name(node), graph.precision(node)) for node in graph.layers)


class _Graph:
    """An ONNX graph with the type and shape of every value."""

    def __init__(
        self, source: onnx.ModelProto | Path, batch: int, shapes: Mapping[str, tuple[int, ...]] | None = None
    ) -> None:
        self.where = str(source) if isinstance(source, Path) else "the ONNX network"
        model = load_onnx_proto(source) if isinstance(source, Path) else source
        inferred = with_shapes(model, batch, where=self.where, shapes=shapes).graph
        self.stored = {value.name for value in model.graph.initializer}
        self._values = {value.name: value.type.tensor_type for value in values_of(inferred)}
        self._constants = {tensor.name: tensor for tensor in inferred.initializer}
        self._makers = {name: node for node in inferred.node for name in node.output}
        self._nodes = inferred.node

    @property
    def layers(self) -> Iterator[onnx.NodeProto]:
        """The nodes that cost FLOPs: matrix products with a vector are not counted, as torch does not count them."""
        for node in self._nodes:
            if node.domain not in _STANDARD or node.op_type not in _OPERANDS or len(node.input) < 2:
                continue
            if node.op_type == "Einsum" and not _summed(_equation(node)):
                continue
            if node.op_type in _PRODUCTS and any(self._rank(name) == 1 for name in self._operands(node)):
                continue
            yield node

    def cost(self, node: onnx.NodeProto) -> LayerCost:
        data, second = (self._shape(name, node) for name in self._operands(node))
        groups = 1
        kernel: tuple[int, ...] = ()
        if node.op_type in _CONVOLUTIONS:
            transposed = node.op_type == "ConvTranspose"
            groups = int(_attribute(node, "group", 1))
            kernel = second[2:]
            width_in, width_out = data[1], second[1] * groups if transposed else second[0]
            applied = data if transposed else self._shape(node.output[0], node)
            positions = applied[0] * math.prod(applied[2:])
        elif node.op_type == "Einsum":
            width_in, width_out, positions = _einsum_sizes(_equation(node), data, second)
        else:
            rows, width_in = _turned(data, bool(_attribute(node, "transA", 0)))[-2:]
            width_out = _turned(second, bool(_attribute(node, "transB", 0)))[-1]
            positions = rows * math.prod(_broadcast(data[:-2], second[:-2]))
        return LayerCost(
            name=_name(node),
            operator=node.op_type,
            precision=self.precision(node),
            flops=2 * positions * math.prod(kernel) * (width_in // groups) * width_out,
            input_width=width_in,
            output_width=width_out,
            groups=groups,
            kernel=kernel,
            positions=positions,
            weight=self._weight(self._operands(node)[1]),
        )

    def precision(self, node: onnx.NodeProto) -> str:
        """What the layer computes in, by its operands."""
        operands = self._operands(node)
        if all(self._before_moves(name) == "DequantizeLinear" for name in operands):
            return "int8"
        for name in operands:
            if kind := self._type(name):
                return (
                    _PRECISIONS.get(kind)
                    or str(TensorProto.DataType.Name(TensorProto.DataType.ValueType(kind))).lower()
                )
        raise InputError(
            f"the type of what {_name(node)} ({node.op_type}) reads does not follow from the inputs",
            where=self.where,
            hint="export the file with the types of its values",
        )

    def _operands(self, node: onnx.NodeProto) -> tuple[str, str]:
        first, second = _OPERANDS[node.op_type]
        return node.input[first], node.input[second]

    def _before_moves(self, name: str) -> str:
        """The operator that made a value, before transposes and the like."""
        maker = self._makers.get(name)
        while maker is not None and maker.op_type in _MOVES:
            maker = self._makers.get(maker.input[0])
        return maker.op_type if maker is not None else ""

    def _weight(self, name: str) -> str | None:
        """The initializer that a value is made of by dequantising, casting and moving."""
        while name not in self.stored:
            maker = self._makers.get(name)
            if maker is None or maker.op_type not in (*_MOVES, "DequantizeLinear", "QuantizeLinear", "Cast"):
                return name if maker is not None and maker.op_type == "Constant" else None
            name = maker.input[0]
        return name

    def _type(self, name: str) -> int:
        if name in self._constants:
            return int(self._constants[name].data_type)
        return int(self._values[name].elem_type) if name in self._values else 0

    def _rank(self, name: str) -> int | None:
        if name in self._constants:
            return len(self._constants[name].dims)
        value = self._values.get(name)
        return len(value.shape.dim) if value is not None and value.HasField("shape") else None

    def _shape(self, name: str, node: onnx.NodeProto) -> tuple[int, ...]:
        if name in self._constants:
            return tuple(self._constants[name].dims)
        value = self._values.get(name)
        known = value is not None and value.HasField("shape")
        if value is None or not known or not all(size.HasField("dim_value") for size in value.shape.dim):
            raise InputError(
                f"the shapes of {_name(node)} ({node.op_type}) do not follow from those of the inputs",
                where=self.where,
                hint="export it with fixed sizes; only the batch may be free",
            )
        return tuple(int(size.dim_value) for size in value.shape.dim)


def _name(node: onnx.NodeProto) -> str:
    return node.name or next(iter(node.output), "")


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(one.i) for one in node.attribute if one.name == name), default)


def _turned(shape: tuple[int, ...], turned: bool) -> tuple[int, ...]:
    return (*shape[:-2], shape[-1], shape[-2]) if turned else shape


def _broadcast(first: Sequence[int], second: Sequence[int]) -> list[int]:
    """The batch dimensions of a product, whose sizes are equal or 1. Sizes of 0 stay."""
    longest = max(len(first), len(second))
    pairs = zip([1] * (longest - len(first)) + list(first), [1] * (longest - len(second)) + list(second), strict=True)
    return [one if other == 1 else other for one, other in pairs]


def _equation(node: onnx.NodeProto) -> tuple[str, str, str] | None:
    """The three terms of an einsum of two operands; None for other numbers, and where dimensions are left unnamed."""
    text = next((one.s.decode() for one in node.attribute if one.name == "equation"), "").replace(" ", "")
    terms, arrow, out = text.partition("->")
    operands = terms.split(",")
    if len(operands) != 2 or not arrow or "." in text:
        return None
    return operands[0], operands[1], out


def _summed(equation: tuple[str, str, str] | None) -> str:
    """The dimensions that both operands share and the result lacks."""
    return "" if equation is None else "".join(sorted((set(equation[0]) & set(equation[1])) - set(equation[2])))


def _einsum_sizes(
    equation: tuple[str, str, str] | None, first: tuple[int, ...], second: tuple[int, ...]
) -> tuple[int, int, int]:
    """(summed width, width that only the second operand has, rows)."""
    assert equation is not None
    sizes: Mapping[str, int] = {
        **dict(zip(equation[0], first, strict=True)),
        **dict(zip(equation[1], second, strict=True)),
    }
    summed = math.prod(sizes[label] for label in _summed(equation))
    own = math.prod(sizes[label] for label in set(equation[2]) - set(equation[0]))
    rows = math.prod(sizes[label] for label in equation[0] if label not in _summed(equation))
    return summed, own, rows
