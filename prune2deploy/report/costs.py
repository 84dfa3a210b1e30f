"""What training cost: operations, seconds by phase, throughput and memory of each variant that was trained."""

from collections.abc import Mapping
from typing import Any

from prune2deploy.report.content import ReportContent
from prune2deploy.report.figures import NOTHING, spell_bytes, spell_count, spell_percent
from prune2deploy.report.table import Table

_STEP_OVER_FORWARD = 3
_PHASES = ("training", "evaluating", "deciding", "cutting", "saving")


def costs_table(content: ReportContent) -> Table:
    """One row for each training. The share is of what the same images would take with the dense model."""
    costs = {
        variant.name: variant.training["cost"]
        for variant in content.variants
        if variant.training.get("cost") is not None
    }
    phases = [phase for phase in _PHASES if any(cost["seconds"].get(phase, 0) > 0 for cost in costs.values())]
    columns = (
        "variant",
        "training FLOPs",
        "of dense training",
        *(f"{phase}, s" for phase in phases),
        "images/s",
        "peak memory",
        "images",
        "steps",
    )
    rows = tuple(
        (
            name,
            spell_count(cost["training_flops"]),
            spell_percent(share_of_dense_training(cost, content)),
            *(_spell_seconds(cost["seconds"].get(phase)) for phase in phases),
            spell_count(images_per_second(cost)),
            spell_bytes(cost["peak_memory_bytes"]),
            spell_count(cost["images"]),
            str(cost["steps"]),
        )
        for name, cost in costs.items()
    )
    return Table(
        key="costs",
        title="What training cost",
        columns=columns,
        rows=rows,
        numeric=frozenset(range(1, len(columns))),
        note=(
            "A training step counts as three forward passes of the network as it stood then. The share is of what the "
            "same images would have taken with the dense network. Deciding is what a method does to choose a cut, such "
            "as scoring."
        ),
    )


def share_of_dense_training(cost: Mapping[str, Any], content: ReportContent) -> float | None:
    """Training FLOPs over those of the dense network on the same images; None where dense is not known."""
    if content.dense is None or not content.dense.flops or not cost["images"]:
        return None
    return float(cost["training_flops"] / (_STEP_OVER_FORWARD * content.dense.flops * cost["images"]))


def images_per_second(cost: Mapping[str, Any]) -> float | None:
    """Images trained on in a second of the steps alone; None where no time was taken."""
    seconds = cost["seconds"].get("training")
    return cost["images"] / seconds if seconds else None


def _spell_seconds(seconds: float | None) -> str:
    return NOTHING if seconds is None else f"{seconds:.1f}"
