"""Granule after granule, the cheapest first."""

import numpy as np
import pytest

from prune2deploy.budget.stepwise import cheapest_first


def never(_):
    return False


def at_once(_):
    return True


def widths(graph, mask):
    return [int(mask[group.channels].sum()) for group in graph.groups]


def scores_of(graph, *means):
    """Scores that ascend with the channel's number within each group, around these means."""
    scores = np.zeros(graph.channel_count)
    for group, mean in zip(graph.groups, means, strict=True):
        scores[group.channels] = mean + np.linspace(-0.1, 0.1, len(group.channels))
    return scores


def test_one_granule_leaves_even_where_nothing_has_to_and_it_is_the_cheapest_of_all(graph):
    kept = cheapest_first(graph, scores_of(graph, 4, 3, 1, 2), available=graph.everything(), granule=16, enough=at_once)
    assert widths(graph, kept) == [64, 64, 112, 96]
    assert set(np.flatnonzero(~kept)) == set(graph.groups[2].channels[:16])


def test_steps_go_on_from_what_is_left_and_stay_aligned_to_the_dense_widths(graph):
    available = graph.everything()
    available[graph.groups[2].channels[:21]] = False  # 107 are left: not a multiple
    scores = scores_of(graph, 4, 3, 1, 2)
    kept = cheapest_first(graph, scores, available=available, granule=16, enough=at_once)
    assert widths(graph, kept) == [64, 64, 96, 96]
    assert not kept[~available].any()


def test_the_fewest_steps_are_taken_that_are_enough(graph):
    scores, budget = scores_of(graph, 1, 2, 3, 4), 0.5 * graph.cost.dense_flops
    kept = cheapest_first(
        graph, scores, available=graph.everything(), granule=16, enough=lambda mask: graph.cost.flops(mask) <= budget
    )
    assert graph.cost.flops(kept) <= budget
    one_less = kept.copy()
    group = max((g for g in graph.groups if not kept[g.channels].all()), key=lambda g: scores[g.channels].mean())
    left = int(kept[group.channels].sum())
    one_less[group.channels[::-1][left : left + 16]] = True
    assert graph.cost.flops(one_less) > budget


def test_where_nothing_is_enough_every_group_keeps_its_smallest_width(graph):
    kept = cheapest_first(graph, scores_of(graph, 1, 1, 1, 1), available=graph.everything(), granule=16, enough=never)
    assert widths(graph, kept) == [16, 16, 16, 16]
    again = cheapest_first(graph, scores_of(graph, 1, 1, 1, 1), available=kept, granule=16, enough=never)
    assert (again == kept).all()


def test_per_layer_ranking_takes_from_whichever_group_kept_the_largest_share(graph):
    kept = cheapest_first(
        graph,
        scores_of(graph, 1, 20, 3, 400),
        available=graph.everything(),
        granule=16,
        ranking="per-layer",
        enough=lambda mask: mask.sum() <= 0.55 * graph.channel_count,
    )
    shares = [width / len(group.channels) for width, group in zip(widths(graph, kept), graph.groups, strict=True)]
    assert max(shares) - min(shares) <= 0.25


def test_channels_that_cannot_be_judged_leave_last(graph):
    scores = scores_of(graph, 1, 2, 3, 4)
    scores[graph.groups[0].channels] = np.inf
    kept = cheapest_first(
        graph, scores, available=graph.everything(), granule=16, enough=lambda mask: mask.sum() <= 64 + 48
    )
    assert widths(graph, kept) == [64, 16, 16, 16]


@pytest.mark.parametrize("ranking", ["global", "per-layer"])
def test_narrow_groups_go_down_one_channel_at_a_time(narrow_graph, ranking):
    scores = scores_of(narrow_graph, 3, 2, 1)
    kept = cheapest_first(
        narrow_graph, scores, available=narrow_graph.everything(), granule=16, enough=at_once, ranking=ranking
    )
    assert int((~kept).sum()) == 1
