"""The shift between the means of two samples whose sizes and spreads differ: one a measurement, one value a build."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from prune2deploy.bench.subjects import MINIMUM_BUILDS_FOR_AN_INTERVAL


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """The mean of the second sample minus that of the first, with its interval and the p value for no shift.

    These are None with fewer than three values in either sample.
    """

    estimate: float
    low: float | None
    high: float | None
    p_value: float | None


def mean_shift(
    before: Sequence[float],
    after: Sequence[float],
    *,
    confidence: float,
    pilots: tuple[int | None, int | None] = (None, None),
) -> Shift:
    """Welch's interval for the difference of two means. Shape: (builds,), (other builds,).

    ``pilots`` say how many of the first values decided how many there are, None where nothing did. The spread of all is
    then too small by chance, and Welch's interval misses the truth up to twice as often as it says. So it is made at
    least as wide as the one from the pilots' spreads, after Stein (1945), with the fewer of the two samples' degrees of
    freedom: the sum of two Student variables has heavier tails than Welch's approximation gives it (Chapman, "Some
    two sample tests", 1950), and the fewer degrees are on the safe side.
    """
    shift = float(np.mean(after) - np.mean(before))
    if min(len(before), len(after)) < MINIMUM_BUILDS_FOR_AN_INTERVAL:
        return Shift(estimate=shift, low=None, high=None, p_value=None)
    if np.ptp(before) == np.ptp(after) == 0:
        # Without any spread there are no degrees of freedom.
        return Shift(estimate=shift, low=shift, high=shift, p_value=float(shift == 0))
    test = stats.ttest_ind(after, before, equal_var=False)
    interval = test.confidence_interval(confidence)
    reach, p_value = (float(interval.high) - float(interval.low)) / 2, float(test.pvalue)
    samples = ((before, _deciding(pilots[0], before)), (after, _deciding(pilots[1], after)))
    if any(pilot < len(sample) for sample, pilot in samples):
        error = math.sqrt(sum(float(np.var(sample[:pilot], ddof=1)) / len(sample) for sample, pilot in samples))
        freedom = min(pilot for _, pilot in samples) - 1
        reach = max(reach, float(stats.t.ppf(0.5 + confidence / 2, freedom)) * error)
        if error > 0:
            p_value = max(p_value, 2 * float(stats.t.sf(abs(shift) / error, freedom)))
    return Shift(estimate=shift, low=shift - reach, high=shift + reach, p_value=p_value)


def _deciding(pilot: int | None, sample: Sequence[float]) -> int:
    """How many of the first values tell the spread: those of the pilot, where more followed, else all."""
    return pilot if pilot is not None and MINIMUM_BUILDS_FOR_AN_INTERVAL <= pilot < len(sample) else len(sample)
