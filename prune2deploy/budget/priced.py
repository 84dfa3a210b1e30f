"""What a model may be charged for, in one form: a sum of prices, each a function of a few widths.

FLOPs, parameters, memory and latency are all of this form, so that one solver can keep any of them, or several.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prune2deploy.budget.surface import Surface
from prune2deploy.graph.channels import ChannelMask
from prune2deploy.graph.cost import CostModel, CostTerm
from prune2deploy.graph.unit import Unit, UnitModel

Price = Callable[..., NDArray[np.float64]]
"""From the sizes of a term's widths, one argument each, broadcast against each other, to what it costs there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PricedTerm:
    """A part of a price that depends on the kept sizes of ``widths``, which index ``Priced.widths``.

    ``branches`` are the residual branches, by name, with which it leaves whole; ``name`` is its layer.
    """

    name: str
    widths: tuple[int, ...]
    price: Price
    branches: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Priced:
    """One cost of a model: ``fixed`` and the sum of the prices of ``terms``, in ``unit`` ("FLOPs", "ns", "bytes").

    ``widths`` holds, for each distinct dimension, the channel of each of its indices (-1 where frozen). ``branches``
    has the channels of each residual branch that can leave whole: without any of them its terms cost nothing.
    """

    name: str
    unit: str
    channel_count: int
    widths: Sequence[NDArray[np.int64]]
    terms: tuple[PricedTerm, ...]
    fixed: float = 0.0
    branches: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)

    def total(self, kept: ChannelMask) -> float:
        """What the model costs that keeps the channels of ``kept``. Shape: (channel_count,) -> ()."""
        return self.fixed + sum(self.by_term(kept))

    def by_term(self, kept: ChannelMask) -> list[float]:
        """What each term costs under a mask, in the order of ``terms``."""
        sizes = self.sizes(kept)
        gone = {name for name, channels in self.branches.items() if not kept[channels].any()}
        return [
            float(term.price(*(sizes[width] for width in term.widths))) if gone.isdisjoint(term.branches) else 0.0
            for term in self.terms
        ]

    @cached_property
    def dense(self) -> float:
        """What the whole model costs."""
        return self.total(np.ones(self.channel_count, dtype=bool))

    def corrected(self, *, offset: float, scale: float) -> "Priced":
        """The same cost, once measured to be ``offset`` and ``scale`` times what was thought."""

        def scaled(price: Price) -> Price:
            return lambda *sizes: scale * price(*sizes)

        terms = tuple(replace(term, price=scaled(term.price)) for term in self.terms)
        return replace(self, fixed=offset + scale * self.fixed, terms=terms)

    def sizes(self, kept: ChannelMask) -> NDArray[np.int64]:
        """Kept size of every width. Shape: (channel_count,) -> (width count,)."""
        return np.asarray(self._model.sizes(kept), dtype=np.int64)

    @property
    def incidence(self) -> Any:
        """How many indices of each width each channel owns. Shape: (width count, channel_count), sparse."""
        return self._model.incidence

    @cached_property
    def _model(self) -> CostModel:
        return CostModel(channel_count=self.channel_count, widths=self.widths, flop_terms=(), parameter_terms=())


def priced_flops(cost: CostModel) -> Priced:
    """The FLOPs of a model at batch 1."""
    return _of_cost(cost, "flops", "FLOPs", cost.flop_terms)


def priced_parameters(cost: CostModel) -> Priced:
    """The learnable parameters of a model."""
    return _of_cost(cost, "parameters", "parameters", cost.parameter_terms)


def priced_latency(cost: CostModel, model: UnitModel, surfaces: Mapping[Unit, Surface]) -> Priced:
    """The latency of a network in ns: the sum over its units, each by its own surface.

    ``cost`` is of the same graph as ``model``: it knows the residual branches.
    """
    terms = tuple(
        PricedTerm(name=term.name, widths=term.widths, price=surfaces[term.unit].at, branches=term.branches)
        for term in model.terms
    )
    return Priced(
        name="latency",
        unit="ns",
        channel_count=model.channel_count,
        widths=model.widths,
        terms=terms,
        branches=cost.branches,
    )


def _of_cost(cost: CostModel, name: str, unit: str, terms: tuple[CostTerm, ...]) -> Priced:
    return Priced(
        name=name,
        unit=unit,
        channel_count=cost.channel_count,
        widths=cost.widths,
        terms=tuple(
            PricedTerm(
                name=term.layer, widths=term.widths, price=product_price(term.coefficient), branches=term.branches
            )
            for term in terms
        ),
        branches=cost.branches,
    )


def product_price(coefficient: int) -> Price:
    """``coefficient`` times the product of the sizes."""

    def price(*sizes: Any) -> NDArray[np.float64]:
        product: Any = np.float64(coefficient)
        for size in sizes:
            product = product * size
        return np.asarray(product, dtype=np.float64)

    return price
