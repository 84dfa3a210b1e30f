"""A family of latencies in one run: what the manifest keeps of it, and the chain from there."""

import pytest

from prune2deploy.pipeline.pareto import family_record, member_name


def record(widths, **own):
    layers = [
        {"name": name, "exact": True, "dense": 64, "flops_dense": 10, "pruned": width, "flops_pruned": width}
        for name, width in zip(("a", "b"), widths, strict=True)
    ]
    shared = {"method": "l2", "backend": "module", "attention": "heads", "ranking": "optimal", "frozen": []}
    return {**shared, "layers": layers, "plan": {"of": widths}, "targets": {"latency": 0.5}, **own}


@pytest.mark.parametrize(("fraction", "name"), [(0.8, "pruned-0.8"), (0.65, "pruned-0.65"), (0.5, "pruned-0.5")])
def test_a_member_is_named_by_its_share_of_the_latency(fraction, name):
    assert member_name(fraction) == name


def test_a_family_keeps_what_is_shared_once_and_the_rest_by_member():
    members = {
        "pruned-0.8": record((48, 64), alignment=16, latency={"met": True}),
        "pruned-0.5": record((32, 16), alignment=8, latency={"met": False}),
    }
    kept = family_record(members)
    assert {name: kept[name] for name in ("method", "ranking", "alignment")} == {
        "method": "l2",
        "ranking": "optimal",
        "alignment": 8,
    }
    assert "plan" not in kept
    assert "latency" not in kept
    assert kept["family"]["pruned-0.8"] == {
        "targets": {"latency": 0.5},
        "alignment": 16,
        "plan": {"of": (48, 64)},
        "latency": {"met": True},
    }
    assert kept["layers"][1] == {
        "name": "b",
        "exact": True,
        "dense": 64,
        "flops_dense": 10,
        "pruned-0.8": 64,
        "flops_pruned-0.8": 64,
        "pruned-0.5": 16,
        "flops_pruned-0.5": 16,
    }
