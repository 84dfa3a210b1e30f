"""The shift between two samples: Welch's interval, and wider where a pilot chose how many values there are."""

import math

import numpy as np
import pytest
from scipy import stats

from prune2deploy.bench.statistics.intervals import builds_needed
from prune2deploy.bench.statistics.welch import mean_shift


def test_without_a_pilot_it_is_welchs():
    before, after = [0.1, 0.2, 0.15], [0.3, 0.31, 0.29, 0.33]
    shift = mean_shift(before, after, confidence=0.9)
    wanted = stats.ttest_ind(after, before, equal_var=False)
    assert shift.estimate == pytest.approx(np.mean(after) - np.mean(before))
    assert (shift.low, shift.high) == pytest.approx(tuple(wanted.confidence_interval(0.9)))
    assert shift.p_value == pytest.approx(wanted.pvalue)


def test_a_pilot_that_asked_for_no_more_changes_nothing():
    before, after = [0.1, 0.2, 0.15], [0.3, 0.31, 0.29, 0.33]
    plain = mean_shift(before, after, confidence=0.95)
    assert mean_shift(before, after, confidence=0.95, pilots=(3, 4)) == plain
    assert mean_shift(before, after, confidence=0.95, pilots=(2, None)) == plain


def test_a_pilot_noisier_than_what_followed_gives_the_interval():
    pilot, rest = [-0.1, 0.0, 0.1], [0.0] * 6
    other = [0.2, 0.25, 0.15]
    shift = mean_shift([*pilot, *rest], other, confidence=0.95, pilots=(3, None))
    error = math.sqrt(np.var(pilot, ddof=1) / 9 + np.var(other, ddof=1) / 3)
    assert shift.high is not None
    assert shift.high - shift.estimate == pytest.approx(stats.t.ppf(0.975, 2) * error)
    assert shift.p_value == pytest.approx(2 * stats.t.sf(shift.estimate / error, 2))


def test_the_interval_and_the_p_value_agree_on_no_shift():
    generator = np.random.default_rng(3)
    for _ in range(50):
        before, after = generator.standard_normal(7), 1.5 + generator.standard_normal(6)
        shift = mean_shift(before, after, confidence=0.95, pilots=(5, 5))
        assert shift.low is not None
        assert shift.high is not None
        assert shift.p_value is not None
        assert (shift.p_value < 0.05) == (not shift.low <= 0 <= shift.high)


def test_samples_whose_size_their_spread_chose_are_told_apart_as_rarely_as_promised():
    generator = np.random.default_rng(11)

    def builds() -> list[float]:
        pilot = [float(value) for value in 0.03 * generator.standard_normal(5)]
        needed = min(builds_needed([math.exp(value) for value in pilot], [1.0] * 5, half_width=0.02), 60)
        return [*pilot, *(float(value) for value in 0.03 * generator.standard_normal(needed - 5))]

    alarms = {False: 0, True: 0}
    for _ in range(600):
        pair = builds(), builds()
        for known, pilots in ((False, (None, None)), (True, (5, 5))):
            p_value = mean_shift(*pair, confidence=0.95, pilots=pilots).p_value
            assert p_value is not None
            alarms[known] += p_value < 0.05
    # At 5% each, 46 or more of 600 come once in four hundred times; Welch's own interval raises about 57.
    assert alarms[True] < 46 < alarms[False]
