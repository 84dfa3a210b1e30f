"""Statistics: from the medians of builds to intervals on ratios. Every distribution comes from scipy.

The unit of replication is the build, not the iteration: iterations of one process share its memory layout, its
engine's choices and its neighbours, so that thousands of them say nothing of the next process (Kalibera and Jones,
"Rigorous benchmarking in reasonable time", 2013).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
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


def ratio_interval(numerators: Sequence[float], denominators: Sequence[float], *, confidence: float = 0.95) -> Interval:
    """The ratio of two latencies from one pair of medians a build.

    The logs of the builds' ratios are taken as a normal sample; their t interval is mapped back. The estimate is the
    geometric mean of the ratios. Shape: (builds,), (builds,).

    Raises:
        InputError: no builds, unequal counts, or a latency that is not above zero.
    """
    if len(numerators) != len(denominators) or not numerators:
        raise InputError(f"cannot pair {len(numerators)} builds with {len(denominators)}")
    if min(*numerators, *denominators) <= 0:
        raise InputError("a latency of zero was measured; the clock is too coarse for this model")
    logs = np.log(np.asarray(numerators, dtype=np.float64)) - np.log(np.asarray(denominators, dtype=np.float64))
    centre = float(np.mean(logs))
    builds = len(logs)
    if builds < MINIMUM_BUILDS_FOR_AN_INTERVAL:
        return Interval(estimate=math.exp(centre), low=None, high=None, confidence=confidence, builds=builds)
    reach = float(stats.t.ppf(0.5 + confidence / 2, builds - 1) * stats.sem(logs))
    return Interval(
        estimate=math.exp(centre),
        low=math.exp(centre - reach),
        high=math.exp(centre + reach),
        confidence=confidence,
        builds=builds,
    )


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
