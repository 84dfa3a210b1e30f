"""What is timed: a unit at given widths, and what came out."""

import math
from dataclasses import dataclass

from prune2deploy.graph.unit import Unit

_AGREE = 0.03


@dataclass(frozen=True, slots=True)
class Point:
    """A unit with a size for each of its axes."""

    unit: Unit
    widths: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """What an engine takes for a point, in ns.

    ``latency_ns`` is the median over ``runs``, summed over the nodes that the unit became. ``spread_ns`` is how far
    another measurement would lie: a standard error, or what stands for one. ``times`` is how often it was measured,
    each time among other points.
    """

    latency_ns: float
    spread_ns: float
    runs: int
    times: int = 1

    @property
    def spread(self) -> float:
        """The spread as a share of the latency; 0 of nothing."""
        return self.spread_ns / self.latency_ns if self.latency_ns else 0.0

    def with_another(self, other: "Timing") -> "Timing":
        """This and another measurement of the same point as one.

        The mean of two that agree. Else something took part in the slower one, as nothing makes an engine faster than
        it is: the faster one, of which half the difference is the spread.
        """
        fast, slow = sorted((self, other), key=lambda timing: timing.latency_ns)
        runs, times = self.runs + other.runs, self.times + other.times
        apart = slow.latency_ns - fast.latency_ns
        spread_ns = math.hypot(fast.spread_ns, slow.spread_ns)
        if apart <= max(2 * spread_ns, _AGREE * fast.latency_ns):
            share = self.runs / runs
            mean = share * self.latency_ns + (1 - share) * other.latency_ns
            return Timing(latency_ns=mean, spread_ns=max(spread_ns, apart) / 2, runs=runs, times=times)
        return Timing(latency_ns=fast.latency_ns, spread_ns=max(fast.spread_ns, apart / 2), runs=fast.runs, times=times)
