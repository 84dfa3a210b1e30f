"""From targets to budgets, and the proven cut that meets a latency: for one-shot pruning and for policies alike."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prune2deploy.budget.from_mask import mask_from_plan
from prune2deploy.budget.ladder import Scores
from prune2deploy.budget.memory import priced_memory
from prune2deploy.budget.plan import PrunePlan
from prune2deploy.budget.target import Budget, Limit
from prune2deploy.errors import TargetError
from prune2deploy.graph.channels import ChannelGraph
from prune2deploy.graph.units import unit_model
from prune2deploy.importance.criterion import Batches
from prune2deploy.latency.setting import Setting
from prune2deploy.pipeline.backends import Channels
from prune2deploy.pipeline.bench import usable_cores
from prune2deploy.pipeline.cutting import Cut, CutChoices, proven, provenance_of, scores_for
from prune2deploy.pipeline.latency.record import latency_record
from prune2deploy.pipeline.latency.search import TOLERANCE, FittedLatency, LatencyOfEngine, Round, latency_of_engine
from prune2deploy.pipeline.making import PRUNED
from prune2deploy.pipeline.measurable import usable_engine
from prune2deploy.pipeline.record import pruning_record
from prune2deploy.pipeline.requests import LatencyTarget, Targets
from prune2deploy.pipeline.subject import Subject
from prune2deploy.progress import SILENT, Progress

_BYTES = {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2, "int8": 1}


@dataclass(frozen=True, kw_only=True)
class LatencyCut:
    """A proven cut that was measured to meet a latency.

    ``choices`` are those that were given, the budget with the latency in it; ``document`` is what the manifest keeps
    under ``latency``.
    """

    cut: Cut
    choices: CutChoices
    document: dict[str, Any]


def budget_of(targets: Targets, channels: Channels, *, batch: int, precision: str | None) -> Budget | None:
    """All targets but the latency, over the channels that may leave; None where there is no other.

    Raises:
        TargetError: there is no channel that could leave.
    """
    if not channels.graph.groups:
        raise TargetError("nothing can be pruned: every channel is frozen", hint="see why with `p2d inspect`")
    if targets.flops is None and targets.parameters is None and targets.memory is None:
        return None
    memory = None
    if targets.memory is not None:
        prices = priced_memory(
            channels.graph.cost, unit_model(channels.traced), batch=batch, bytes_each=_BYTES[precision or "fp32"]
        )
        memory = Limit(prices=prices, most=targets.memory * max(price.dense for price in prices))
    return Budget(flops=targets.flops, parameters=targets.parameters, memory=memory)


def setting_of(engine: str | None, precision: str | None, batch: int, threads: int | None) -> Setting:
    """Where latency is measured: on the best engine that runs here unless one is named, with all cores.

    Raises:
        EngineError: the engine does not run here.
        InputError: it lacks the precision.
    """
    precision = precision or "fp32"
    found = usable_engine(engine or "auto", (precision,))
    return Setting(engine=found.name, precision=precision, batch=batch, threads=threads or usable_cores())


@contextmanager
def engine_for(
    subject: Subject, channels: Channels, choices: CutChoices, setting: Setting, progress: Progress = SILENT
) -> Iterator[LatencyOfEngine]:
    """What ``subject`` takes on an engine, measured; files of whole networks last as long as this.

    Raises:
        InputError: the engine has no latencies at that precision.
        EngineError: it does not run here, or not a unit.
    """
    with tempfile.TemporaryDirectory(prefix="p2d-latency-") as folder:
        yield latency_of_engine(
            subject.model,
            channels,
            subject.input_shape,
            setting,
            granule=choices.granule or choices.default_granule,
            folder=Path(folder),
            progress=progress,
        )


def cut_to_latency(
    engine: LatencyOfEngine,
    inputs: Sequence[Any],
    target: LatencyTarget,
    choices: CutChoices,
    *,
    batches: Batches | None = None,
    scores: Scores | None = None,
    what: str = PRUNED,
    progress: Progress = SILENT,
) -> LatencyCut:
    """Remove what matters least until the measured latency meets the target, and all other targets hold; prove it.

    ``scores``, shape (channel_count,), are of the engine's channels; None takes them from ``batches``. ``what`` names
    the variant where a proof fails.

    Raises:
        TargetError: no plan reaches the targets, or nothing would be pruned.
        ProofError: the cut is not exact.
        InputError: the criterion cannot be used with what is given.
        EngineError: the engine does not run the network.
    """
    if scores is None:
        scores = scores_for(engine.model, engine.channels, choices, batches=batches, progress=progress)
    fitted = engine.fit(target, choices, scores)
    choices = with_latency(choices, fitted)
    allocation = replace(fitted.best.allocation, notes=(*fitted.best.allocation.notes, *notes_on(fitted)))
    provenance = provenance_of(engine.channels, choices, allocation, targets_of(choices, fitted))
    with progress.task("cutting and proving"):
        cut = proven(engine.model, engine.channels, inputs, allocation, provenance, what=what)
    with progress.task("what each cut lost and gained"):
        document = latency_record(engine, fitted, choices, scores)
    return LatencyCut(cut=cut, choices=choices, document=document)


def with_latency(choices: CutChoices, fitted: FittedLatency) -> CutChoices:
    """The choices, with the latency among what the budget holds."""
    budget = Budget(latency=fitted.limit) if choices.budget is None else replace(choices.budget, latency=fitted.limit)
    return replace(choices, budget=budget)


def targets_of(choices: CutChoices, fitted: FittedLatency) -> dict[str, float]:
    """All targets as fractions of the dense model, the latency as it was asked for."""
    fractions = {} if choices.budget is None else dict(choices.budget.fractions)
    asked = fitted.target.fraction
    return fractions | {"latency": fitted.target_ns / fitted.dense_ns if asked is None else asked}


def notes_on(fitted: FittedLatency) -> tuple[str, ...]:
    """What the user should know of a target that was not met to within the tolerance."""
    share = fitted.best.timing.latency_ns / fitted.target_ns
    if not fitted.met:
        return (
            f"the measured latency is {share - 1:.1%} above the target: no network of {len(fitted.rounds)} came closer",
        )
    if share < 1 - TOLERANCE:
        return (
            f"only {share:.1%} of the latency that is allowed is used: of {len(fitted.rounds)} networks no other came "
            "closer",
        )
    return ()


def measured_after(
    engine: LatencyOfEngine,
    fitted: FittedLatency,
    graph: ChannelGraph,
    plan: PrunePlan,
    choices: CutChoices,
    scores: Scores,
) -> tuple[FittedLatency, dict[str, Any]]:
    """What a plan that a policy made within the fitted budget really takes, and the document on it."""
    kept = mask_from_plan(graph, plan)
    timing = engine.measure(kept)
    timing = replace(timing, latency_ns=timing.ratio * fitted.dense_ns)
    allocation = replace(fitted.best.allocation, kept=kept, solution=None, notes=())
    last = Round(predicted_ns=engine.price.total(kept), timing=timing, allocation=allocation)
    fitted = replace(fitted, best=last, rounds=(*fitted.rounds, last), met=timing.latency_ns <= fitted.target_ns)
    return fitted, latency_record(engine, fitted, choices, scores)


def latency_pruning_record(whole: Channels, restricted: Channels, measured: LatencyCut) -> dict[str, Any]:
    """The record of a pruning to a latency, of which the latency was measured and not predicted."""
    record = pruning_record(whole, restricted, measured.cut, measured.choices)
    record["achieved"]["latency"] = measured.document["ratio"]
    return record | {"latency": measured.document}
