"""``p2d family``: the profile of widths that pruning found, times each of some factors, trained from scratch.

Source: Crowley et al. 2018, "A closer look at structured pruning for neural network compression": prune once, get a
family of networks. How they round is not public; here each group takes the allowed width nearest to factor x pruned
width, no more than its dense one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from prune2deploy.budget.alignment import allowed_counts
from prune2deploy.budget.allocate import Allocation
from prune2deploy.budget.from_mask import mask_from_plan
from prune2deploy.budget.plan import PrunePlan
from prune2deploy.errors import InputError
from prune2deploy.graph.channels import ChannelGraph, ChannelMask
from prune2deploy.pipeline.backends import MODULE, find_channels, refuse_edited
from prune2deploy.pipeline.comparisons import FROM_SCRATCH, train_from_scratch
from prune2deploy.pipeline.cutting import example_inputs, proven
from prune2deploy.pipeline.latency.pareto import PARETO_FAMILY
from prune2deploy.pipeline.making import PRUNED, Work
from prune2deploy.pipeline.outcomes import FamilyOutcome
from prune2deploy.pipeline.recipes import fine_tuning_recipe, scratch_recipe
from prune2deploy.pipeline.requests import FamilyRequest, TrainingChoices
from prune2deploy.pipeline.subject import DENSE, Subject, load_subject_data, open_subject
from prune2deploy.pipeline.variants import training_costs, variant_rows
from prune2deploy.progress import SILENT, Progress
from prune2deploy.run import RunFolder, RunManifest
from prune2deploy.training.recipe import TrainingRecipe

FAMILY = "family-"


@dataclass(frozen=True, kw_only=True)
class Member:
    """One network of a family. ``kept`` has shape (channel_count,); ``capped`` names the groups that stay dense-wide
    though the factor asks for more.
    """

    name: str
    factor: float
    kept: ChannelMask
    capped: tuple[str, ...]


def run_family(request: FamilyRequest, progress: Progress = SILENT) -> FamilyOutcome:
    """Make the members of a family that the run does not hold, as variants of it.

    Raises:
        InputError: there is no such run, or it holds no pruned model.
        ProofError: a cut is not exact; what was made before stays.
        StorageError: a member cannot be written; ``resume`` goes on from what is there.
    """
    run = RunFolder.open(request.run)
    _check_pruned(run)
    pruning = run.manifest.pruning
    names = tuple(f"{FAMILY}{factor:g}" for factor in request.factors)
    absent = [name for name in names if name not in run.manifest.variants]
    for name in names:
        if name not in absent:
            progress.note(f"the run holds {name} already: it is not made again")
    if absent:
        subject = open_subject(run.bundle_path(DENSE), progress=progress)
        refuse_edited(subject.model, where=str(run.path))
        work = _work(request, run, subject, progress)
        kept = mask_from_plan(work.channels.graph, work.plan)
        granule = int(pruning["alignment"])
        for factor in request.factors:
            if f"{FAMILY}{factor:g}" in absent:
                _make(work, member_of(work.channels.graph, kept, factor, granule=granule), granule=granule)
    rows = {row.name: row for row in variant_rows(run.manifest)}
    return FamilyOutcome(
        run=run.path,
        model=run.manifest.model,
        alignment=int(pruning["alignment"]),
        variants=tuple(rows[name] for name in (DENSE, PRUNED, *names)),
        costs={name: cost for name, cost in training_costs(run.manifest).items() if name in names},
        notes=tuple(note for note in run.manifest.notes if any(note.startswith(f"{name} ") for name in names)),
    )


def member_of(graph: ChannelGraph, kept: ChannelMask, factor: float, *, granule: int) -> Member:
    """The network whose widths are those of ``kept``, shape (channel_count,), times ``factor``.

    Each group takes the nearest allowed count, of two equally near the smaller; it keeps its first channels, since
    weights are drawn anew. A group that ``kept`` leaves empty stays so.
    """
    scaled = graph.everything()
    capped = []
    for group in graph.groups:
        pruned = int(kept[group.channels].sum())
        wanted = factor * pruned
        if wanted > len(group.channels):
            capped.append(group.name)
        allowed = allowed_counts(group, granule)
        count = min(allowed, key=lambda count: (abs(count - wanted), count)) if pruned else 0
        scaled[group.channels[count:]] = False
    return Member(name=f"{FAMILY}{factor:g}", factor=factor, kept=scaled, capped=tuple(capped))


def _make(work: Work, member: Member, *, granule: int) -> None:
    graph = work.channels.graph
    allocation = Allocation(
        kept=member.kept,
        flops_fraction=graph.cost.flops(member.kept) / max(graph.cost.dense_flops, 1),
        parameters_fraction=graph.cost.parameters(member.kept) / max(graph.cost.dense_parameters, 1),
        granule=granule,
    )
    provenance = {
        "method": "family",
        "factor": member.factor,
        "backend": work.channels.backend,
        "attention": work.channels.traced.attention.value,
        "alignment": granule,
    }
    with work.progress.task(f"cutting and proving {member.name}"):
        cut = proven(work.subject.model, work.channels, work.inputs, allocation, provenance, what=member.name)
    for note in _notes_of(work, member):
        work.run.note(note)
    train_from_scratch(work, member.name, cut.model, cut.plan)


def _notes_of(work: Work, member: Member) -> list[str]:
    graph, manifest = work.channels.graph, work.run.manifest
    notes = []
    if member.capped:
        share = len(member.capped) / len(graph.groups)
        notes.append(f"{member.name} cannot get wider than dense in {share:.0%} of the groups, so these stay as wide")
    widths = list(graph.kept_widths(member.kept))
    for other in (name for name in manifest.variants if name != member.name):
        if [layer.get(other) for layer in manifest.pruning["layers"]] == widths:
            notes.append(f"{member.name} has the widths of {other}")
    return notes


def _work(request: FamilyRequest, run: RunFolder, subject: Subject, progress: Progress) -> Work:
    manifest = run.manifest
    splits = load_subject_data(subject, manifest.data, progress=progress)
    inputs = example_inputs(manifest.input_shape, seed=manifest.seed)
    channels = find_channels(
        subject.model,
        inputs,
        backend=str(manifest.pruning.get("backend", MODULE)),
        attention=str(manifest.pruning["attention"]),
        progress=progress,
    )
    recipe = _recipe(manifest, subject)
    return Work(
        subject=subject,
        splits=splits,
        channels=channels,
        inputs=inputs,
        run=run,
        tuning=recipe,
        scratch=recipe,
        seed=manifest.seed,
        resume=request.resume,
        progress=progress,
        teacher=subject.model if manifest.options.get("distill") else None,
    )


def _recipe(manifest: RunManifest, subject: Subject) -> TrainingRecipe:
    """The recipe of the run's variants from scratch, or what it would have been."""
    for name, record in manifest.variants.items():
        if (name in FROM_SCRATCH or name.startswith(FAMILY)) and "recipe" in record.training:
            return TrainingRecipe.from_document(record.training["recipe"], where=name)
    options: Mapping[str, Any] = manifest.options
    if "recipe" in options:  # trained from scratch under a method
        return TrainingRecipe.from_document(options["recipe"])
    choices = TrainingChoices(**options.get("training", {}))
    tuning = fine_tuning_recipe(choices, seed=manifest.seed)
    dense_epochs = TrainingRecipe().epochs if subject.trained_epochs is None else subject.trained_epochs
    return scratch_recipe(replace(choices, learning_rate=None), seed=manifest.seed, epochs=dense_epochs + tuning.epochs)


def _check_pruned(run: RunFolder) -> None:
    manifest = run.manifest
    if DENSE in manifest.variants and PRUNED in manifest.variants and "plan" in manifest.pruning:
        if not PrunePlan.from_document(manifest.pruning["plan"], where=str(run.path)).is_empty:
            return
        raise InputError("its pruning removed nothing, so there is no profile of widths", where=str(run.path))
    held = ", ".join(manifest.variants) or "nothing yet"
    if PARETO_FAMILY in manifest.pruning:
        raise InputError(
            f"holds several pruned models ({held}), so there is no single profile of widths",
            where=str(run.path),
            hint="name a run of `p2d prune` with one target",
        )
    raise InputError(
        f"holds no pruned model ({held})",
        where=str(run.path),
        hint="name a run of `p2d prune`, or finish it with --resume",
    )
