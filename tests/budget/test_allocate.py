import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from prune2deploy.budget.alignment import allowed_counts, granule_for
from prune2deploy.budget.allocate import CLOSE_ENOUGH, RANKINGS, Allocation, allocate, allocate_uniform
from prune2deploy.budget.target import Budget, achieved_fraction
from prune2deploy.errors import InputError, TargetError
from prune2deploy.graph.channels import ChannelGraph, Group


def random_scores(graph: ChannelGraph, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(graph.channel_count)


def assert_meets(graph: ChannelGraph, allocation: Allocation, budget: Budget) -> None:
    used = budget.share_used(graph.cost, allocation.kept)
    assert used <= 1
    assert used >= CLOSE_ENOUGH or any("of the target is used" in note for note in allocation.notes)
    left = {group for branch in graph.removed_branches(allocation.kept) for group in branch.groups}
    assert {group for group, width in enumerate(graph.kept_widths(allocation.kept)) if not width} == left
    assert allocation.flops_fraction == achieved_fraction(graph.cost, "flops", allocation.kept)
    assert allocation.parameters_fraction == achieved_fraction(graph.cost, "parameters", allocation.kept)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 1000),
    fraction=st.floats(0.05, 0.95),
    ranking=st.sampled_from(RANKINGS),
    granule=st.sampled_from((1, 8, 16, 32)),
    by=st.sampled_from(("flops", "parameters")),
)
def test_every_allocation_is_within_its_target_and_near_it_or_says_so(
    graph: ChannelGraph, seed: int, fraction: float, ranking: str, granule: int, by: str
) -> None:
    budget = Budget(**{by: fraction})
    allocation = allocate(
        graph, random_scores(graph, seed), budget, granule=granule, ranking=ranking, relax_alignment=True
    )
    assert_meets(graph, allocation, budget)
    assert allocation.granule <= granule
    wide = [group.index for group in graph.groups if group.width >= 4 * allocation.granule]
    widths = graph.kept_widths(allocation.kept)
    assert all(widths[index] % allocation.granule == 0 for index in wide)


def test_wide_groups_are_aligned_and_narrow_ones_are_not(graph_of) -> None:
    from_conftest = nn.Sequential(
        nn.Conv2d(3, 96, 1), nn.ReLU(), nn.Conv2d(96, 40, 1), nn.ReLU(), nn.Conv2d(40, 24, 1), nn.Flatten()
    )
    from_conftest.append(nn.Linear(24 * 64, 3))
    graph = graph_of(from_conftest)
    allocation = allocate(graph, random_scores(graph), Budget(flops=0.45), granule=16)
    wide, *narrow = graph.kept_widths(allocation.kept)
    assert wide % 16 == 0
    assert any(width % 16 for width in narrow)


def test_global_ranking_removes_what_scores_least(graph: ChannelGraph) -> None:
    scores = np.ones(graph.channel_count)
    worthless = graph.groups[2].channels[::2]
    scores[worthless] = 0.01
    allocation = allocate(graph, scores, Budget(flops=0.8), granule=1)
    assert not allocation.kept[worthless].all()
    assert allocation.kept[np.setdiff1d(np.arange(graph.channel_count), worthless)].all()


def test_within_a_group_the_best_channels_stay(graph: ChannelGraph) -> None:
    scores = random_scores(graph)
    kept = allocate(graph, scores, Budget(flops=0.4), granule=16, ranking="per-layer").kept
    for group in graph.groups:
        stays = kept[group.channels]
        assert not stays.all()
        assert scores[group.channels][stays].min() > scores[group.channels][~stays].max()


def test_per_layer_ranking_keeps_one_fraction_of_all_groups(graph: ChannelGraph) -> None:
    allocation = allocate(graph, random_scores(graph), Budget(flops=0.4), granule=1, ranking="per-layer")
    fractions = [
        width / group.width for width, group in zip(graph.kept_widths(allocation.kept), graph.groups, strict=True)
    ]
    assert max(fractions) - min(fractions) < 0.03


def test_an_infinite_score_leaves_last(graph: ChannelGraph) -> None:
    scores = random_scores(graph)
    protected = graph.groups[1].channels[:16]
    scores[protected] = np.inf
    assert allocate(graph, scores, Budget(flops=0.1), granule=16).kept[protected].all()


def test_scores_that_are_no_numbers_are_refused(graph: ChannelGraph) -> None:
    scores = random_scores(graph)
    scores[5] = np.nan
    with pytest.raises(InputError, match="not a number"):
        allocate(graph, scores, Budget(flops=0.5), granule=16)


def test_an_unknown_ranking_is_refused_with_the_known_ones(graph: ChannelGraph) -> None:
    with pytest.raises(InputError, match=r"--ranking: unknown ranking 'local'; choose from global, per-layer"):
        allocate(graph, random_scores(graph), Budget(flops=0.5), granule=16, ranking="local")


def test_a_target_out_of_reach_is_refused_saying_what_can_be_reached(graph: ChannelGraph) -> None:
    with pytest.raises(TargetError) as caught:
        allocate(graph, random_scores(graph), Budget(flops=0.001), granule=16)
    smallest = float(caught.value.what.split("keeps ")[1].split(" of the FLOPs")[0])
    assert "asked: 0.001" in caught.value.what
    assert "smaller --align" in str(caught.value.hint)
    reachable = allocate(graph, random_scores(graph), Budget(flops=smallest + 1e-4), granule=16)
    assert reachable.flops_fraction == pytest.approx(smallest, abs=1e-4)


def test_alignment_gives_way_only_when_asked_to_and_says_so(graph: ChannelGraph) -> None:
    allocation = allocate(graph, random_scores(graph), Budget(flops=0.02), granule=16, relax_alignment=True)
    assert allocation.granule < 16
    assert any(note.startswith(f"alignment lowered to {allocation.granule}") for note in allocation.notes)
    assert_meets(graph, allocation, Budget(flops=0.02))


def test_a_network_with_nothing_to_prune_is_refused(graph_of) -> None:
    frozen = graph_of(nn.Sequential(nn.Conv2d(3, 8, 1)))
    with pytest.raises(TargetError, match="nothing can be pruned: every channel is frozen"):
        allocate(frozen, np.zeros(0), Budget(flops=0.5), granule=16, relax_alignment=True)


def test_a_pruning_that_changes_nothing_is_refused(graph_of) -> None:
    class Costless(nn.Module):
        """A table and a norm: nothing that the FLOPs count."""

        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(10, 8)

        def forward(self, x):
            return self.table((x > 0).long()).sum(-1)

    free = graph_of(Costless())
    assert free.cost.dense_flops == 0
    with pytest.raises(TargetError, match="nothing would be pruned"):
        allocate(free, np.arange(8.0), Budget(flops=0.5), granule=1)


def test_two_targets_hold_at_once(graph: ChannelGraph) -> None:
    budget = Budget(flops=0.5, parameters=0.3)
    allocation = allocate(graph, random_scores(graph), budget, granule=16)
    assert allocation.flops_fraction <= 0.5
    assert allocation.parameters_fraction <= 0.3
    assert_meets(graph, allocation, budget)


def test_narrow_networks_reach_their_target_closely(narrow_graph: ChannelGraph) -> None:
    budget = Budget(flops=0.33)
    allocation = allocate(narrow_graph, random_scores(narrow_graph), budget, granule=16)
    assert budget.share_used(narrow_graph.cost, allocation.kept) >= CLOSE_ENOUGH
    assert allocation.notes == ()


@settings(max_examples=30, deadline=None, derandomize=True)
@given(fraction=st.floats(0.1, 0.9), granule=st.sampled_from((1, 8, 16)))
def test_a_uniformly_narrower_network_is_as_large_as_asked_or_says_so(
    graph: ChannelGraph, fraction: float, granule: int
) -> None:
    wanted = int(fraction * graph.cost.dense_flops)
    allocation = allocate_uniform(graph, wanted, granule=granule)
    distance = abs(graph.cost.flops(allocation.kept) / wanted - 1)
    assert distance <= 0.02 or any(f"{distance:.1%}" in note for note in allocation.notes)
    for group, width in zip(graph.groups, graph.kept_widths(allocation.kept), strict=True):
        assert width % granule == 0
        assert allocation.kept[group.channels[: width // group.positions]].all()
        if granule == 1:
            assert abs(width / group.width - fraction**0.5) < 0.1


def test_granules_follow_engine_and_precision() -> None:
    assert granule_for() == granule_for("ort-cpu", "fp32") == granule_for("trt", "fp32") == 16
    assert granule_for("trt", "fp16") == granule_for("trt-rtx", "bf16") == granule_for("ort-cuda", "fp16") == 8
    assert granule_for("torch-compile", "fp16") == granule_for("torch-cuda-graph", "bf16") == 8
    assert granule_for("trt", "tf32") == granule_for("torch", "tf32") == 4
    assert granule_for("openvino", "bf16") == granule_for(None, "fp16") == granule_for("ort-cpu", "tf32") == 16
    assert granule_for("ort-cpu", "int8") == granule_for(None, "int8") == 32


def group_of(count: int, positions: int = 1) -> Group:
    return Group(index=0, name="g", channels=np.arange(count), positions=positions, exact=True, stream=False)


@pytest.mark.parametrize(
    ("count", "positions", "granule", "allowed"),
    [
        (64, 1, 16, (16, 32, 48, 64)),
        (70, 1, 16, (16, 32, 48, 64, 70)),
        (63, 1, 16, tuple(range(1, 64))),
        (32, 4, 16, tuple(range(4, 33, 4))),
        (8, 32, 16, tuple(range(1, 9))),
        (4, 16, 16, (1, 2, 3, 4)),
    ],
)
def test_allowed_counts_are_whole_granules_of_the_width(
    count: int, positions: int, granule: int, allowed: tuple[int, ...]
) -> None:
    assert allowed_counts(group_of(count, positions), granule) == allowed
