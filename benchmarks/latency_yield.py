"""ResNet-50 at 0.33 of the FLOPs: what of that is paid out as time, with and without looking at the engine."""

import tempfile
from pathlib import Path
from typing import Any

from latency_cells import DENSE, Network, time_models, told_rows
from latency_networks import INPUT_SHAPE
from latency_plans import Rival, importance_of

from prune2deploy.budget.alignment import granule_for
from prune2deploy.budget.allocate import allocate, allocate_uniform
from prune2deploy.budget.from_mask import plan_from_mask
from prune2deploy.budget.target import Budget
from prune2deploy.latency.setting import Setting
from prune2deploy.pipeline.cutting import CutChoices
from prune2deploy.pipeline.latency.search import latency_of_engine
from prune2deploy.pipeline.requests import LatencyTarget

FLOPS = 0.33


def run_yield(work: Path, setting: Setting, *, builds: int) -> dict[str, Any]:
    """Uniform widths rounded to 16, ours by FLOPs, and ours cut to the latency that this has, timed in one run."""
    network = Network("resnet50", work)
    graph, granule = network.channels.graph, granule_for(setting.engine, setting.precision)
    masks = {
        "uniform": allocate_uniform(graph, round(FLOPS * graph.cost.dense_flops), granule=16).kept,
        "flops-global": allocate(graph, network.scores, Budget(flops=FLOPS), granule=granule).kept,
        "flops-optimal": allocate(graph, network.scores, Budget(flops=FLOPS), granule=granule, ranking="optimal").kept,
    }
    with tempfile.TemporaryDirectory() as folder:
        engine = latency_of_engine(
            network.model, network.channels, INPUT_SHAPE, setting, granule=granule, folder=Path(folder)
        )
        same = engine.measure(masks["flops-global"])
        choices = CutChoices(budget=None, method="l2", ranking="optimal", default_granule=granule)
        fitted = engine.fit(LatencyTarget(fraction=same.ratio), choices, network.scores)
        masks["latency"] = fitted.best.allocation.kept
        models = {
            name: Rival(
                model=network.channels.cut(network.model, plan_from_mask(graph, kept)),
                importance=importance_of(network.ladder, kept),
                flops_fraction=graph.cost.flops(kept) / graph.cost.dense_flops,
            )
            for name, kept in masks.items()
        }
        result = time_models(setting, {DENSE: network.model}, models, Path(folder), builds=builds)
    return {
        "target_flops": FLOPS,
        "variants": told_rows(result, models),
        "valid": all(one.passed for one in result.controls) and not any("INVALID" in note for note in result.notes),
        "notes": list(result.notes),
    }
