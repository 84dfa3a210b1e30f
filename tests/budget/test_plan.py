import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from prune2deploy.budget.from_mask import mask_from_plan, plan_from_mask
from prune2deploy.budget.plan import KeptIndices, PrunePlan
from prune2deploy.errors import InputError
from prune2deploy.graph.channels import ChannelGraph, ChannelMask
from prune2deploy.graph.trace import trace
from prune2deploy.surgery.apply import pruned_copy, shapes_of


def random_mask(graph: ChannelGraph, seed: int) -> ChannelMask:
    random = np.random.default_rng(seed)
    kept = random.random(graph.channel_count) < random.uniform(0.2, 1)
    for group in graph.groups:
        kept[random.choice(group.channels)] = True
    return kept


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000))
def test_a_mask_and_its_plan_say_the_same(graph: ChannelGraph, seed: int) -> None:
    kept = random_mask(graph, seed)
    plan = plan_from_mask(graph, kept, {"method": "random"})
    assert (mask_from_plan(graph, plan) == kept).all()
    assert plan.is_empty == bool(kept.all())
    assert all(len(entry.kept) < entry.dense_size for entry in plan.entries)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000))
def test_a_plan_survives_json(graph: ChannelGraph, seed: int) -> None:
    plan = plan_from_mask(graph, random_mask(graph, seed), {"method": "random", "targets": {"flops": 0.33}})
    assert PrunePlan.from_document(json.loads(json.dumps(plan.to_document()))) == plan


def test_a_plan_replays_and_two_plans_compose(graph: ChannelGraph, model: nn.Module) -> None:
    first = plan_from_mask(graph, random_mask(graph, 1))
    once = pruned_copy(model, first)
    smaller = trace(once, torch.randn(1, 3, 8, 8)).graph
    second = plan_from_mask(smaller, random_mask(smaller, 2), {"step": 2})
    twice, at_once = pruned_copy(once, second), pruned_copy(model, first.then(second))
    assert first.then(second).provenance == {"step": 2}
    assert shapes_of(twice) == shapes_of(at_once)
    state = at_once.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in twice.state_dict().items())


def test_plans_that_do_not_follow_each_other_do_not_compose(graph: ChannelGraph) -> None:
    one, other = (plan_from_mask(graph, random_mask(graph, seed)) for seed in (1, 2))
    with pytest.raises(InputError, match="the second plan counts 64 indices where the first left"):
        one.then(other)


def test_the_empty_plan_changes_nothing(graph: ChannelGraph, model: nn.Module) -> None:
    plan = plan_from_mask(graph, graph.everything())
    assert plan.is_empty
    assert plan.entries == ()
    assert shapes_of(pruned_copy(model, plan)) == shapes_of(model)


def test_a_plan_for_another_model_is_refused(graph: ChannelGraph, narrow_graph: ChannelGraph) -> None:
    with pytest.raises(InputError, match="belongs to another model"):
        mask_from_plan(graph, plan_from_mask(narrow_graph, random_mask(narrow_graph, 0)))


def test_a_plan_that_tears_a_channel_apart_is_refused(graph: ChannelGraph) -> None:
    plan = plan_from_mask(graph, random_mask(graph, 0))
    torn = PrunePlan(fingerprint=plan.fingerprint, entries=plan.entries[1:])
    with pytest.raises(InputError, match=f"{plan.entries[0].tensor} dim 0: the plan removes some slices"):
        mask_from_plan(graph, torn)


def test_a_plan_that_cuts_the_output_is_refused(graph: ChannelGraph) -> None:
    entry = KeptIndices(tensor="6.weight", dim=0, dense_size=10, kept=(0, 1))
    plan = PrunePlan(fingerprint=graph.fingerprint, entries=(entry,))
    with pytest.raises(InputError, match=r"6\.weight dim 0: the plan cuts what cannot leave this model"):
        mask_from_plan(graph, plan)


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ((), "may not empty a dimension"),
        ((1, 1), "must ascend without repetition"),
        ((2, 1), "must ascend without repetition"),
        ((-1, 0), r"lies outside 0\.\.3"),
        ((0, 4), r"lies outside 0\.\.3"),
    ],
)
def test_kept_indices_are_checked(kept: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=f"conv dim 1: .*{message}"):
        KeptIndices(tensor="conv", dim=1, dense_size=4, kept=kept)


@pytest.mark.parametrize(
    "damage",
    [
        lambda document: document.pop("entries"),
        lambda document: document.pop("fingerprint"),
        lambda document: document["entries"][0].pop("kept"),
        lambda document: document["entries"][0].update(kept=[[0]]),
        lambda document: document["entries"][0].update(kept=5),
        lambda document: document["entries"][0].update(dense_size="many"),
    ],
)
def test_a_damaged_document_is_refused(graph: ChannelGraph, damage) -> None:
    document = plan_from_mask(graph, random_mask(graph, 0)).to_document()
    damage(document)
    with pytest.raises(InputError, match=r"plan\.json: the plan is damaged"):
        PrunePlan.from_document(document, where="plan.json")


def test_a_plan_of_another_schema_is_refused(graph: ChannelGraph) -> None:
    document = plan_from_mask(graph, random_mask(graph, 0)).to_document() | {"schema_version": 99}
    with pytest.raises(InputError, match="schema version 99, this p2d reads 1"):
        PrunePlan.from_document(document)
