"""Test networks: many points side by side in one ONNX graph, so that the engine's own profiler times each of them.

A point is timed as it would run inside a network. What it reads was written just before, in the layout that the engine
likes: a feed stands in front of each input, and what a unit makes is read by a drain, which makes next to nothing of
it. Feeds and drains are named apart from the unit and not counted. Where the engine changes the layout between them and
the unit, it does so in a network as well, between this unit and its neighbours: half of that is the unit's.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from prune2deploy.engines.capabilities import LayerProfile, LayerTime
from prune2deploy.graph.unit import Operator, Shape, Unit
from prune2deploy.latency.operators import Call, write_operator
from prune2deploy.latency.points import Point
from prune2deploy.latency.scribe import Scribe

# Until then, Conv and pools forbid bfloat16; torch exports the others at 20.
_OPSET, _OPSET_OF_BF16 = 20, 22
_BALLAST_COLUMNS = 1024
_BLOCK = 16
_FEED_CHANNELS = 4
# What a mean reads is read by another as well (by the product behind it), and one change of layout serves both.
_SHARING = {"mean", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"}
# A point's nodes and values are called "p17.0/...": number 17, copy 0.
_OWNED = re.compile(r"\bp(\d+)\.\d+/")
_SERVES = re.compile(r"\b(?:feed/|p|drain/)(\d+\.\d+)/")
# What engines call layers that they put in to change a layout or a type.
_MOVES = re.compile("reorder|reformat|transpose|permute|cast|convert|memcpy|copy|noop", re.IGNORECASE)
# What these read has its channels last.
_CHANNELS_LAST = {"linear", "layer_norm", "softmax", "matmul", "einsum", "scaled_dot_product_attention"}


@dataclass(frozen=True, kw_only=True)
class TestNetwork:
    """Points in one ONNX graph of fixed shapes. ``copies`` says how often each is in it, with other weights.

    ``inputs`` are the shapes of the graph's inputs by name, ``type`` is theirs as NumPy spells it.
    """

    points: tuple[Point, ...]
    copies: tuple[int, ...]
    model: onnx.ModelProto
    inputs: dict[str, Shape]
    type: str = "float32"

    @cached_property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """Normal numbers for the inputs."""
        random = np.random.default_rng(1)
        return {
            name: random.standard_normal(shape, dtype=np.float32).astype(self.type)
            for name, shape in self.inputs.items()
        }

    def shared_out(self, profile: LayerProfile) -> list[float | None]:
        """What each point takes by a profile of the network, in ns: the sum of its layers, the mean of its copies.

        None for a point that no layer can be told to belong to. Shape: -> (points,).
        """
        found: dict[int, float] = {}
        torn: set[int] = set()
        for layer in profile.layers:
            owners = owners_of(layer)
            if len(owners) > 1:
                torn |= owners
            for owner in owners:
                found[owner] = found.get(owner, 0.0) + layer.latency_ns
        for owner, latency_ns in _moves(profile.layers):
            if owner in found and self.points[owner].unit.operators[0].name not in _SHARING:
                found[owner] += latency_ns / 2
        return [
            None if number in torn or number not in found else found[number] / copies
            for number, copies in enumerate(self.copies)
        ]


def owners_of(layer: LayerTime) -> set[int]:
    """The points that a layer belongs to: of whom its name tells, else its nodes; none for a change of layout."""
    if not layer.nodes and _MOVES.search(layer.operator):
        return set()
    named = {int(number) for number in _OWNED.findall(layer.name)}
    if named or _SERVES.search(layer.name):
        # A feed is no point's, even where nodes that nobody tells of are counted with it.
        return named
    return {int(number) for node in layer.nodes for number in _OWNED.findall(node)}


def _moves(layers: Sequence[LayerTime]) -> Iterator[tuple[int, float]]:
    """Changes of layout that run between the feeds of a copy and its drain, each with the number of the point."""
    before: str | None = None
    waiting: list[LayerTime] = []
    for layer in layers:
        if not layer.nodes and _MOVES.search(layer.operator):
            waiting.append(layer)
            continue
        label = _label_of(layer)
        if label is not None and label == before:
            yield from ((int(label.partition(".")[0]), move.latency_ns) for move in waiting)
        before, waiting = label, []


def _label_of(layer: LayerTime) -> str | None:
    """The copy that a layer serves: "17.0" is copy 0 of point 17."""
    named = (_SERVES.search(name) for name in (layer.name, *layer.nodes))
    return next((found[1] for found in named if found), None)


def write_network(
    points: Sequence[Point],
    copies: Sequence[int],
    *,
    batch: int,
    precision: str,
    ballast_bytes: int = 0,
    bare: bool = False,
) -> TestNetwork:
    """One graph of all points, each as often as ``copies`` says.

    With ``ballast_bytes`` it also multiplies by a matrix of that size, which leaves the caches full of other things.
    A ``bare`` one has neither feeds nor drains: every value that a copy reads is an input of the graph, and what it
    makes is an output, in the precision of the graph (in float32 with casts around for bf16, which NumPy has not).

    Raises:
        InputError: an operator is not known.
    """
    writer = _Writer(batch, precision, bare=bare)
    for number, (point, times) in enumerate(zip(points, copies, strict=True)):
        for copy in range(times):
            writer.write(point, f"{number}.{copy}")
    writer.write_ballast(ballast_bytes)
    return TestNetwork(
        points=tuple(points),
        copies=tuple(copies),
        model=writer.model(),
        inputs=dict(writer.input_shapes),
        type="float16" if writer.outer == TensorProto.FLOAT16 else "float32",
    )


class _Writer:
    def __init__(self, batch: int, precision: str, *, bare: bool) -> None:
        self._batch, self._bare = batch, bare
        self._opset = _OPSET_OF_BF16 if precision == "bf16" else _OPSET
        self._scribe = Scribe(precision)
        self.outer = TensorProto.FLOAT16 if bare and precision == "fp16" else TensorProto.FLOAT
        self._inputs: dict[Shape, str] = {}
        self._outputs: list[tuple[str, int]] = []
        self.input_shapes: dict[str, Shape] = {}

    def write(self, point: Point, label: str) -> None:
        """One copy of a point with its feeds and its drain."""
        unit = point.unit
        shapes = [self._with_batch(unit.at(shape, point.widths)) for shape in unit.inputs]
        self._scribe.part = f"feed/{label}"
        fed: list[tuple[str, Shape]] = []
        values = []
        for shape in shapes:
            parts = [(self._feed(part, blocked=_blocked(unit, part)), part) for part in _parts(unit, shape)]
            values.append(tuple(name for name, _ in parts))
            fed += parts
        self._scribe.part = f"p{label}"
        for operator in unit.operators:
            shape = self._with_batch(unit.at(operator.shape, point.widths))
            call = Call(
                operator=operator,
                reads=tuple(name for number in operator.reads for name in values[number]),
                read_shapes=tuple(shapes[number] for number in operator.reads),
                shape=shape,
                operand=self._operand(operator, point, shape),
            )
            values.append((write_operator(self._scribe, call),))
            shapes.append(shape)
        self._scribe.part = f"drain/{label}"
        if self._bare:
            self._output(values[-1][0], len(shapes[-1]))
            return
        others = [(self._corner(*one), len(one[1])) for one in fed if _blocked(unit, one[1])]
        rank = len(shapes[-1])
        joined = [name for name, its_rank in others if its_rank == rank]
        self._drain(values[-1][0], shapes[-1], joined, blocked=_blocked(unit, shapes[-1]))
        for name, its_rank in others:
            if its_rank != rank:
                self._output(name, its_rank)

    def write_ballast(self, bytes_wanted: int) -> None:
        """A product that reads so many bytes of weights, or none where that is little."""
        rows = bytes_wanted // (_BALLAST_COLUMNS * self._scribe.bytes_each)
        if rows > 0:
            self._scribe.part = "ballast"
            weight = self._scribe.weight((rows, _BALLAST_COLUMNS), fan_in=rows)
            product = self._scribe.node("MatMul", [self._input((1, rows)), weight])
            self._drain(product, (1, _BALLAST_COLUMNS))

    def model(self) -> onnx.ModelProto:
        """The finished graph."""
        inputs = [helper.make_tensor_value_info(name, self.outer, shape) for name, shape in self.input_shapes.items()]
        outputs = [helper.make_tensor_value_info(name, self.outer, [None] * rank) for name, rank in self._outputs]
        graph = helper.make_graph(self._scribe.nodes, "points", inputs, outputs, self._scribe.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self._opset)], ir_version=10)

    def _with_batch(self, shape: Shape) -> Shape:
        return (shape[0] * self._batch, *shape[1:]) if shape else shape

    def _operand(self, operator: Operator, point: Point, result: Shape) -> Shape | None:
        """The shape of the constant that an operator takes; with a batch where it has an entry for each of one."""
        stated = dict(operator.attributes).get("operand")
        if stated is None:
            return None
        shape = point.unit.at(stated, point.widths)
        return self._with_batch(shape) if len(shape) == len(result) and shape[0] != 1 else shape

    def _feed(self, shape: Shape, *, blocked: bool) -> str:
        """A value of this shape, written just before it is read, and in the engine's own layout where ``blocked``.

        A convolution of a few channels makes it in that layout, at any width, as convolutions do in a network. Each
        feed has a weight of its own, or engines would compute equal ones once, and then all of their readers.
        """
        if self._bare:
            return self._new_input(shape)
        if not blocked:
            return self._scribe.node("Mul", [self._input(shape), self._scribe.weight(())])
        narrow = self._input((shape[0], _FEED_CHANNELS, *shape[2:]))
        kernel = [1] * (len(shape) - 2)
        weight = self._scribe.weight((shape[1], _FEED_CHANNELS, *kernel), fan_in=_FEED_CHANNELS)
        return self._scribe.node("Conv", [narrow, weight])

    def _corner(self, value: str, shape: Shape) -> str:
        """One number of each sample: a convolution that strides over all pixels but those of one corner.

        It reads next to nothing, in the layout of convolutions. The unit ends with it, and it is the second reader of
        what the unit is fed with, or engines would fuse the two. Of a single pixel OpenVINO would have the layers
        before compute no more than that.
        """
        kernel = [min(2, size) for size in shape[2:]]
        return self._scribe.node("Conv", [value, self._scribe.weight((1, shape[1], *kernel))], strides=shape[2:])

    def _input(self, shape: Shape) -> str:
        """The graph's one input of this shape, in its precision."""
        if shape not in self._inputs:
            self._inputs[shape] = self._new_input(shape)
        return self._inputs[shape]

    def _new_input(self, shape: Shape) -> str:
        value = f"input_{len(self.input_shapes)}"
        self.input_shapes[value] = shape
        return (
            value if self._scribe.element == self.outer else self._scribe.node("Cast", [value], to=self._scribe.element)
        )

    def _drain(self, value: str, shape: Shape, others: Sequence[str] = (), *, blocked: bool = False) -> None:
        """A small output of the graph that needs ``value`` and ``others``, which are one number each."""
        if blocked:
            value = self._corner(value, shape)
        elif shape:
            value = self._scribe.node("ReduceMax", [value, self._scribe.integers([-1])], keepdims=1)
        for other in others:
            value = self._scribe.node("Add", [value, other])
        self._output(value, len(shape))

    def _output(self, value: str, rank: int) -> None:
        if self._scribe.element != self.outer:
            value = self._scribe.node("Cast", [value], to=self.outer)
        self._outputs.append((value, rank))


def _blocked(unit: Unit, shape: Shape) -> bool:
    """Whether a value of the unit has channels and pixels, which engines lay out as their convolutions want them.

    An image has pixels, too, but no convolution made it.
    """
    return len(shape) >= 3 and shape[1] > _FEED_CHANNELS and unit.operators[0].name not in _CHANNELS_LAST


def _parts(unit: Unit, shape: Shape) -> tuple[Shape, ...]:
    """What stands for an input: a concatenation reads one value of its result's shape, and joins two halves of it.

    The first is wide enough to be a multiple of 16 where both can be.
    """
    joins = unit.operators[0]
    if joins.name != "cat" or len(joins.reads) > 1:
        return (shape,)
    dim = dict(joins.attributes)["dim"]
    whole = shape[dim]
    first = whole // 2 if whole < 2 * _BLOCK else -(-whole // (2 * _BLOCK)) * _BLOCK
    return tuple((*shape[:dim], part, *shape[dim + 1 :]) for part in (max(first, 1), max(whole - first, 1)))


def bytes_of(point: Point, batch: int) -> int:
    """About how many bytes a point reads, writes and keeps in float32: values and weights."""
    values, weights, _ = _work(point)
    return 4 * (values * batch + weights)


def flops_of(point: Point, batch: int) -> int:
    """About how many FLOPs its convolutions and products take."""
    return _work(point)[2] * batch


def _work(point: Point) -> tuple[int, int, int]:
    """Elements of its values, weights of its convolutions and linear layers, and FLOPs, at a batch of 1."""
    unit = point.unit
    shapes = [unit.at(shape, point.widths) for shape in unit.inputs]
    weights = flops = 0
    for operator in unit.operators:
        shape = unit.at(operator.shape, point.widths)
        read = shapes[operator.reads[0]]
        attributes = dict(operator.attributes)
        filters = 0
        if operator.name.startswith("conv"):
            kernel = attributes.get("kernel", 1)
            taps = kernel if isinstance(kernel, int) else int(np.prod(kernel))
            filters = (attributes.get("channels_per_group") or read[1] // attributes.get("groups", 1)) * taps
            weights += filters * shape[1]
        elif operator.name == "linear":
            filters = read[-1]
            weights += filters * shape[-1]
        elif operator.name in _CHANNELS_LAST:
            filters = read[-1]
        flops += 2 * filters * _size(shape)
        shapes.append(shape)
    return sum(map(_size, shapes)), weights, flops


def _size(shape: Iterable[int]) -> int:
    return int(np.prod(tuple(shape), dtype=np.int64))
