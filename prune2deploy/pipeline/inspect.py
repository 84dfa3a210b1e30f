"""``p2d inspect``: what a model is, what can leave it, and what cannot and why."""

from pathlib import Path

from prune2deploy.budget.from_mask import mask_from_plan
from prune2deploy.budget.plan import PrunePlan
from prune2deploy.graph.channels import ChannelGraph
from prune2deploy.pipeline.alignment import alignment_report, models_of
from prune2deploy.pipeline.backends import MODULE, find_channels
from prune2deploy.pipeline.cutting import example_inputs
from prune2deploy.pipeline.frozen import frozen_rows
from prune2deploy.pipeline.outcomes import GroupRow, InspectOutcome
from prune2deploy.pipeline.requests import InspectRequest
from prune2deploy.pipeline.restrictions import Restrictions, reasons_to_stay
from prune2deploy.pipeline.subject import named_subject
from prune2deploy.pipeline.variants import variant_rows
from prune2deploy.progress import SILENT, Progress
from prune2deploy.run import MANIFEST, RunFolder


def run_inspect(request: InspectRequest, progress: Progress = SILENT) -> InspectOutcome:
    """Trace a checkpoint, a model spec or a run, and tell its groups, widths and costs, and what an engine pads.

    Raises:
        InputError, CheckpointError, ModelError: the subject cannot be read or traced.
    """
    run = _run(request)
    subject = named_subject(
        request.subject,
        model=request.model,
        input_shape=request.input_shape,
        trust_pickle=request.trust_pickle,
        progress=progress,
    )
    inputs = example_inputs(subject.input_shape)
    channels = find_channels(
        subject.model,
        inputs,
        backend=_backend(run, request),
        attention=_attention(run, request),
        progress=progress,
    )
    channels = channels.without_groups(reasons_to_stay(channels.graph, Restrictions(scope=request.scope)))
    graph = channels.graph
    widths = _pruned_widths(run, graph)
    alignment = None
    if request.engine is not None or request.precision is not None:
        models = iter([(subject.spec.name, subject.model)])
        alignment = alignment_report(
            models_of(run, subject.model, progress=progress) if run is not None else models,
            inputs,
            graph,
            engine=request.engine,
            precision=request.precision,
        )
    return InspectOutcome(
        model=str(subject.spec),
        input_shape=subject.input_shape,
        flops=graph.cost.dense_flops,
        parameters=graph.cost.dense_parameters,
        groups=tuple(
            GroupRow(
                name=group.name,
                width=group.width,
                channels=len(group.channels),
                exact=group.exact,
                stream=group.stream,
                pruned_width=None if widths is None else widths[group.index],
            )
            for group in graph.groups
        ),
        frozen=frozen_rows(graph),
        variants=variant_rows(run.manifest) if run is not None else (),
        notes=(*subject.notes, *channels.notes),
        backend=channels.backend,
        alignment=alignment,
    )


def _run(request: InspectRequest) -> RunFolder | None:
    path = Path(request.subject)
    return RunFolder.open(path) if (path / MANIFEST).is_file() else None


def _backend(run: RunFolder | None, request: InspectRequest) -> str:
    """That of the run's pruning, so that its plan fits; else what was asked for."""
    pruning = run.manifest.pruning if run is not None else {}
    return str(pruning.get("backend", MODULE)) if pruning else request.backend


def _attention(run: RunFolder | None, request: InspectRequest) -> str:
    """That of the run's pruning, so that its plan fits; else what was asked for."""
    pruning = run.manifest.pruning if run is not None else {}
    return str(pruning.get("attention", request.attention))


def _pruned_widths(run: RunFolder | None, graph: ChannelGraph) -> tuple[int, ...] | None:
    if run is None or "plan" not in run.manifest.pruning:  # not pruned, or into several networks
        return None
    plan = PrunePlan.from_document(run.manifest.pruning["plan"], where=str(run.path))
    return graph.kept_widths(mask_from_plan(graph, plan))
