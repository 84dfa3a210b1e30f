"""Statistics against hand-computed values and simulated builds, and verdicts against a table."""

import math

import numpy as np
import pytest

from prune2deploy.bench.claims.verdicts import JudgedClaim, Verdict, exit_code, judge
from prune2deploy.bench.statistics.intervals import Interval, control_passes, distribution, percentiles, ratio_interval
from prune2deploy.errors import InputError


def interval(low: float | None, high: float | None, *, estimate: float | None = None) -> Interval:
    if estimate is None:
        estimate = math.sqrt(low * high) if low and high else 1.0
    return Interval(estimate=estimate, low=low, high=high, confidence=0.95, builds=5 if low else 2)


def test_interval_equals_the_one_computed_by_hand() -> None:
    # Log ratios ln 2 + (-0.1, 0, 0.1): mean ln 2, standard error 0.1 / sqrt(3), t(0.975; 2) = 4.302653.
    numerators = [2 * math.exp(-0.1), 2.0, 2 * math.exp(0.1)]
    found = ratio_interval(numerators, [1.0, 1.0, 1.0])
    reach = 4.302653 * 0.1 / math.sqrt(3)
    assert found.estimate == pytest.approx(2.0)
    assert found.low == pytest.approx(2 * math.exp(-reach), rel=1e-6)
    assert found.high == pytest.approx(2 * math.exp(reach), rel=1e-6)
    assert found.half_width == pytest.approx(math.exp(reach) - 1, rel=1e-6)


def test_interval_of_a_ratio_is_the_mirror_of_the_inverse_ratio() -> None:
    first, second = [3.0, 3.3, 2.9, 3.1], [1.0, 1.2, 0.9, 1.1]
    forward, backward = ratio_interval(first, second), ratio_interval(second, first)
    assert forward.estimate == pytest.approx(1 / backward.estimate)
    assert forward.low == pytest.approx(1 / backward.high)
    assert forward.high == pytest.approx(1 / backward.low)


def test_drift_that_hits_both_variants_of_a_build_alike_cancels() -> None:
    found = ratio_interval([2.0, 4.0, 20.0], [1.0, 2.0, 10.0])
    assert (found.low, found.estimate, found.high) == pytest.approx((2.0, 2.0, 2.0))


@pytest.mark.parametrize("builds", [1, 2])
def test_fewer_than_three_builds_give_no_interval(builds: int) -> None:
    found = ratio_interval([2.0] * builds, [1.0] * builds)
    assert (found.estimate, found.low, found.high, found.half_width) == (2.0, None, None, None)


@pytest.mark.parametrize(("numerators", "denominators"), [([], []), ([1.0], [1.0, 2.0]), ([0.0], [1.0])])
def test_figures_that_make_no_ratio_are_refused(numerators: list[float], denominators: list[float]) -> None:
    with pytest.raises(InputError):
        ratio_interval(numerators, denominators)


@pytest.mark.parametrize(("builds", "confidence"), [(5, 0.95), (5, 0.8), (3, 0.95), (12, 0.9)])
def test_intervals_of_simulated_builds_cover_the_truth_as_often_as_they_say(builds: int, confidence: float) -> None:
    generator = np.random.default_rng(7)
    truth, trials = 2.5, 2000
    covered = 0
    for _ in range(trials):
        common = np.exp(generator.normal(0, 0.2, builds))
        dense = truth * common * np.exp(generator.normal(0, 0.02, builds))
        pruned = common * np.exp(generator.normal(0, 0.03, builds))
        covered += bool(ratio_interval(list(dense), list(pruned), confidence=confidence).contains(truth))
    spread = 4 * math.sqrt(confidence * (1 - confidence) / trials)
    assert covered / trials == pytest.approx(confidence, abs=spread)


@pytest.mark.parametrize(
    ("count", "has_p90", "has_p99"), [(1, False, False), (63, False, False), (64, True, False), (661, True, False)]
)
def test_percentiles_are_null_where_too_few_samples_support_them(count: int, has_p90: bool, has_p99: bool) -> None:
    found = percentiles(range(1, count + 1))
    assert (found.p90 is not None, found.p99 is not None) == (has_p90, has_p99)
    assert (found.p50, found.samples) == ((count + 1) / 2, count)


def test_percentiles_of_662_samples_are_all_given_and_clip_nothing() -> None:
    found = percentiles([100] * 654 + [1_000_000] * 8)
    assert (found.p50, found.p90, found.p99) == (100, 100, 1_000_000)


def test_distribution_runs_from_the_smallest_sample_to_the_largest() -> None:
    found = distribution(range(4001))
    assert len(found) == 41
    assert (found[0], found[1], found[20], found[40]) == (0, 100, 2000, 4000)


@pytest.mark.parametrize(
    ("control", "passes"),
    [
        (interval(0.98, 1.02), True),
        (interval(1.001, 1.009), True),
        (interval(0.992, 0.999), True),
        (interval(1.011, 1.03), False),
        (interval(0.96, 0.985), False),
        (interval(0.9, 1.2), True),
        (interval(None, None), None),
    ],
)
def test_control_fails_only_if_it_excludes_one_and_is_off_by_more_than_a_percent(
    control: Interval, passes: bool | None
) -> None:
    assert control_passes(control) is passes


@pytest.mark.parametrize(
    ("low", "high", "claim", "control", "verdict"),
    [
        (2.0, 2.2, 2.0, True, Verdict.CONFIRMED),
        (2.0, 2.2, 1.9, None, Verdict.CONFIRMED),
        (2.0, 2.2, 2.1, True, Verdict.UNDECIDED),
        (2.0, 2.2, 2.2, True, Verdict.UNDECIDED),
        (2.0, 2.2, 2.21, True, Verdict.REFUTED),
        (2.0, 2.2, 2.0, False, Verdict.INVALID),
        (2.0, 2.2, 9.0, False, Verdict.INVALID),
        (None, None, 1.0, None, Verdict.UNDECIDED),
    ],
)
def test_verdicts_follow_the_interval_and_the_control(
    low: float | None, high: float | None, claim: float, control: bool | None, verdict: Verdict
) -> None:
    assert judge(claim, interval(low, high), control_passed=control) is verdict


def judged(verdict: Verdict, *, asked: bool = True) -> JudgedClaim:
    return JudgedClaim(
        claim=2.0,
        variant="pruned",
        engine="ort-cpu",
        precision="fp32",
        batch=1,
        verdict=verdict,
        against="dense",
        asked=asked,
        estimate=2.0,
        low=1.9,
        high=2.1,
    )


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [
        ([], 0),
        (["CONFIRMED", "CONFIRMED"], 0),
        (["CONFIRMED", "UNDECIDED"], 11),
        (["UNDECIDED", "REFUTED", "CONFIRMED"], 10),
        (["REFUTED", "INVALID", "UNDECIDED"], 12),
    ],
)
def test_of_several_verdicts_the_gravest_gives_the_exit_code(verdicts: list[str], code: int) -> None:
    assert exit_code(judged(Verdict(verdict)) for verdict in verdicts) == code


def test_a_verdict_that_nobody_asked_for_changes_no_exit_code() -> None:
    assert exit_code([judged(Verdict.REFUTED, asked=False), judged(Verdict.CONFIRMED)]) == 0
