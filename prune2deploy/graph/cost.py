"""FLOPs and parameters of any plan, in closed form.

Every counted operator costs a constant times a product of widths; a width is the number of kept indices of a
dimension. So the cost of a mask needs no forward pass, and is exact to the last FLOP. FLOPs are 2 x
multiply-accumulates of convolutions and matrix products at batch 1, as ``torch.utils.flop_counter`` counts them.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import sparse


@dataclass(frozen=True, slots=True, kw_only=True)
class CostTerm:
    """``coefficient`` times the product of the kept sizes of ``widths``, which index ``CostModel.widths``.

    ``layer`` is the module path of the operator (for FLOPs) or the tensor (for parameters). ``produced`` is the one of
    ``widths`` that an operator's own weight makes, None where it has no such dimension. ``branches`` are the residual
    branches, by name, with which it leaves whole.
    """

    layer: str
    coefficient: int
    widths: tuple[int, ...]
    produced: int | None = None
    branches: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """The cost of a model as a polynomial in its widths.

    ``widths`` holds, for each distinct dimension, the channel of each of its indices (-1 where frozen). ``branches``
    has the channels of each residual branch that can leave whole, by name: without any of them, its terms cost nothing.
    """

    channel_count: int
    widths: Sequence[NDArray[np.int64]]
    flop_terms: tuple[CostTerm, ...]
    parameter_terms: tuple[CostTerm, ...]
    branches: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)

    @cached_property
    def dense_flops(self) -> int:
        """FLOPs of the whole model, batch 1."""
        return self.flops(np.ones(self.channel_count, dtype=bool))

    @cached_property
    def dense_parameters(self) -> int:
        """Learnable parameters of the whole model, shared ones once."""
        return self.parameters(np.ones(self.channel_count, dtype=bool))

    def flops(self, kept: NDArray[np.bool_]) -> int:
        """FLOPs at batch 1 of the model that keeps the channels of ``kept``, shape (channel_count,)."""
        return self._evaluate(self.flop_terms, kept)

    def parameters(self, kept: NDArray[np.bool_]) -> int:
        """Learnable parameters of the model that keeps the channels of ``kept``, shape (channel_count,)."""
        return self._evaluate(self.parameter_terms, kept)

    def flops_by_layer(self, kept: NDArray[np.bool_]) -> dict[str, int]:
        """FLOPs at batch 1 of each layer (summed over its calls), in order of first execution."""
        sizes, gone = self.sizes(kept), self.removed_branches(kept)
        layers: dict[str, int] = {}
        for term in self.flop_terms:
            flops = _product(term, sizes) if gone.isdisjoint(term.branches) else 0
            layers[term.layer] = layers.get(term.layer, 0) + flops
        return layers

    def removed_branches(self, kept: NDArray[np.bool_]) -> Set[str]:
        """Names of the branches of which a mask leaves nothing."""
        return {name for name, channels in self.branches.items() if not kept[channels].any()}

    def sizes(self, kept: NDArray[np.bool_]) -> list[int]:
        """Kept size of every width."""
        counts = self.incidence @ kept.astype(np.int64) + self._frozen_sizes
        return [int(count) for count in counts]

    def without_branches(self, names: Set[str]) -> "CostModel":
        """The cost of the model that lost these residual branches for good."""
        if not names:
            return self
        return replace(
            self,
            flop_terms=tuple(term for term in self.flop_terms if names.isdisjoint(term.branches)),
            parameter_terms=tuple(term for term in self.parameter_terms if names.isdisjoint(term.branches)),
            branches={name: channels for name, channels in self.branches.items() if name not in names},
        )

    def _evaluate(self, terms: tuple[CostTerm, ...], kept: NDArray[np.bool_]) -> int:
        sizes, gone = self.sizes(kept), self.removed_branches(kept)
        return sum(_product(term, sizes) for term in terms if gone.isdisjoint(term.branches))

    @cached_property
    def incidence(self) -> sparse.csr_array:
        """How many indices of each width each channel owns. Shape: (width count, channel_count)."""
        rows = [np.full(len(width), row) for row, width in enumerate(self.widths)]
        row = np.concatenate(rows) if rows else np.zeros(0, dtype=np.int64)
        column = np.concatenate(self.widths) if rows else np.zeros(0, dtype=np.int64)
        owned = column >= 0
        entries = (np.ones(int(owned.sum()), dtype=np.int64), (row[owned], column[owned]))
        return sparse.csr_array(entries, shape=(len(self.widths), self.channel_count))

    @cached_property
    def _frozen_sizes(self) -> NDArray[np.int64]:
        return np.array([int((width < 0).sum()) for width in self.widths], dtype=np.int64)


def _product(term: CostTerm, sizes: list[int]) -> int:
    """Python integers, so that a large model cannot overflow."""
    product = term.coefficient
    for width in term.widths:
        product *= sizes[width]
    return product
