"""Recurrent layers: a hidden channel is one position of every gate, in all layers and directions alike.

All layers of one module share a hidden size, and their last states are stacked. So a channel that leaves, leaves them
all. Within the layer it is read by the hidden weights' columns, where the gated dense model must be gated too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prune2deploy.graph.labels import Block, Labels, Value
from prune2deploy.graph.rules.call import Call, Result, Rule
from prune2deploy.graph.rules.contraction import contract, mark, not_followed


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cell:
    """One layer in one direction. ``hidden_weight`` has ``element`` as its place in the argument named ``argument``."""

    input_weight: Value
    hidden_weight: Value
    biases: tuple[Value, ...]
    argument: str
    input_element: int = 0
    hidden_element: int = 0


def layers(gates: int) -> Rule:
    """A rule for whole sequences: ``lstm``, ``gru``, ``rnn_tanh``, with any number of layers and one or two directions.

    Shapes: input (.., .., I); weights (gates H, I) and (gates H, H); states (layers x directions, batch, H).
    """

    def rule(call: Call) -> Result:
        if "input" not in call.arguments:
            return not_followed("a packed sequence")(call)
        directions = 2 if call.arguments["bidirectional"] else 1
        each = 4 if call.arguments["has_biases"] else 2
        parameters: Sequence[Value] = call.arguments["params"]
        if len(parameters) != each * directions * int(call.arguments["num_layers"]):
            return not_followed("a recurrent layer with a projection")(call)
        cells = [
            _Cell(
                input_weight=parameters[start],
                hidden_weight=parameters[start + 1],
                biases=tuple(parameters[start + 2 : start + each]),
                argument="params",
                input_element=start,
                hidden_element=start + 1,
            )
            for start in range(0, len(parameters), each)
        ]
        hidden = _hidden(call, cells, gates)
        if hidden is None:
            return not_followed("a recurrent layer whose weights are computed")(call)
        data, both = call.tensor("input"), np.tile(hidden, directions)
        steps = math.prod(data.shape[:-1])
        for number, cell in enumerate(cells):
            if number < directions:
                _reads_input(call, data, cell)
            else:
                consumed = cell.input_weight.labels_of(1)
                assert consumed is not None
                call.state.unite(consumed, both)
                call.state.read(call.node, call.position("params"), 1, consumed, element=cell.input_element)
            _count(call, cell, steps)
        outputs = [Block.of(len(data.shape) - 1, both)]
        states = [Block.of(len(shape) - 1, hidden) for shape in call.shapes[1:]]
        blocks = [outputs, *([state] for state in states)]
        return tuple(call.state.value(shape, own, call.node) for shape, own in zip(call.shapes, blocks, strict=True))

    return rule


def cell(gates: int) -> Rule:
    """A rule for one step: ``lstm_cell``, ``gru_cell``, ``rnn_tanh_cell``."""

    def rule(call: Call) -> Result:
        biases = (call.optional_tensor(name) for name in ("b_ih", "b_hh"))
        one = _Cell(
            input_weight=call.tensor("w_ih"),
            hidden_weight=call.tensor("w_hh"),
            biases=tuple(bias for bias in biases if bias is not None),
            argument="w_hh",
        )
        hidden = _hidden(call, [one], gates)
        if hidden is None:
            return not_followed("a recurrent cell whose weights are computed")(call)
        data = call.tensor("input")
        _reads_input(call, data, one)
        _count(call, one, math.prod(data.shape[:-1]))
        results = tuple(call.state.value(shape, [Block.of(len(shape) - 1, hidden)], call.node) for shape in call.shapes)
        return results if isinstance(call.node.meta["val"], list | tuple) else results[0]

    return rule


def _hidden(call: Call, cells: Sequence[_Cell], gates: int) -> Labels | None:
    """The labels of the hidden channels, once all weights and first states agree on them; None without labels."""
    state = call.state
    hidden = cells[0].hidden_weight.labels_of(1)
    for one in cells:
        rows = [one.input_weight, one.hidden_weight, *one.biases]
        labels = [value.labels_of(0) for value in rows]
        columns = [value.labels_of(1) for value in (one.input_weight, one.hidden_weight)]
        if hidden is None or any(found is None for found in (*labels, *columns)):
            return None
        for found in labels:
            assert found is not None
            state.unite(found.reshape(gates, -1), hidden[None, :])
        assert columns[1] is not None
        state.unite(columns[1], hidden)
        mark(state, labels[0], columns[0])
        mark(state, labels[1], columns[1])
        state.read(call.node, call.position(one.argument), 1, columns[1], element=one.hidden_element)
    assert hidden is not None
    given = call.arguments["hx"]
    for start in given if isinstance(given, list | tuple) else [given]:
        last = len(start.shape) - 1
        own = start.labels_of(last)
        if own is not None:
            state.unite(own, hidden)
        elif start.shape[last] > 1:
            state.freeze(hidden, "starts from a state of fixed size", call.node)
        for dim in range(last):
            state.freeze_dim(start, dim, "is the state of a recurrent layer", call.node)
    return hidden


def _reads_input(call: Call, data: Value, one: _Cell) -> None:
    last = len(data.shape) - 1
    for dim in range(last):
        data = call.state.freeze_dim(data, dim, "is stepped through by a recurrent layer", call.node)
    contract(call, data, last, one.input_weight.labels_of(1), argument="input")


def _count(call: Call, one: _Cell, steps: int) -> None:
    for weight in (one.input_weight, one.hidden_weight):
        rows, columns = weight.labels_of(0), weight.labels_of(1)
        call.state.count(call.node, 2 * steps, [rows, columns], produced=rows)


RULES: dict[str, Rule] = {
    "lstm": layers(4),
    "gru": layers(3),
    "rnn_tanh": layers(1),
    "rnn_relu": layers(1),
    "lstm_cell": cell(4),
    "gru_cell": cell(3),
    "rnn_tanh_cell": cell(1),
    "rnn_relu_cell": cell(1),
}
