"""The record that operator rules write to while a graph is interpreted: labels, unions, freezes, costs, readers."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from prune2deploy.graph.labels import FROZEN_LABEL, AxisKey, Block, Labels, Value, value_of

MAXIMUM_LABELS_OF_A_VALUE = 400_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Freeze:
    """One reason why labels cannot leave: what happened, at which operator, where in the user's code."""

    reason: str
    operator: str
    place: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedOperator:
    """An operator whose FLOPs count: ``coefficient`` times the product of the kept sizes of ``widths``.

    ``produced`` is the one of ``widths`` that is the output dimension of the operator's own weight, if it has one.
    """

    layer: str
    coefficient: int
    widths: tuple[Labels, ...]
    produced: Labels | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """An operator that sums over a labelled dimension of its argument, and so reads the channels there."""

    node: str
    argument: int
    element: int
    dim: int
    labels: Labels


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelNorm:
    """An operator whose result for one channel depends on the others, along a labelled dimension of its first argument.

    Norms, means and maxima over channels, convolutions that slide over them.
    """

    node: str
    dim: int
    labels: Labels


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduction:
    """A joint block lost all axes but ``cut``; ``kept`` is the longest of the others, whose indices stay together."""

    cut: AxisKey
    kept: AxisKey


@dataclass(slots=True)
class Labelling:
    """Everything that interpreting a graph establishes.

    ``votes`` counts, for each axis that a reshape made, how often an operator would like that axis to be the one
    that is cut. A vote counts for the axis of an earlier reshape (``parents``) too, of which this one is a part. With
    ``collapse`` the votes are used: a joint block keeps its most wanted axis only.

    ``reductions`` tell of each label of a joint block that was reduced which axis it counts, and which is the longest
    of those that stay whole; ``of_heads`` are those of what batched products (attentions) have along their batch
    dimensions.

    ``sizes_are_free`` says that sizes written in the code will be rewritten, and constrain nothing. Then a part of a
    dimension (a chunk, a slice) may have a width of its own: ``pieces`` notes these, so that none becomes empty.
    ``tensor_label_count`` labels belong to parameters and buffers; all others come after them. ``node`` is the operator
    whose rule is at work.
    """

    votes: Counter[AxisKey] = field(default_factory=Counter)
    parents: dict[AxisKey, AxisKey] = field(default_factory=dict)
    reductions: dict[int, set[Reduction]] = field(default_factory=dict)
    of_heads: set[Reduction] = field(default_factory=set)
    collapse: bool = False
    sizes_are_free: bool = False
    label_count: int = 1
    tensor_label_count: int = 1
    edges: list[tuple[Labels, Labels]] = field(default_factory=list)
    freezes: list[tuple[Freeze, Labels]] = field(default_factory=list)
    producers: list[Labels] = field(default_factory=list)
    consumers: list[Labels] = field(default_factory=list)
    streams: list[Labels] = field(default_factory=list)
    pieces: list[Labels] = field(default_factory=list)
    counted: list[CountedOperator] = field(default_factory=list)
    readers: list[Reader] = field(default_factory=list)
    norms: list[ChannelNorm] = field(default_factory=list)
    tensors: dict[str, Value] = field(default_factory=dict)
    node: torch.fx.Node | None = None
    used_tensors: dict[str, None] = field(default_factory=dict)

    def new_labels(self, count: int) -> Labels:
        """``count`` labels that nothing else has."""
        labels = np.arange(self.label_count, self.label_count + count, dtype=np.int64)
        self.label_count += count
        return labels

    def is_of_tensors(self, block: Block) -> bool:
        """Whether some label belongs to a parameter or buffer, and not to repeated or constant data."""
        return bool(((block.labels > FROZEN_LABEL) & (block.labels < self.tensor_label_count)).any())

    def unite(self, first: Labels, second: Labels) -> None:
        """Positions of ``first`` and ``second`` (shapes broadcast) can only leave together."""
        first, second = np.broadcast_arrays(first, second)
        self.edges.append((first.ravel(), second.ravel()))
        if self.node is not None and (met := (first == FROZEN_LABEL) != (second == FROZEN_LABEL)).any():
            self.freeze(np.maximum(first, second)[met], "is joined with data of fixed size", self.node)

    def unite_along(self, labels: Labels, axis: int) -> Labels:
        """All positions along ``axis`` can only leave together. Returns the labels without that axis."""
        first = labels.take([0], axis=axis)
        self.unite(labels, first)
        return first.squeeze(axis)

    def freeze(self, labels: Labels, reason: str, node: torch.fx.Node) -> None:
        """These labels cannot leave."""
        labels = np.unique(labels)
        labels = labels[labels != FROZEN_LABEL]
        if len(labels):
            freeze = Freeze(reason=reason, operator=operator_name(node), place=place_of(node))
            self.freezes.append((freeze, labels))

    def freeze_value(self, value: Value, reason: str, node: torch.fx.Node) -> None:
        """Nothing of this value can leave."""
        for block in value.blocks:
            self.freeze(block.labels, reason, node)

    def freeze_dim(self, value: Value, dim: int, reason: str, node: torch.fx.Node) -> Value:
        """``dim`` must keep its size. A joint block may still lose along its other dimensions."""
        block = value.block_of(dim)
        if block is None:
            return value
        others = tuple(other for other in value.blocks if other is not block)
        if len(block.dims) == 1:
            self.freeze(block.labels, reason, node)
            return Value(value.shape, others, value.tensor)
        self.vote_against(block, dim)
        axis = block.along(dim)
        labels = self.unite_along(block.labels, axis)
        dims = block.dims[:axis] + block.dims[axis + 1 :]
        keys = block.keys[:axis] + block.keys[axis + 1 :]
        return Value(value.shape, (*others, Block(dims, labels, keys)), value.tensor)

    def value(self, shape: Sequence[int], blocks: Iterable[Block], node: torch.fx.Node) -> Value:
        """An operator's result. Channels that fill it wholly are frozen, since it may not become empty."""
        value, lost = value_of(shape, blocks)
        self.freeze(lost, "one channel fills the whole value, which may not become empty", node)
        return value

    def one_axis(self, block: Block, *, vote: int | None = None) -> Block:
        """A joint block reduced to one axis: the one voted for most, else the longest, else the last.

        ``vote`` names a dimension that the calling operator would like to be cut; it is counted.
        Without ``collapse`` (the first pass) the block stays as it is, unless its axes have no keys.
        """
        if vote is not None:
            self._vote(block.keys[block.along(vote)])
        if len(block.dims) == 1 or not self.collapse:
            return block
        scores = [
            (self.votes[key] if key is not None else 0, size, axis)
            for axis, (key, size) in enumerate(zip(block.keys, block.labels.shape, strict=True))
        ]
        chosen = max(scores)[2]
        labels = np.moveaxis(block.labels, chosen, 0).reshape(block.labels.shape[chosen], -1)
        reduced = Block.of(block.dims[chosen], self.unite_along(labels, 1))
        self._note_axes(block, chosen, reduced.labels)
        return reduced

    def attended(self, block: Block, batch: Collection[int]) -> Block:
        """A block of a batched product's operand reduced to one axis: the last of its ``batch`` dimensions (heads)."""
        outside = [dim for dim in block.dims if dim in batch]
        if outside and len(block.dims) == 1:
            self.of_heads.update(*(self.reductions.get(label, ()) for label in block.labels.tolist()))
        return self.one_axis(block, vote=outside[-1] if outside else None)

    def _note_axes(self, block: Block, chosen: int, labels: Labels) -> None:
        cut = block.keys[chosen]
        others = list(zip(block.labels.shape, block.keys, strict=True))
        _, kept = max((one for axis, one in enumerate(others) if axis != chosen), key=lambda one: one[0])
        if cut is not None and kept is not None:
            for label in labels.tolist():
                self.reductions.setdefault(label, set()).add(Reduction(cut=cut, kept=kept))

    def vote_against(self, block: Block, dim: int) -> None:
        """An operator needs the size of ``dim``: the other axes of a joint block should be cut."""
        if len(block.dims) > 1:
            for key, other in zip(block.keys, block.dims, strict=True):
                if other != dim:
                    self._vote(key)

    def with_parents(self, key: AxisKey | None) -> Iterator[AxisKey]:
        """An axis, and those of earlier reshapes of which it is a part."""
        while key is not None:
            yield key
            key = self.parents.get(key)

    def _vote(self, key: AxisKey | None) -> None:
        self.votes.update(self.with_parents(key))

    def count(
        self,
        node: torch.fx.Node,
        coefficient: int,
        widths: Iterable[Labels | None],
        *,
        produced: Labels | None = None,
    ) -> None:
        """Count FLOPs: ``coefficient`` covers every dimension that has no labels.

        ``produced`` is the one of ``widths`` that a weight makes: whoever keeps it keeps the operator's FLOPs.
        """
        labelled = tuple(labels for labels in widths if labels is not None)
        layer = module_path_of(node)
        self.counted.append(CountedOperator(layer=layer, coefficient=coefficient, widths=labelled, produced=produced))

    def read(self, node: torch.fx.Node, argument: int, dim: int, labels: Labels | None, *, element: int = 0) -> None:
        """Note that ``node`` sums over ``dim`` of its positional argument number ``argument``.

        ``element`` counts within an argument that is a list of tensors.
        """
        if labels is not None:
            self.readers.append(Reader(node=node.name, argument=argument, element=element, dim=dim, labels=labels))


def operator_name(node: torch.fx.Node) -> str:
    """The ATen name of a node (``aten.add.Tensor``), or what kind of node it is."""
    return str(node.target) if node.op == "call_function" else node.op


def module_path_of(node: torch.fx.Node) -> str:
    """The path of the innermost module that ran the node; empty for the root."""
    stack = node.meta.get("nn_module_stack") or {}
    path = ""
    for entry in stack.values():
        path = entry[0] if isinstance(entry, tuple) else str(entry)
    return path


def place_of(node: torch.fx.Node) -> str:
    """The module path and the source line of the user's code that ran the node."""
    path = module_path_of(node)
    line = ""
    for text in (node.meta.get("stack_trace") or "").splitlines():
        text = text.strip()
        if text.startswith("File ") and "/torch/nn/" not in text:
            line = text.removeprefix("File ").replace('"', "").replace(", line ", ":").split(", in ")[0]
    return f"{path} ({line})" if path and line else path or line
