"""From unions of labels to channels: connected components, groups, reasons, costs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from prune2deploy.graph.channels import FROZEN, Axis, ChannelGraph, FrozenReason, Group, Role
from prune2deploy.graph.cost import CostModel, CostTerm
from prune2deploy.graph.fingerprint import fingerprint_of
from prune2deploy.graph.frozen import FREE, FlopsByLayer, flops_by_holder
from prune2deploy.graph.labelling import Freeze, Labelling
from prune2deploy.graph.labels import FROZEN_LABEL, Labels

_TIED = "all of its channels are tied to each other"
_MEETS_FROZEN = "is joined with data of fixed size"
_NOT_LEARNT = "is computed from sizes that no parameter makes"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorFacts:
    """A parameter or buffer: ``canonical`` is the first name of a shared one; ``stored`` whether state_dict has it."""

    name: str
    canonical: str
    shape: tuple[int, ...]
    learnable: bool
    labelled: bool
    stored: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadDimension:
    """A dimension of an operator's argument and the channel of each of its positions, -1 where fixed.

    ``element`` counts within an argument that is a list of tensors.
    """

    node: str
    argument: int
    dim: int
    element: int = 0
    channels: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Components:
    """Label components. ``of`` maps a label to its component; ``cause`` a component to its freeze, or -1."""

    of: NDArray[np.int64]
    cause: NDArray[np.int64]
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """The graph, the dimensions that are read and those that are normed, and the channel of every label."""

    graph: ChannelGraph
    reads: tuple[ReadDimension, ...]
    norms: tuple[ReadDimension, ...]
    channel_of_label: NDArray[np.int64]


def resolve(state: Labelling, tensors: Mapping[str, TensorFacts]) -> Resolved:
    """Turn what interpretation recorded into a graph."""
    freezes = [*(freeze for freeze, _ in state.freezes)]
    components = _components(state)
    produced = _marked(components, _learnable_producers(state, tensors))
    channel_of_label, count = _channels(components, produced)

    axes = _axes(state, tensors, channel_of_label)
    inexact = _touched(channel_of_label, [norm.labels for norm in state.norms], count)
    stream = _touched(channel_of_label, state.streams, count)
    pieces = [np.unique(channel_of_label[labels]) for labels in state.pieces]
    groups = _groups(axes, count, inexact, stream, pieces)
    shapes = {name: facts.shape for name, facts in tensors.items() if facts.stored}
    cost, holders = _cost(state, tensors, channel_of_label, components, count)
    graph = ChannelGraph(
        fingerprint=fingerprint_of(shapes),
        shapes=shapes,
        axes=axes,
        groups=groups,
        frozen=_frozen(state, freezes, components, flops_by_holder(cost, holders, of_sizeless=len(freezes) + 1)),
        cost=cost,
        channel_count=count,
        aliases={name: facts.canonical for name, facts in tensors.items() if name != facts.canonical},
    )
    reasons = {group.index: _TIED for group in groups if len(group.channels) == 1}
    number = graph.numbers_without(reasons)
    channel_of_label = number[channel_of_label]
    reads = tuple(
        ReadDimension(
            node=one.node,
            argument=one.argument,
            element=one.element,
            dim=one.dim,
            channels=channel_of_label[one.labels],
        )
        for one in state.readers
    )
    norms = tuple(
        ReadDimension(node=one.node, argument=0, dim=one.dim, channels=channel_of_label[one.labels])
        for one in state.norms
    )
    return Resolved(graph=graph.without_groups(reasons), reads=reads, norms=norms, channel_of_label=channel_of_label)


def channels_of_labels(state: Labelling, channel_of_label: NDArray[np.int64]) -> NDArray[np.int64]:
    """The channels of another interpretation's labels: of tensors by number, of others by what they are united with.

    ``channel_of_label`` is that of the first interpretation. Shape: (state.label_count,).
    """
    own = channel_of_label[: state.tensor_label_count]
    components = _components(state)
    channel_of_component = np.full(components.count, FROZEN, dtype=np.int64)
    free = own != FROZEN
    channel_of_component[components.of[: state.tensor_label_count][free]] = own[free]
    channels = channel_of_component[components.of]
    channels[: state.tensor_label_count] = own
    return channels


def _components(state: Labelling) -> _Components:
    first = np.concatenate([edge[0] for edge in state.edges]) if state.edges else np.zeros(0, dtype=np.int64)
    second = np.concatenate([edge[1] for edge in state.edges]) if state.edges else np.zeros(0, dtype=np.int64)
    free = (first != FROZEN_LABEL) & (second != FROZEN_LABEL)
    entries = (np.ones(int(free.sum()), dtype=np.int8), (first[free], second[free]))
    matrix = sparse.coo_array(entries, shape=(state.label_count, state.label_count))
    count, of = connected_components(matrix, directed=False)
    of = of.astype(np.int64)
    cause = np.full(count, len(state.freezes) + 1, dtype=np.int64)
    for number in reversed(range(len(state.freezes))):
        cause[of[state.freezes[number][1]]] = number
    meets = np.concatenate([second[first == FROZEN_LABEL], first[second == FROZEN_LABEL]])
    meets = of[meets[meets != FROZEN_LABEL]]
    cause[meets] = np.minimum(cause[meets], len(state.freezes))
    cause[of[FROZEN_LABEL]] = len(state.freezes)
    cause[cause == len(state.freezes) + 1] = -1
    return _Components(of, cause, count)


def _marked(components: _Components, labels: Sequence[Labels]) -> NDArray[np.bool_]:
    marked = np.zeros(components.count, dtype=bool)
    for one in labels:
        marked[components.of[one]] = True
    return marked


def _learnable_producers(state: Labelling, tensors: Mapping[str, TensorFacts]) -> list[Labels]:
    """Producing labels that index a parameter: a buffer alone (a fixed basis, a table) makes no channel."""
    learnable = np.zeros(state.label_count, dtype=bool)
    for name, value in state.tensors.items():
        if tensors[name].learnable:
            for block in value.blocks:
                learnable[block.labels] = True
    return [labels[learnable[labels]] for labels in state.producers]


def _channels(components: _Components, produced: NDArray[np.bool_]) -> tuple[NDArray[np.int64], int]:
    """Number the components that can leave, in order of their first label. Returns label -> channel, and the count."""
    free = (components.cause < 0) & produced
    numbers = np.full(components.count, FROZEN, dtype=np.int64)
    numbers[free] = np.arange(int(free.sum()))
    return numbers[components.of], int(free.sum())


def _axes(
    state: Labelling, tensors: Mapping[str, TensorFacts], channel_of_label: NDArray[np.int64]
) -> tuple[Axis, ...]:
    producers = _as_set(state.producers, state.label_count)
    consumers = _as_set(state.consumers, state.label_count)
    axes = []
    for name in state.used_tensors:
        value = state.tensors.get(name)
        for block in value.blocks if value is not None else ():
            channels = channel_of_label[block.labels]
            if (channels == FROZEN).all():
                continue
            if producers[block.labels].any():
                role = Role.PRODUCER
            elif consumers[block.labels].any():
                role = Role.CONSUMER
            else:
                role = Role.AFFINE
            axes.append(
                Axis(tensor=name, dim=block.dims[0], role=role, learnable=tensors[name].learnable, channels=channels)
            )
    return tuple(axes)


def _as_set(labels: Sequence[Labels], count: int) -> NDArray[np.bool_]:
    members = np.zeros(count, dtype=bool)
    for one in labels:
        members[one] = True
    return members


def _touched(channel_of_label: NDArray[np.int64], labels: Sequence[Labels], count: int) -> NDArray[np.bool_]:
    touched = np.zeros(count, dtype=bool)
    for one in labels:
        channels = channel_of_label[one]
        touched[channels[channels != FROZEN]] = True
    return touched


def _groups(
    axes: tuple[Axis, ...],
    count: int,
    inexact: NDArray[np.bool_],
    stream: NDArray[np.bool_],
    pieces: Sequence[NDArray[np.int64]],
) -> tuple[Group, ...]:
    """Channels with the same set of producing axes and in the same pieces of them, in order of the first axis."""
    producing = [axis for axis in axes if axis.role is Role.PRODUCER]
    if not producing:
        return ()
    inside = [axis.channels[axis.channels != FROZEN] for axis in producing]
    channels, first_seen = np.unique(np.concatenate(inside), return_index=True)
    ordered = channels[np.argsort(first_seen)]
    kinds = _kinds([*inside, *(piece[piece != FROZEN] for piece in pieces)], count)[ordered]
    _, first_of_kind, kind = np.unique(kinds, return_index=True, return_inverse=True)
    index_of_kind = np.argsort(np.argsort(first_of_kind))
    group_of = np.full(count, FROZEN, dtype=np.int64)
    group_of[ordered] = index_of_kind[kind]
    first_axis = np.full(len(first_of_kind), -1, dtype=np.int64)
    widest = np.zeros(len(first_of_kind), dtype=np.int64)
    for number, positions in enumerate(inside):
        present, widths = np.unique(group_of[positions], return_counts=True)
        widest[present] = np.maximum(widest[present], widths)
        first_axis[present] = np.where(first_axis[present] < 0, number, first_axis[present])
    by_group = ordered[np.argsort(group_of[ordered], kind="stable")]
    bounds = np.cumsum(np.bincount(group_of[ordered]))[:-1]
    return tuple(
        Group(
            index=index,
            name=module_of(producing[first_axis[index]].tensor),
            channels=numbers,
            positions=max(int(widest[index]) // len(numbers), 1),
            exact=not bool(inexact[numbers].any()),
            stream=bool(stream[numbers].any()),
        )
        for index, numbers in enumerate(np.split(by_group, bounds))
    )


def _kinds(sets: Sequence[NDArray[np.int64]], count: int) -> NDArray[np.int64]:
    """A number for each channel; two have the same if and only if they are in the same sets. Shape: (count,)."""
    kinds = np.zeros(count, dtype=np.int64)
    made = 1
    for one in sets:
        channels = np.unique(one)
        before, place = np.unique(kinds[channels], return_inverse=True)
        kinds[channels] = made + place
        made += len(before)
    return kinds


def module_of(tensor: str) -> str:
    """The module that owns a tensor: its name without the last part, or the tensor itself at the root."""
    return tensor.rpartition(".")[0] or tensor


def _frozen(
    state: Labelling, freezes: Sequence[Freeze], components: _Components, held: Mapping[int, FlopsByLayer]
) -> tuple[FrozenReason, ...]:
    """Producing axes by what froze them first, with the FLOPs that it holds."""
    producers = _as_set(state.producers, state.label_count)
    found: dict[int, list[tuple[str, int]]] = {}
    for name in state.used_tensors:
        for block in state.tensors[name].blocks:
            if not producers[block.labels].any():
                continue
            causes = components.cause[components.of[block.labels]]
            for cause in np.unique(causes[causes >= 0]).tolist():
                found.setdefault(cause, []).append((name, block.dims[0]))
    others = [Freeze(reason=reason, operator="", place="") for reason in (_MEETS_FROZEN, _NOT_LEARNT)]
    listed = []
    for cause, freeze in enumerate([*freezes, *others]):
        if cause in found or cause in held:
            listed.append(
                FrozenReason(
                    reason=freeze.reason,
                    operator=freeze.operator,
                    place=freeze.place,
                    axes=tuple(found.get(cause, ())),
                    flops_by_layer=held.get(cause, {}),
                )
            )
    return tuple(listed)


def _cost(
    state: Labelling,
    tensors: Mapping[str, TensorFacts],
    channel_of_label: NDArray[np.int64],
    components: _Components,
    count: int,
) -> tuple[CostModel, list[NDArray[np.int64]]]:
    """The cost, and for each of its widths what holds each index: the number of a freeze, or ``FREE``."""
    widths: list[NDArray[np.int64]] = []
    holders: list[NDArray[np.int64]] = []
    numbers: dict[bytes, int] = {}
    cause = np.where(components.cause < 0, len(state.freezes) + 1, components.cause)

    def width_of(labels: Labels) -> int:
        channels = channel_of_label[labels]
        held_by = np.where(channels == FROZEN, cause[components.of[labels]], FREE)
        key = channels.tobytes() + held_by.tobytes()
        if key not in numbers:
            numbers[key] = len(widths)
            widths.append(channels)
            holders.append(held_by)
        return numbers[key]

    flop_terms = tuple(
        CostTerm(
            layer=one.layer,
            coefficient=one.coefficient,
            widths=tuple(width_of(labels) for labels in one.widths),
            produced=None if one.produced is None else width_of(one.produced),
        )
        for one in state.counted
    )
    parameter_terms = []
    for name, facts in tensors.items():
        if not facts.learnable or name != facts.canonical:
            continue
        value = state.tensors.get(name)
        blocks = value.blocks if value is not None else ()
        labelled = {dim for block in blocks for dim in block.dims}
        fixed = math.prod(size for dim, size in enumerate(facts.shape) if dim not in labelled)
        parameter_terms.append(
            CostTerm(layer=name, coefficient=fixed, widths=tuple(width_of(block.labels) for block in blocks))
        )
    cost = CostModel(channel_count=count, widths=widths, flop_terms=flop_terms, parameter_terms=tuple(parameter_terms))
    return cost, holders
