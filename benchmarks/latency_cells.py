"""The cells of ``latency.py``: one network in one setting, cut to half its latency and timed against its rivals."""

import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from latency_networks import INPUT_SHAPE, build_network, trained
from latency_plans import Rival, TorchPruning, by_flops, importance_of, made
from torch import nn

from prune2deploy.bench.measure import run_bench
from prune2deploy.bench.result import BenchResult
from prune2deploy.bench.statistics.intervals import ratio_interval
from prune2deploy.bench.subjects import BenchOptions, BenchRequest, Subject
from prune2deploy.budget.alignment import granule_for
from prune2deploy.budget.ladder import Ladder
from prune2deploy.export.onnx_from_model import export_onnx
from prune2deploy.importance.criteria import criterion_named, score_channels
from prune2deploy.latency.setting import Setting
from prune2deploy.pipeline.backends import Channels, find_channels
from prune2deploy.pipeline.cutting import CutChoices
from prune2deploy.pipeline.latency.search import FittedLatency, latency_of_engine
from prune2deploy.pipeline.requests import LatencyTarget

TARGET = 0.5
LATENCY, FLOPS, TORCH_PRUNING = "latency", "flops", "torch-pruning"
DENSE = "dense"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One network on one engine."""

    network: str
    setting: Setting

    @property
    def key(self) -> str:
        """Its name in the result."""
        return f"{self.network}/{setting_key(self.setting)}"


def setting_key(setting: Setting) -> str:
    """A setting as the command line names it: engine, threads, batch."""
    return f"{setting.engine}:{setting.threads}:{setting.batch}"


class Network:
    """A network with its channels and scores, for all of its cells."""

    def __init__(self, name: str, folder: Path | None) -> None:
        """``folder`` keeps trained weights; None: random ones."""
        self.name = name
        self.model = build_network(name) if folder is None else trained(name, folder)
        self.image = torch.randn(1, *INPUT_SHAPE, generator=torch.Generator().manual_seed(0))
        self.channels: Channels = find_channels(self.model, (self.image,))
        self.scores = score_channels(self.channels.graph, self.model, None, criterion=criterion_named("l2"), seed=0)
        self.ladder = Ladder.of(self.channels.graph, self.scores, granule_for())
        self.peer = TorchPruning(model=self.model, graph=self.channels.graph, ladder=self.ladder, image=self.image)


def run_cell(cell: Cell, network: Network, *, builds: int) -> dict[str, Any]:
    """Cut to the target, make the rivals of equal importance, time all of them in one run, and tell it as JSON."""
    begun = time.monotonic()
    granule = granule_for(cell.setting.engine, cell.setting.precision)
    choices = CutChoices(budget=None, method="l2", ranking="optimal", default_granule=granule)
    with tempfile.TemporaryDirectory() as folder:
        engine = latency_of_engine(
            network.model, network.channels, INPUT_SHAPE, cell.setting, granule=granule, folder=Path(folder)
        )
        table_seconds = time.monotonic() - begun
        fitted = engine.fit(LatencyTarget(fraction=TARGET), choices, network.scores)
        kept = fitted.best.allocation.kept
        importance = importance_of(network.ladder, kept)
        graph = network.channels.graph
        ours = Rival(
            model=engine.pruned(kept),
            importance=importance,
            flops_fraction=graph.cost.flops(kept) / graph.cost.dense_flops,
        )
        rivals, failed = made(
            [
                (
                    FLOPS,
                    lambda: by_flops(
                        network.model, network.channels, network.scores, importance=importance, granule=granule
                    ),
                ),
                (TORCH_PRUNING, lambda: network.peer.keeping(importance)),
            ]
        )
        models = {LATENCY: ours, **rivals}
        result = time_models(cell.setting, {DENSE: network.model}, models, Path(folder), builds=builds)
    return {
        "network": cell.network,
        "setting": setting_key(cell.setting),
        "target": TARGET,
        "variants": told_rows(result, models),
        "failed": failed,
        "against": {name: against(result, name) for name in rivals},
        "rounds": [_round(one) for one in fitted.rounds],
        "solver": _solver(fitted),
        "table": {
            "measured": engine.table.measured,
            "reused": engine.table.reused,
            "seconds": table_seconds,
            "units": len(engine.table.surfaces),
        },
        "unpriced": dict(Counter(engine.units.unpriced)),
        "controls": [{"estimate": one.interval.estimate, "passed": one.passed} for one in result.controls],
        "valid": all(one.passed for one in result.controls) and not any("INVALID" in note for note in result.notes),
        "notes": list(result.notes),
        "seconds": time.monotonic() - begun,
    }


def time_models(
    setting: Setting,
    dense: dict[str, nn.Module],
    models: dict[str, Rival],
    folder: Path,
    *,
    builds: int,
    input_shape: tuple[int, ...] = INPUT_SHAPE,
) -> BenchResult:
    """Export the dense network and the others to ``folder``, and time them in one run."""
    subjects = []
    for name, model in {**dense, **{name: one.model for name, one in models.items()}}.items():
        file = export_onnx(model, folder / f"{name}.onnx", input_shape=input_shape, precision=setting.precision)
        subjects.append(
            Subject(
                variant=name,
                precision=setting.precision,
                onnx_path=file.path,
                sha256=file.sha256,
                flops_fraction=models[name].flops_fraction if name in models else 1.0,
            )
        )
    request = BenchRequest(
        subjects=tuple(subjects),
        engine=setting.engine,
        batches=(setting.batch,),
        options=BenchOptions(threads=setting.threads, builds=builds),
    )
    return run_bench(request)


def told_rows(result: BenchResult, models: dict[str, Rival]) -> dict[str, Any]:
    """Each variant as JSON: its median, its latency as a share of the dense one, FLOPs, yield, importance."""
    rows = {}
    for row in result.rows:
        speedup = row.speedup_against(DENSE)
        rows[row.variant] = {
            "median_ns": row.latency_ns.p50,
            "ratio": 1.0 if speedup is None else 1 / speedup.estimate,
            "low": None if speedup is None or speedup.high is None else 1 / speedup.high,
            "high": None if speedup is None or speedup.low is None else 1 / speedup.low,
            "flops_fraction": row.flops_fraction,
            "yield": row.flop_yield,
            "importance": 1.0 if row.variant == DENSE else models[row.variant].importance,
        }
    return rows


def against(result: BenchResult, rival: str) -> dict[str, Any]:
    """How much faster the plan for the engine is than a rival, from the same builds."""
    medians = {row.variant: row.build_medians_ns for row in result.rows}
    interval = ratio_interval(medians[rival], medians[LATENCY])
    return {"estimate": interval.estimate, "low": interval.low, "high": interval.high}


def _round(one: Any) -> dict[str, Any]:
    return {
        "predicted_ns": one.predicted_ns,
        "dense_ns": one.timing.dense_ns,
        "ratio": one.timing.ratio,
        "low": one.timing.low,
        "high": one.timing.high,
    }


def _solver(fitted: FittedLatency) -> list[dict[str, Any]]:
    found = [one.allocation.solution for one in fitted.rounds]
    return [{"status": one.status, "gap": one.gap, "seconds": one.seconds} for one in found if one is not None]
