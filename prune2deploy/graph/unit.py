"""Units: what an engine runs as one (a convolution with its norm and activation), all sizes known but the widths.

A unit is a small program over values without names: its inputs first, then the result of each operator. Layers that
differ only in their widths are the same unit, so that a measurement of one serves all of them, in any network. Plain
data: nothing here needs torch.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int, ...]
"""Sizes at a batch of 1. A negative one stands for a width: -1 for that of the first axis, -2 of the second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """One operator of a unit, with the weights that it owns.

    ``name`` is the ATen one without its namespace ("conv2d", "linear", "relu"). ``reads`` numbers the values that it
    takes, ``shape`` is that of its result. ``attributes`` are JSON values (strides, kernel, epsilon), sorted by name.
    """

    name: str
    reads: tuple[int, ...]
    shape: Shape
    attributes: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Unit:
    """What an engine runs as one. Equal units cost the same at equal widths.

    ``inputs`` are the shapes of the values that it reads; its last operator gives the result. ``axes`` is how many
    widths it has: 0, 1 or 2 (what comes in, what goes out). ``operators`` are in the order of execution.
    """

    inputs: tuple[Shape, ...]
    operators: tuple[Operator, ...]
    axes: int

    @cached_property
    def key(self) -> str:
        """What identifies it in a file: one line of JSON, the same for equal units."""
        return json.dumps(
            [self.axes, self.inputs, [[one.name, one.reads, one.shape, one.attributes] for one in self.operators]],
            separators=(",", ":"),
        )

    @classmethod
    def from_key(cls, key: str) -> "Unit":
        """The unit of a ``key``."""
        axes, inputs, operators = json.loads(key)
        return cls(
            axes=axes,
            inputs=tuple(tuple(shape) for shape in inputs),
            operators=tuple(
                Operator(
                    name=name,
                    reads=tuple(reads),
                    shape=tuple(shape),
                    attributes=tuple((str(attribute), _frozen(value)) for attribute, value in attributes),
                )
                for name, reads, shape, attributes in operators
            ),
        )

    def at(self, shape: Shape, widths: Sequence[int]) -> Shape:
        """One of its shapes, once the widths are known."""
        return tuple(size if size >= 0 else widths[-1 - size] for size in shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitTerm:
    """One place of a network that runs a unit.

    ``name`` is the module path of its first operator. ``widths`` has one entry for each axis of the unit, an index into
    ``UnitModel.widths``. ``branches`` are the residual branches, by name, with which it leaves whole.
    """

    name: str
    unit: Unit
    widths: tuple[int, ...]
    branches: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveValues:
    """What lies in memory at one moment of a forward pass: ``fixed`` elements and, for each width, so many per index.

    ``elements`` maps an index into ``UnitModel.widths`` to elements at a batch of 1 for each kept index of the width.
    ``name`` is the module that runs at that moment, ``branches`` the residual branches, by name, without which the
    moment does not come.
    """

    name: str
    fixed: int
    elements: Mapping[int, int]
    branches: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class UnitModel:
    """A network as the units that it runs, in the order of execution.

    ``widths`` holds, for each distinct dimension, the channel of each of its indices (-1 where frozen), as those of
    ``CostModel`` do. ``moments`` are the moments at which memory may be fullest. ``unpriced`` are the ATen operators
    that are in no unit, with the number of times each runs; those that only look at data in another way are left out.
    """

    channel_count: int
    widths: Sequence[NDArray[np.int64]]
    terms: tuple[UnitTerm, ...]
    moments: tuple[LiveValues, ...]
    unpriced: Mapping[str, int]

    def widest(self) -> dict[Unit, tuple[int, ...]]:
        """Each distinct unit with the largest dense size of each of its axes, in the order of execution."""
        found: dict[Unit, tuple[int, ...]] = {}
        for term in self.terms:
            sizes = tuple(len(self.widths[width]) for width in term.widths)
            before = found.get(term.unit, sizes)
            found[term.unit] = tuple(max(pair) for pair in zip(before, sizes, strict=True))
        return found


def _frozen(value: Any) -> Any:
    """JSON lists as tuples, so that units can be compared and hashed."""
    return tuple(map(_frozen, value)) if isinstance(value, Iterable) and not isinstance(value, str) else value
