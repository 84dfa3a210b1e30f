"""The memory of a forward pass: weights, and the activations that are alive at once.

Values are counted as a network runs in the order of its graph, each from the step that makes it to the last that reads
it; views share what they look at, and what runs in a tail runs in place. That is what a model needs in any engine that
frees what it no longer reads. What an engine adds of its own is not in it: workspaces, packed or repeated weights, an
arena that is never given back, copies in another layout.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from prune2deploy.budget.priced import Priced, PricedTerm, product_price
from prune2deploy.graph.cost import CostModel
from prune2deploy.graph.unit import LiveValues, UnitModel


def priced_memory(cost: CostModel, model: UnitModel, *, batch: int, bytes_each: int) -> tuple[Priced, ...]:
    """The bytes of a network at each moment at which its memory may be fullest; the largest is what it needs.

    All parameters, those of batch norms included, and ``batch`` times the values alive at that moment, of
    ``bytes_each`` bytes (4 at fp32). ``cost`` is of the same graph as ``model``: it knows the parameters and the
    residual branches. In a moment within a branch nothing but parameters counts once the branch has left.
    """
    widths = _Widths(cost.widths)
    numbers = [widths.number(width) for width in model.widths]
    parameters = tuple(
        PricedTerm(
            name=term.layer,
            widths=term.widths,
            price=product_price(bytes_each * term.coefficient),
            branches=term.branches,
        )
        for term in cost.parameter_terms
    )
    return tuple(
        Priced(
            name="memory",
            unit="bytes",
            channel_count=cost.channel_count,
            widths=widths.arrays,
            terms=parameters + _live_terms(moment, numbers, batch * bytes_each),
            branches=cost.branches,
        )
        for moment in model.moments
    )


def _live_terms(moment: LiveValues, numbers: Sequence[int], bytes_each: int) -> tuple[PricedTerm, ...]:
    sizes = [((), moment.fixed), *(((numbers[width],), each) for width, each in moment.elements.items())]
    return tuple(
        PricedTerm(name=moment.name, widths=widths, price=product_price(bytes_each * each), branches=moment.branches)
        for widths, each in sizes
        if each
    )


class _Widths:
    """Widths of one model beside those of another, the same ones once."""

    def __init__(self, widths: Sequence[NDArray[np.int64]]) -> None:
        self.arrays = list(widths)
        self._numbers: dict[bytes, int] = {}
        for number, width in enumerate(widths):
            self._numbers.setdefault(np.sort(width).tobytes(), number)

    def number(self, width: NDArray[np.int64]) -> int:
        """The position of a width, appended where it is not there yet."""
        number = self._numbers.setdefault(np.sort(width).tobytes(), len(self.arrays))
        if number == len(self.arrays):
            self.arrays.append(width)
        return number
