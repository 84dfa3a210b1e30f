"""The early pruning indicator, by hand."""

import pytest

from prune2deploy.policies.stability import has_settled, indicator, similarity


def test_similarity_by_hand():
    """|8−4|/12 = 1/3, |6−6|/12 = 0, |1−3|/4 = 1/2: the mean is 5/18."""
    assert similarity((8, 6, 1), (4, 6, 3)) == pytest.approx(1 - 5 / 18)
    assert similarity((4, 6, 3), (8, 6, 1)) == similarity((8, 6, 1), (4, 6, 3))
    assert similarity((5, 7), (5, 7)) == 1
    assert similarity((5, 0), (0, 5)) == 0
    assert similarity((0, 4), (0, 4)) == 1


@pytest.mark.parametrize("other", [(1,), (1, 2, 3), ()])
def test_networks_of_different_depth_are_not_compared(other):
    with pytest.raises(ValueError, match="cannot be compared"):
        similarity(other, (1, 2) if other else ())


def test_the_indicator_is_the_mean_similarity_to_the_networks_before():
    """Ψ(6, 6) = 1, Ψ(6, 4) = 1 − 2/10, Ψ(6, 2) = 1 − 4/8; the oldest network is outside the window."""
    history = [(100,), (2,), (4,), (6,), (6,)]
    assert indicator(history, 3) == pytest.approx((1 + 0.8 + 0.5) / 3)
    assert indicator(history, 1) == 1
    assert indicator(history[:3], 3) is None
    assert indicator(history[:4], 3) is not None
    assert indicator([], 1) is None
    with pytest.raises(ValueError, match="window of 0"):
        indicator(history, 0)


@pytest.mark.parametrize(
    ("curve", "settled"),
    [
        ([], False),
        ([None], False),
        ([None, 0.9], False),
        ([None, 0.99], True),
        ([0.99, 0.98, 0.985], False),
        ([0.99, 0.98, 0.98, 0.98, 0.98, 0.985], False),
        ([0.99, 0.98, 0.98, 0.98, 0.98, 0.98, 0.985], True),
        ([0.985, 0.985], True),
        ([0.95, 0.95], False),
        ([0.96, 0.98, 0.983], False),
    ],
)
def test_it_has_settled_above_the_threshold_and_not_below_five_before(curve, settled):
    assert has_settled(curve, 0.983) is settled
