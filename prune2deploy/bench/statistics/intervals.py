"""Statistics: from the medians of builds to intervals on ratios. Every distribution comes from scipy.

The unit of replication is the build, not the iteration: iterations of one process share its memory layout, its
engine's choices and its neighbours, so that thousands of them say nothing of the next process (Kalibera and Jones,
"Rigorous benchmarking in reasonable time", 2013). How many builds there must be is fixed by a pilot (Stein, "A
two-sample test for a linear hypothesis whose power is independent of the variance", 1945).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from prune2deploy.bench.subjects import MINIMUM_BUILDS_FOR_AN_INTERVAL
from prune2deploy.errors import InputError

CONTROL_CONFIDENCE = 0.999
CONTROL_TOLERANCE = 0.01

MINIMUM_SAMPLES_P90 = 64
MINIMUM_SAMPLES_P99 = 662

_DISTRIBUTION_STEPS = 41


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A ratio with its confidence interval; ``low`` and ``high`` are None with fewer than three builds."""

    estimate: float
    low: float | None
    high: float | None
    confidence: float
    builds: int

    @property
    def half_width(self) -> float | None:
        """Half the interval's length on the log scale, as a fraction: 0.02 means about plus or minus 2%."""
        if self.low is None or self.high is None:
            return None
        return math.sqrt(self.high / self.low) - 1

    def contains(self, value: float) -> bool | None:
        """Whether ``value`` lies inside; None where there is no interval."""
        if self.low is None or self.high is None:
            return None
        return self.low <= value <= self.high


def ratio_interval(
    numerators: Sequence[float], denominators: Sequence[float], *, confidence: float = 0.95, pilot: int | None = None
) -> Interval:
    """The ratio of two latencies from one pair of figures a build.

    The logs of the builds' ratios are taken as a normal sample; their t interval is mapped back. The estimate is the
    geometric mean of the ratios. Shape: (builds,), (builds,).

    ``pilot`` is how many of the first builds decided how many there are. Their spread, and their degrees of freedom,
    then give the interval (Stein 1945): the spread of all builds would be biased, because their number depends on it.
    Where the ordinary interval over all builds is the wider one, noise grew after the pilot, and it is used.

    Raises:
        InputError: no builds, unequal counts, or a latency that is not above zero.
    """
    logs = log_ratios(numerators, denominators)
    centre, builds = float(np.mean(logs)), len(logs)
    if builds < MINIMUM_BUILDS_FOR_AN_INTERVAL:
        return Interval(estimate=math.exp(centre), low=None, high=None, confidence=confidence, builds=builds)
    reach = _reach(logs, builds, confidence)
    if pilot is not None and MINIMUM_BUILDS_FOR_AN_INTERVAL <= pilot < builds:
        reach = max(reach, _reach(logs[:pilot], builds, confidence))
    return Interval(
        estimate=math.exp(centre),
        low=math.exp(centre - reach),
        high=math.exp(centre + reach),
        confidence=confidence,
        builds=builds,
    )


def builds_needed(
    numerators: Sequence[float], denominators: Sequence[float], *, half_width: float, confidence: float = 0.95
) -> int:
    """How many builds bring the interval of a ratio to ``half_width`` (0.02 is 2%), by the spread of this pilot.

    N = max(pilot, ⌈(t·s/d)²⌉) with s the standard deviation of the pilot's log ratios, t its Student quantile and
    d = log(1 + half_width). Source: Stein 1945, in the form of Ghosh, Mukhopadhyay and Sen, "Sequential Estimation",
    1997, section 3.2. Shape: (builds,), (builds,).

    Raises:
        InputError: as ``ratio_interval``, or fewer than two builds.
    """
    logs = log_ratios(numerators, denominators)
    if len(logs) < 2:
        raise InputError(f"a pilot has at least two builds, not {len(logs)}")
    reach_of_one = _reach(logs, 1, confidence)
    return max(len(logs), math.ceil((reach_of_one / math.log1p(half_width)) ** 2))


def log_ratios(numerators: Sequence[float], denominators: Sequence[float]) -> NDArray[np.float64]:
    """The logs of the builds' ratios. Shape: (builds,), (builds,) -> (builds,).

    Raises:
        InputError: no builds, unequal counts, or a latency that is not above zero.
    """
    if len(numerators) != len(denominators) or not numerators:
        raise InputError(f"cannot pair {len(numerators)} builds with {len(denominators)}")
    if min(*numerators, *denominators) <= 0:
        raise InputError("a latency of zero was measured; the clock is too coarse for this model")
    ratios: NDArray[np.float64] = np.log(np.asarray(numerators, dtype=np.float64))
    return ratios - np.log(np.asarray(denominators, dtype=np.float64))


def _reach(logs: NDArray[np.float64], builds: int, confidence: float) -> float:
    """Half the length of the interval around the mean of ``builds`` builds whose spread is that of ``logs``."""
    quantile = float(stats.t.ppf(0.5 + confidence / 2, len(logs) - 1))
    return quantile * float(np.std(logs, ddof=1)) / math.sqrt(builds)


def control_passes(control: Interval) -> bool | None:
    """Whether two copies of one model look alike: the A/A control. None where there is no interval.

    It fails only if the interval excludes 1 *and* the estimate is off by more than 1%: with many rows, an interval
    alone would condemn healthy runs.
    """
    inside = control.contains(1.0)
    if inside is None:
        return None
    return inside or abs(control.estimate - 1) <= CONTROL_TOLERANCE


@dataclass(frozen=True, slots=True, kw_only=True)
class Percentiles:
    """Latency percentiles in ns over ``samples`` runs; None where the samples do not support one.

    The least counts are MLPerf LoadGen's: 64 for the 90th percentile, 662 for the 99th.
    """

    p50: float
    p90: float | None
    p99: float | None
    samples: int


def percentiles(samples_ns: Sequence[int]) -> Percentiles:
    """Percentiles of raw samples, with linear interpolation. Nothing is clipped."""
    values = np.asarray(samples_ns, dtype=np.float64)
    count = len(values)
    return Percentiles(
        p50=float(np.percentile(values, 50)),
        p90=float(np.percentile(values, 90)) if count >= MINIMUM_SAMPLES_P90 else None,
        p99=float(np.percentile(values, 99)) if count >= MINIMUM_SAMPLES_P99 else None,
        samples=count,
    )


def distribution(samples_ns: Sequence[int]) -> tuple[float, ...]:
    """The quantiles 0, 2.5%, ..., 100% in ns: enough to draw a distribution from. Shape: (samples,) -> (41,)."""
    values = np.asarray(samples_ns, dtype=np.float64)
    return tuple(float(value) for value in np.quantile(values, np.linspace(0, 1, _DISTRIBUTION_STEPS)))
