"""The order of measuring: every round runs everything once, in a fresh random order.

Interleaving lets slow drifts (temperature, a neighbour's load) hit all variants alike; the random order keeps one
variant from always following another. The order is a function of the seed, so that a run can be repeated.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One engine in the rounds. ``copy`` is 0, and 1 for the second copy of the baseline (the A/A control)."""

    variant: str
    copy: int = 0


def slots_for(variants: tuple[str, ...], *, baseline: str) -> tuple[Slot, ...]:
    """One slot for each variant, and the control: a second one for the baseline, last."""
    return (*(Slot(variant=variant) for variant in variants), Slot(variant=baseline, copy=1))


def round_orders(slot_count: int, *, seed: int, build: int, cell: int) -> Iterator[tuple[int, ...]]:
    """Yield, without end, the order of the slots in round after round.

    ``cell`` numbers the (precision, batch) that the rounds belong to. Each order is a uniformly random permutation.
    """
    generator = np.random.default_rng([seed, build, cell])
    while True:
        yield tuple(int(slot) for slot in generator.permutation(slot_count))


def build_order(slot_count: int, *, seed: int, build: int) -> tuple[int, ...]:
    """The random order in which the engines of one process are built, since it decides where their memory lies."""
    return tuple(int(slot) for slot in np.random.default_rng([seed, build]).permutation(slot_count))
