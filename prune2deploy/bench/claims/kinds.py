"""What can be claimed: the kinds of claims, and one claim as it was asked. A new kind is one entry of ``KINDS``,
one function in ``judging`` and its words in ``report.claim_words``.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from prune2deploy.errors import InputError

SPEEDUP = "speedup"
LATENCY = "latency_ms"
THROUGHPUT = "throughput_per_s"
ACCURACY = "accuracy"
ACCURACY_DROP = "accuracy_drop_points"
SIZE = "size_mb"
SIZE_FRACTION = "size_fraction"
MEMORY = "memory_mb"
ENERGY = "energy_mj"
YIELD = "yield"

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of claim.

    The bound is ``unit`` (empty for a ratio), from which ``largest`` on nothing can be meant (a share is not 97). It is
    a lower bound if ``at_least``. ``relative`` claims compare with another variant, those that ``crosses_precisions``
    also with one of another precision. ``of_batch``: there is one figure for each batch size, else one for a file.
    ``timed``: a disturbed measurement makes it INVALID.
    """

    key: str
    unit: str
    at_least: bool
    example: str
    relative: bool = False
    crosses_precisions: bool = False
    of_batch: bool = False
    timed: bool = False
    largest: float = math.inf
    zero: bool = False

    def checked(self, value: object, *, where: str) -> float:
        """The bound as a number.

        Raises:
            InputError: it is no number, or none that a bound of this kind can be.
        """
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(
                f"is {self.allowed}, not {value!r}", where=where, hint=f"write {self.key} = {self.example}"
            )
        inside = 0 <= value <= self.largest if self.zero else 0 < value <= self.largest
        if not (inside and math.isfinite(value)):
            raise InputError(
                f"is {self.allowed}, not {value:g}", where=where, hint=f"write {self.key} = {self.example}"
            )
        return float(value)

    @property
    def allowed(self) -> str:
        """What a bound can be, in words: ``a number above 0, in ms``."""
        least = "from 0" if self.zero else "above 0"
        most = "" if math.isinf(self.largest) else f" and at most {self.largest:g}"
        return f"a number {least}{most}{f', in {self.unit}' if self.unit else ''}"


KINDS: Mapping[str, Kind] = {
    kind.key: kind
    for kind in (
        Kind(key=SPEEDUP, unit="", at_least=True, example="2.5", relative=True, of_batch=True, timed=True),
        Kind(key=LATENCY, unit="ms", at_least=False, example="4.0", of_batch=True, timed=True),
        Kind(key=THROUGHPUT, unit="inputs/s", at_least=True, example="250", of_batch=True, timed=True),
        Kind(key=YIELD, unit="", at_least=True, example="0.8", of_batch=True, timed=True),
        Kind(key=ACCURACY, unit="", at_least=True, example="0.97", largest=1.0),
        Kind(
            key=ACCURACY_DROP,
            unit="percentage points",
            at_least=False,
            example="1.0",
            relative=True,
            crosses_precisions=True,
            largest=100.0,
            zero=True,
        ),
        Kind(key=SIZE, unit="MB", at_least=False, example="5.0"),
        Kind(key=SIZE_FRACTION, unit="", at_least=False, example="0.4", relative=True, crosses_precisions=True),
        Kind(key=MEMORY, unit="MB", at_least=False, example="120"),
        Kind(key=ENERGY, unit="mJ", at_least=False, example="15", of_batch=True),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One claim as it was asked.

    ``bound`` is in the unit of its kind; "flops" is the speed-up that the FLOPs imply. ``variant`` None asks those that
    ``--claim`` asks, ``engine``, ``precision`` and ``batch`` None all that are measured. ``against`` None is the
    baseline, and ``against_precision`` None the claim's own precision. ``percentile`` is that of latencies. ``where``
    says in messages which claim it is: ``claims.toml, claim 2``.
    """

    kind: str
    bound: float | Literal["flops"]
    variant: str | None = None
    engine: str | None = None
    precision: str | None = None
    batch: int | None = None
    against: str | None = None
    against_precision: str | None = None
    percentile: int = 50
    name: str | None = None
    where: str = "--claims"
