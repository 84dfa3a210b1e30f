import numpy as np
import pytest

from prune2deploy.budget.ladder import Ladder
from prune2deploy.budget.worth import group_weights, log_kept


def test_weights_are_the_shares_of_the_flops_that_hang_on_each_group(graph):
    weights = group_weights(graph)
    assert weights.sum() == pytest.approx(1)
    # Groups 1.first, 2.first and 3.first differ in their widths alone, and FLOPs are proportional to these.
    assert weights[2] / weights[1] == pytest.approx(2, rel=0.01)
    assert weights[0] > weights[3], "the stream takes part in every layer"


def test_keeping_less_is_worth_less_and_nothing_is_still_a_number():
    kept = log_kept(np.array([4.0, 2.0, 1.0, 1.0]))
    assert kept[-1] == 0
    assert (np.diff(kept) > 0).all()
    assert kept[0] == pytest.approx(np.log(1 / 5)), "the shortcut counts as one channel of four and one"
    assert kept[1] == pytest.approx(np.log(3 / 5)), "the best channel has half of the scores"


@pytest.mark.parametrize("scores", [[0.0, 0.0, 0.0], [5.0, 5.0, 5.0]])
def test_equal_scores_are_alike_also_where_all_are_zero(scores):
    assert log_kept(np.array(scores)).tolist() == pytest.approx(np.log([1 / 4, 2 / 4, 3 / 4, 1]).tolist())


def test_infinite_and_negative_scores_are_finite_worths():
    kept = log_kept(np.array([np.inf, 1.0, -1.0, -np.inf]))
    assert np.isfinite(kept).all()
    assert kept[1] > np.log(0.5), "what must not leave is worth most of the group"
    assert kept[3] == kept[4] == 0, "what is worth less than nothing counts as nothing"


def test_the_importance_of_a_plan_does_not_depend_on_the_scale_of_the_scores(graph):
    scores = np.random.default_rng(0).random(graph.channel_count)
    counts = np.array([32, 16, 64, 48])
    first, second = (Ladder.of(graph, factor * scores, 16).worth_of(counts) for factor in (1, 1000))
    assert first == pytest.approx(second)
    assert first < 0
