"""What is timed: a unit at given widths, and what came out."""

from dataclasses import dataclass

from prune2deploy.graph.unit import Unit


@dataclass(frozen=True, slots=True)
class Point:
    """A unit with a size for each of its axes."""

    unit: Unit
    widths: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """What an engine takes for a point, in ns.

    ``latency_ns`` is the median over ``runs``, summed over the nodes that the unit became. ``spread_ns`` is how far
    another measurement would lie: a standard error, or what stands for one.
    """

    latency_ns: float
    spread_ns: float
    runs: int
