"""``p2d prune --pareto``: of one model a network for each of several latencies, as variants of one run."""

from collections.abc import Mapping, Sequence
from typing import Any

from prune2deploy.budget.ladder import Scores
from prune2deploy.budget.plan import PrunePlan
from prune2deploy.errors import TargetError
from prune2deploy.pipeline.backends import Channels
from prune2deploy.pipeline.cutting import CutChoices, inexact_note
from prune2deploy.pipeline.latency.cut import cut_to_latency, latency_pruning_record
from prune2deploy.pipeline.latency.search import LatencyOfEngine
from prune2deploy.pipeline.making import PRUNED, Work, make_pruned
from prune2deploy.pipeline.requests import LatencyTarget
from prune2deploy.progress import SILENT, Progress

PARETO_FAMILY = "family"
_OF_EACH = ("targets", "achieved", "alignment", "proof_relative_error", "inexact", "plan", "latency")


def member_name(fraction: float) -> str:
    """The variant that is cut to ``fraction`` of the dense latency."""
    return f"{PRUNED}-{fraction:g}"


def cut_family(
    engine: LatencyOfEngine,
    whole: Channels,
    inputs: Sequence[Any],
    fractions: Sequence[float],
    choices: CutChoices,
    *,
    scores: Scores,
    progress: Progress = SILENT,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Cut the engine's model to each of ``fractions`` of its latency: what the manifest keeps of that, and what to say.

    ``whole`` are all channels of the model; ``scores``, shape (channel_count,), are of the engine's.

    Raises:
        TargetError: no plan reaches one of them, or nothing would be pruned.
        ProofError: a cut is not exact.
        EngineError: the engine does not run a network.
    """
    members, notes = {}, []
    for fraction in fractions:
        name = member_name(fraction)
        target = LatencyTarget(fraction=fraction)
        try:
            measured = cut_to_latency(engine, inputs, target, choices, scores=scores, what=name, progress=progress)
        except TargetError as error:
            raise TargetError(f"{name}: {error.what}", where=error.where, hint=error.hint) from error
        members[name] = latency_pruning_record(whole, engine.channels, measured)
        said = (*measured.cut.allocation.notes, *inexact_note(members[name]["inexact"]))
        notes += [f"{name}: {note}" for note in said]
    return family_record(members), tuple(notes)


def family_record(members: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What the manifest keeps of a family, from what it would keep of each member by itself; by variant.

    What is the same for all stands as it does for one network; the rest under ``family``, by variant. ``layers`` have
    the widths of all members side by side, ``alignment`` is the finest granule among them.
    """
    first = next(iter(members.values()))
    shared = {name: value for name, value in first.items() if name not in (*_OF_EACH, "layers")}
    rows = [[_renamed(layer, name) for layer in member["layers"]] for name, member in members.items()]
    return {
        **shared,
        "alignment": min(int(member["alignment"]) for member in members.values()),
        "layers": [_merged(layer) for layer in zip(*rows, strict=True)],
        PARETO_FAMILY: {
            name: {key: member[key] for key in _OF_EACH if key in member} for name, member in members.items()
        },
    }


def make_members(work: Work) -> None:
    """Every member of the run's family that it does not hold: cut from the dense model by its plan, and fine-tuned.

    Raises:
        StorageError: a variant cannot be written; the run is as it was.
    """
    for name, member in work.run.manifest.pruning[PARETO_FAMILY].items():
        make_pruned(work, name=name, plan=PrunePlan.from_document(member["plan"], where=str(work.run.path)))


def _renamed(layer: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A layer with its pruned width and FLOPs under the name of a member."""
    names = {PRUNED: name, f"flops_{PRUNED}": f"flops_{name}"}
    return {names.get(key, key): value for key, value in layer.items()}


def _merged(rows: tuple[Mapping[str, Any], ...]) -> dict[str, Any]:
    return {key: value for row in rows for key, value in row.items()}
