"""``einsum``, for any number of operands, with an ellipsis and without an arrow."""

import math
from collections.abc import Sequence

from prune2deploy.graph.labels import Block, Labels, Value
from prune2deploy.graph.rules.call import Call, Result, Rule
from prune2deploy.graph.rules.contraction import NOT_PRUNABLE


def einsum(call: Call) -> Result:
    """A letter in several operands unites them; one that the result lacks is summed over, and so read.

    A letter that is repeated within an operand (a diagonal) is not followed.
    """
    operands: Sequence[Value] = call.arguments["tensors"]
    terms, result = _letters(str(call.arguments["equation"]), [len(operand.shape) for operand in operands])
    if any(len(set(term)) < len(term) for term in terms):
        return call.freeze_all("an einsum over a diagonal is not followed")
    values = [_voted(call, value, term, terms, result) for value, term in zip(operands, terms, strict=True)]
    labelled = _united(call, values, terms)
    sizes: dict[str, int] = {}
    for position, (value, term) in enumerate(zip(values, terms, strict=True)):
        for dim, letter in enumerate(term):
            sizes[letter] = max(sizes.get(letter, 1), value.shape[dim])
            labels = value.labels_of(dim)
            if labels is not None and letter in labelled:
                _mark(call, value, labels, letter, terms, result)
                if letter not in result and letter not in "".join(terms[:position]):
                    call.state.read(call.node, call.position("tensors"), dim, labels, element=position)
    if len(values) == 2 and any(sizes[letter] > 1 for term in terms for letter in term if letter not in result):
        coefficient = 2 * math.prod(size for letter, size in sizes.items() if letter not in labelled)
        call.state.count(call.node, coefficient, labelled.values())
    return call.result([Block.of(result.index(letter), labelled[letter]) for letter in labelled if letter in result])


def _letters(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """The letters of each operand and of the result, one for each dimension; an ellipsis gets digits."""
    left, arrow, result = equation.replace(" ", "").partition("->")
    named = left.split(",")
    widths = [rank - len(term.replace("...", "")) for term, rank in zip(named, ranks, strict=True)]
    ellipsis = "".join(chr(ord("\u0430") + number) for number in range(max(widths, default=0)))
    terms = [
        term.replace("...", ellipsis[len(ellipsis) - width :] if width else "")
        for term, width in zip(named, widths, strict=True)
    ]
    if not arrow:
        joined = left.replace(",", "").replace(".", "")
        result = "..." + "".join(sorted(letter for letter in set(joined) if joined.count(letter) == 1))
    return terms, result.replace("...", ellipsis)


def _voted(call: Call, value: Value, term: str, terms: Sequence[str], result: str) -> Value:
    """Joint blocks vote for a batch letter (in all operands and the result), the last one: attention heads."""
    batch = [dim for dim, letter in enumerate(term) if letter in result and all(letter in other for other in terms)]
    blocks = []
    for block in value.blocks:
        block = call.state.attended(block, batch)
        if len(block.dims) == 1:
            blocks.append(block)
    return Value(value.shape, tuple(blocks), value.tensor)


def _united(call: Call, values: Sequence[Value], terms: Sequence[str]) -> dict[str, Labels]:
    """Labels by letter. A letter that has a size but no labels in some operand is fixed in all."""
    state = call.state
    labelled: dict[str, Labels] = {}
    fixed: set[str] = set()
    for value, term in zip(values, terms, strict=True):
        for dim, letter in enumerate(term):
            labels = value.labels_of(dim)
            if labels is not None:
                state.unite(labelled.setdefault(letter, labels), labels)
            elif value.shape[dim] > 1:
                fixed.add(letter)
    for letter in fixed & labelled.keys():
        state.freeze(labelled.pop(letter), NOT_PRUNABLE, call.node)
    return labelled


def _mark(call: Call, value: Value, labels: Labels, letter: str, terms: Sequence[str], result: str) -> None:
    """A tensor's letter that is summed over consumes; one of its own that the result has produces."""
    if value.tensor is None:
        return
    if letter not in result:
        call.state.consumers.append(labels)
    elif sum(letter in term for term in terms) == 1:
        call.state.producers.append(labels)


RULES: dict[str, Rule] = {"einsum": einsum}
