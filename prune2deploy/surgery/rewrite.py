"""Rewriting the sizes that stand in an exported graph, so that it computes with fewer channels.

The graph holds sizes as constants: of views, of norms, of pieces and slices. From the kept labels of each value the new
constants follow. Every rule here is about one operator's arguments; what is not listed has no sizes of its own.
"""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prune2deploy.graph.labels import Value

Values = Mapping[str, Value | tuple[Value, ...]]


@dataclass(frozen=True, slots=True)
class KeptLabels:
    """Which labels stay. ``mask`` has one entry for each label."""

    mask: NDArray[np.bool_]

    def indices(self, value: Value, dim: int) -> NDArray[np.int64]:
        """The positions of ``dim`` that stay, in dense numbering."""
        labels = value.labels_of(dim)
        if labels is None:
            return np.arange(value.shape[dim])
        return np.flatnonzero(self.mask[labels])

    def size(self, value: Value, dim: int) -> int:
        """The size of ``dim`` afterwards."""
        return len(self.indices(value, dim))

    def shape(self, value: Value) -> tuple[int, ...]:
        """The shape of a value afterwards."""
        return tuple(self.size(value, dim) for dim in range(len(value.shape)))


@dataclass(frozen=True, slots=True)
class _Site:
    """One node that is rewritten: its arguments by name, the value it reads first and the values it gives."""

    node: torch.fx.Node
    kept: KeptLabels
    data: Value
    results: tuple[Value, ...]

    @property
    def result(self) -> Value:
        return self.results[0]

    def argument(self, name: str) -> Any:
        """An argument by its name in the schema; the default where it is not given."""
        for position, parameter in enumerate(self._schema):
            if parameter.name == name:
                if position < len(self.node.args):
                    return self.node.args[position]
                return self.node.kwargs.get(name, parameter.default_value)
        raise KeyError(name)

    def has(self, name: str) -> bool:
        """Whether this overload of the operator takes such an argument."""
        return any(parameter.name == name for parameter in self._schema)

    def replace(self, name: str, value: Any) -> None:
        """Set an argument by its name in the schema."""
        for position, parameter in enumerate(self._schema):
            if parameter.name == name and position < len(self.node.args):
                self.node.update_arg(position, value)
                return
        self.node.update_kwarg(name, value)

    @property
    def _schema(self) -> Sequence[Any]:
        assert isinstance(self.node.target, torch._ops.OpOverload)
        return self.node.target._schema.arguments

    def changes(self) -> bool:
        """Whether anything that this node reads or gives becomes smaller."""
        return any(self.kept.shape(value) != value.shape for value in (self.data, *self.results))


def rewrite_sizes(graph: torch.fx.Graph, values: Values, kept: KeptLabels) -> None:
    """Replace every size in ``graph``, in place, by the one that the kept labels give.

    ``values`` are the labelled values by node name, each dimension with a block of its own.
    """
    for node in list(graph.nodes):
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        name = node.target._schema.name.split("::")[-1]
        rule = _RULES.get(name[:-1] if name.endswith("_") else name)
        if rule is None or node.name not in values:
            continue
        given = values[node.name]
        results = given if isinstance(given, tuple) else (given,)
        site = _Site(node, kept, _first_value(node, values), results)
        if site.changes():
            rule(site)


def _first_value(node: torch.fx.Node, values: Values) -> Value:
    for argument in node.all_input_nodes:
        found = values.get(argument.name)
        if isinstance(found, Value):
            return found
    return Value(())


def _sizes(argument: str) -> Callable[[_Site], None]:
    """The shape of the result is written out; -1 finds itself. A ``view`` as another type names no shape."""

    def rule(site: _Site) -> None:
        if not site.has(argument):
            return
        written = site.argument(argument)
        offset = len(site.result.shape) - len(written)
        site.replace(argument, [_new_size(site, offset + place, size) for place, size in enumerate(written)])

    return rule


def _new_size(site: _Site, dim: int, written: Any) -> Any:
    """The size that ``dim`` of the result has afterwards: a number; where it is symbolic, what stood there scaled."""
    dense, kept = site.result.shape[dim], site.kept.size(site.result, dim)
    if kept == dense or written == -1:
        return written
    if isinstance(written, int):
        return kept
    # A product of the batch and of channels (batch times heads, say): the batch stays, the channels shrink.
    divisor = math.gcd(kept, dense)
    graph = site.node.graph
    with graph.inserting_before(site.node):
        scaled = graph.call_function(operator.mul, (written, kept // divisor))
        return graph.call_function(operator.floordiv, (scaled, dense // divisor))


def _unflatten(site: _Site) -> None:
    dim = int(site.argument("dim")) % len(site.data.shape)
    site.replace("sizes", [_new_size(site, dim + place, size) for place, size in enumerate(site.argument("sizes"))])


def _pieces(site: _Site) -> None:
    """Whatever split it before: now by the sizes that the pieces have."""
    dim = int(site.argument("dim")) % len(site.data.shape)
    if site.data.labels_of(dim) is None:
        return
    sizes = [site.kept.size(piece, dim) for piece in site.results]
    data = site.node.args[0]
    site.node.target = torch.ops.aten.split_with_sizes.default
    site.node.args = (data, sizes, dim)
    site.node.kwargs = {}


def _slice(site: _Site) -> None:
    dim = int(site.argument("dim")) % len(site.data.shape)
    if site.data.labels_of(dim) is None:
        return
    start, stop = site.argument("start"), site.argument("end")
    if not all(bound is None or isinstance(bound, int) for bound in (start, stop)):
        return
    first, last, _ = slice(start, stop).indices(site.data.shape[dim])
    kept = site.kept.indices(site.data, dim)
    site.replace("start", int((kept < first).sum()))
    site.replace("end", int((kept < last).sum()))


def _select(site: _Site) -> None:
    dim = int(site.argument("dim")) % len(site.data.shape)
    if site.data.labels_of(dim) is None:
        return
    index = int(site.argument("index")) % site.data.shape[dim]
    site.replace("index", int((site.kept.indices(site.data, dim) < index).sum()))


def _narrow(site: _Site) -> None:
    dim = int(site.argument("dim")) % len(site.data.shape)
    if site.data.labels_of(dim) is None:
        return
    kept = site.kept.indices(site.data, dim)
    start = int(site.argument("start"))
    site.replace("start", int((kept < start).sum()))
    site.replace("length", site.kept.size(site.result, dim))


def _pad(site: _Site) -> None:
    """Padding along channels shrinks to the labels of the padding that stay."""
    written = list(site.argument("pad"))
    rank = len(site.data.shape)
    for place in range(len(written) // 2):
        dim = rank - 1 - place
        before, after = written[2 * place], written[2 * place + 1]
        labels = site.result.labels_of(dim)
        if labels is None or not all(isinstance(size, int) and size >= 0 for size in (before, after)):
            continue
        stays = site.kept.mask[labels]
        written[2 * place] = int(stays[:before].sum())
        written[2 * place + 1] = int(stays[len(stays) - after :].sum()) if after else 0
    site.replace("pad", written)


def _times(argument: str) -> Callable[[_Site], None]:
    """How often each dimension of the result repeats that of the data."""

    def rule(site: _Site) -> None:
        written = list(site.argument(argument))
        leading = len(site.result.shape) - len(written)
        added = len(site.result.shape) - len(site.data.shape)
        for place, times in enumerate(written):
            dim = leading + place
            before = site.kept.size(site.data, dim - added) if dim >= added else 1
            if isinstance(times, int) and before:
                written[place] = site.kept.size(site.result, dim) // before
        site.replace(argument, written)

    return rule


def _interleaved(site: _Site) -> None:
    dim, times = site.argument("dim"), site.argument("repeats")
    if isinstance(dim, int) and isinstance(times, int):
        dim %= len(site.data.shape)
        site.replace("repeats", site.kept.size(site.result, dim) // max(site.kept.size(site.data, dim), 1))


def _rolled(site: _Site) -> None:
    """What was shifted over the end, and stays, is as many as are shifted now."""
    shifts, dims = list(site.argument("shifts")), site.argument("dims")
    for place, (shift, dim) in enumerate(zip(shifts, dims, strict=False)):
        dim = int(dim) % len(site.data.shape)
        if site.data.labels_of(dim) is not None and isinstance(shift, int):
            size = site.data.shape[dim]
            shifts[place] = int((site.kept.indices(site.data, dim) >= size - shift % size).sum())
    site.replace("shifts", shifts)


def _normalized_shape(site: _Site) -> None:
    count = len(site.argument("normalized_shape"))
    site.replace("normalized_shape", list(site.kept.shape(site.data)[-count:]))


def _norm_groups(site: _Site) -> None:
    groups = int(site.argument("num_groups"))
    site.replace("num_groups", _surviving(site.kept.indices(site.data, 1), site.data.shape[1] // groups))


def _convolution_groups(site: _Site) -> None:
    """Whole groups leave, or the same positions of each: count the groups of outputs that survive."""
    groups = int(site.argument("groups"))
    if groups > 1:
        channel = 1 if len(site.result.shape) > 1 else 0
        outputs = site.result.shape[channel] // groups
        site.replace("groups", _surviving(site.kept.indices(site.result, channel), outputs))


def _surviving(indices: NDArray[np.int64], group_size: int) -> int:
    return len(np.unique(indices // group_size))


_RULES: dict[str, Callable[[_Site], None]] = {
    **dict.fromkeys(("view", "expand", "_unsafe_view"), _sizes("size")),
    "reshape": _sizes("shape"),
    **dict.fromkeys(("new_zeros", "new_ones", "new_full", "new_empty"), _sizes("size")),
    **dict.fromkeys(("zeros", "ones", "full", "empty"), _sizes("size")),
    "broadcast_to": _sizes("size"),
    "unflatten": _unflatten,
    "repeat": _times("repeats"),
    "tile": _times("dims"),
    "repeat_interleave": _interleaved,
    "roll": _rolled,
    **dict.fromkeys(("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_chunk", "unsafe_split"), _pieces),
    "slice": _slice,
    "narrow": _narrow,
    "select": _select,
    "pad": _pad,
    "constant_pad_nd": _pad,
    **dict.fromkeys(("layer_norm", "rms_norm"), _normalized_shape),
    "group_norm": _norm_groups,
    **dict.fromkeys(
        ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution"),
        _convolution_groups,
    ),
}
