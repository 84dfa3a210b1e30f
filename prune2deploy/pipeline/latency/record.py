"""What the manifest keeps of a latency target: what was measured, and what each cut lost and gained."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prune2deploy.budget.ladder import Ladder, Scores
from prune2deploy.budget.optimal import cheapest_worth
from prune2deploy.budget.priced import Priced, priced_flops
from prune2deploy.budget.running import Move, Running
from prune2deploy.engines.registry import engine_named
from prune2deploy.graph.channels import ChannelGraph
from prune2deploy.pipeline.cutting import CutChoices
from prune2deploy.pipeline.latency.search import FittedLatency, LatencyOfEngine, Round


def latency_record(
    engine: LatencyOfEngine, fitted: FittedLatency, choices: CutChoices, scores: Scores
) -> dict[str, Any]:
    """The JSON object that the manifest has under ``latency``, and that the report explains.

    ``scores``, shape (channel_count,), are those that ``fitted`` was found with. Times are in ns; a group's
    ``saved_ns`` is what the pruned network would take longer if that group alone were whole.
    """
    graph = engine.channels.graph
    allocation = fitted.best.allocation
    ladder = Ladder.of(graph, scores, allocation.granule)
    counts = np.array([int(allocation.kept[group.channels].sum()) for group in graph.groups], dtype=np.int64)
    (price,) = fitted.limit.prices
    running = Running(graph, (price,), counts)
    flop_optimal = cheapest_worth(
        ladder,
        priced_flops(graph.cost),
        counts,
        at_least=ladder.worth_of(counts),
        seconds=choices.solver_seconds,
    )
    timing = fitted.best.timing
    return {
        "engine": fitted.setting.engine,
        "precision": fitted.setting.precision,
        "batch": fitted.setting.batch,
        "threads": fitted.setting.threads,
        "device": engine_named(fitted.setting.engine).availability().device,
        "target": {"fraction": fitted.target.fraction, "ns": fitted.target_ns},
        "dense_ns": engine.dense_ns,
        "pruned_ns": timing.latency_ns,
        "ratio": timing.ratio,
        "low": timing.low,
        "high": timing.high,
        "met": fitted.met,
        "rounds": [_round_document(one, choices) for one in fitted.rounds],
        "correction": {"offset_ns": fitted.correction.offset_ns, "scale": fitted.correction.scale},
        "groups": _group_rows(graph, ladder, counts, running, flop_optimal),
        "branches": _branch_rows(graph, ladder, counts, running),
        "flop_optimal": None if flop_optimal is None else _flop_optimal(graph, ladder, price, flop_optimal),
        "importance_kept": float(np.exp(ladder.worth_of(counts))),
        "unpriced": dict(engine.units.unpriced),
        "table": {
            "measured": engine.table.measured,
            "reused": engine.table.reused,
            "seconds": engine.table.seconds,
            "spread": engine.table.spread,
        },
    }


def _round_document(one: Round, choices: CutChoices) -> dict[str, Any]:
    solution = one.allocation.solution
    return {
        "predicted_ns": one.predicted_ns,
        "measured_ns": one.timing.latency_ns,
        "ratio": one.timing.ratio,
        "low": one.timing.low,
        "high": one.timing.high,
        "solver": {
            "status": None if solution is None else solution.status,
            "gap": None if solution is None else solution.gap,
            "seconds": None if solution is None else solution.seconds,
            "ranking": choices.ranking,
        },
    }


def _group_rows(
    graph: ChannelGraph,
    ladder: Ladder,
    counts: NDArray[np.int64],
    running: Running,
    flop_optimal: NDArray[np.bool_] | None,
) -> list[dict[str, Any]]:
    gone = {group for branch in graph.branches if not counts[list(branch.groups)].any() for group in branch.groups}
    return [
        {
            "name": group.name,
            "dense": group.width,
            "kept": int(counts[group.index]) * group.positions,
            "importance_lost": _lost(ladder, {group.index: int(counts[group.index])}),
            # A group that left with its branch gains what the branch does.
            "saved_ns": 0.0 if group.index in gone else _saved(running, {group.index: len(group.channels)}),
            "flop_optimal": None if flop_optimal is None else int(flop_optimal[group.channels].sum()) * group.positions,
        }
        for group in graph.groups
    ]


def _branch_rows(
    graph: ChannelGraph, ladder: Ladder, counts: NDArray[np.int64], running: Running
) -> list[dict[str, Any]]:
    rows = []
    for branch in graph.branches:
        removed = not counts[list(branch.groups)].any()
        whole: Sequence[int] = [len(graph.groups[group].channels) for group in branch.groups]
        rows.append(
            {
                "name": branch.name,
                "removed": removed,
                "importance_lost": _lost(ladder, dict.fromkeys(branch.groups, 0)) if removed else 0.0,
                "saved_ns": _saved(running, dict(zip(branch.groups, whole, strict=True))) if removed else 0.0,
            }
        )
    return rows


def _flop_optimal(graph: ChannelGraph, ladder: Ladder, price: Priced, kept: NDArray[np.bool_]) -> dict[str, float]:
    counts = np.array([int(kept[group.channels].sum()) for group in graph.groups], dtype=np.int64)
    return {
        "predicted_ns": price.total(kept),
        "importance_kept": float(np.exp(ladder.worth_of(counts))),
        "flops_fraction": graph.cost.flops(kept) / max(graph.cost.dense_flops, 1),
    }


def _lost(ladder: Ladder, move: Move) -> float:
    """The share of the model's importance that goes with these counts alone."""
    return 1 - float(np.exp(sum(ladder.worth(group, count) for group, count in move.items())))


def _saved(running: Running, whole: Move) -> float:
    """What the network would take longer with these groups whole. Unit: ns."""
    return float(running.change(whole)[0])
