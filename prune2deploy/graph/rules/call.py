"""One call of an operator, as its rule sees it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from prune2deploy.graph.labelling import Labelling
from prune2deploy.graph.labels import Block, Labels, Value
from prune2deploy.graph.sizes import shape_of_tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A node of the exported graph with its arguments by schema name.

    Tensor arguments are ``Value`` (or sequences of them); everything else is what the graph holds, with the schema's
    defaults filled in. ``name`` is the operator's name without overload and without the mark of in-place operators.
    """

    node: torch.fx.Node
    name: str
    arguments: dict[str, Any]
    state: Labelling

    def tensor(self, name: str) -> Value:
        """A tensor argument."""
        value = self.arguments[name]
        assert isinstance(value, Value), f"{self.node.target} takes no tensor {name}"
        return value

    def optional_tensor(self, name: str) -> Value | None:
        """A tensor argument that may be absent."""
        value = self.arguments.get(name)
        return value if isinstance(value, Value) else None

    def position(self, name: str) -> int:
        """The position of an argument in the schema."""
        return list(self.arguments).index(name)

    @property
    def values(self) -> tuple[Value, ...]:
        """All tensor arguments, those inside lists too, in order."""
        return tuple(_values_in(self.arguments.values()))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the (first) result."""
        return self.shapes[0]

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of all results."""
        result = self.node.meta["val"]
        results = result if isinstance(result, list | tuple) else (result,)
        return tuple(shape_of_tensor(one) for one in results)

    def result(self, blocks: Sequence[Block]) -> Value:
        """The operator's one result, with these blocks."""
        return self.state.value(self.shape, blocks, self.node)

    def fresh(self, dims: Iterable[int]) -> list[Block]:
        """Blocks with labels that nothing else has, for dimensions of the result along which it is constant."""
        return [Block.of(dim, self.state.new_labels(self.shape[dim])) for dim in dims if self.shape[dim] > 1]

    def ride(self, parameter: Value | None, labels: Labels | None, dim: int = 0) -> None:
        """A parameter's dimension leaves with the channels it scales or shifts; where either is fixed, both are."""
        if parameter is None or dim >= len(parameter.shape) or parameter.shape[dim] == 1:
            return
        own = parameter.labels_of(dim)
        if own is not None and labels is not None:
            self.state.unite(labels, own)
        elif own is not None:
            self.state.freeze(own, "scales or shifts a dimension that nothing prunable produces", self.node)
        elif labels is not None:
            self.state.freeze(labels, "is scaled or shifted by data of fixed size", self.node)

    def freeze_all(self, reason: str) -> "Result":
        """Freeze everything that the operator reads, and give results without labels."""
        for value in self.values:
            self.state.freeze_value(value, reason, self.node)
        return self.unlabelled()

    def unlabelled(self) -> "Result":
        """Results without labels."""
        result = self.node.meta["val"]
        if isinstance(result, list | tuple):
            return tuple(Value(shape) for shape in self.shapes)
        return Value(self.shape) if isinstance(result, torch.Tensor) else Value(())


Result = Value | tuple[Value, ...]
Rule = Callable[[Call], Result]


def _values_in(arguments: Any) -> list[Value]:
    found: list[Value] = []
    for argument in arguments:
        if isinstance(argument, Value):
            found.append(argument)
        elif isinstance(argument, list | tuple):
            found.extend(_values_in(argument))
    return found
