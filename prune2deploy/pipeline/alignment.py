"""The alignment report: which layers of a model are padded by an engine, and what that costs."""

from collections.abc import Iterator, Mapping

import numpy as np
from torch import Tensor, nn

from prune2deploy.budget.alignment import granule_for, is_narrow
from prune2deploy.budget.padding import PaddedLayer, Side, padded
from prune2deploy.checkpoint.bundle import load_bundle
from prune2deploy.graph.channels import FROZEN, Axis, ChannelGraph, Role
from prune2deploy.graph.layers import layers_of
from prune2deploy.pipeline.frozen import named_layers
from prune2deploy.pipeline.outcomes import AlignmentReport, PaddedRow, VariantAlignment, WidthRow
from prune2deploy.progress import SILENT, Progress
from prune2deploy.run import RunFolder
from prune2deploy.surgery.evaluation_mode import copied, left_as_it_was

ANY_ENGINE = "auto"
PRUNABLE, NARROW, FIXED, ACTIVATION = "prunable", "narrow", "fixed", "activation"

Sides = Mapping[tuple[str, Role], str]


def alignment_report(
    models: Iterator[tuple[str, nn.Module]],
    inputs: tuple[Tensor],
    graph: ChannelGraph,
    *,
    engine: str | None = None,
    precision: str | None = None,
) -> AlignmentReport:
    """How the widths of ``models`` (name, module) suit ``engine`` at ``precision`` (None: any engine, fp32).

    ``inputs`` is a batch of 1, which each model runs once. ``graph`` is that of the dense one, and says what can be
    cut; modules of the others have the same names.
    """
    chosen = None if engine in (None, ANY_ENGINE) else engine
    precision = precision or "fp32"
    granule = granule_for(chosen, precision)
    states = _states(graph, granule)
    return AlignmentReport(
        engine=chosen,
        precision=precision,
        granule=granule,
        variants=tuple(_of_variant(name, model, inputs, granule, states, graph.aliases) for name, model in models),
    )


def models_of(run: RunFolder, dense: nn.Module, *, progress: Progress = SILENT) -> Iterator[tuple[str, nn.Module]]:
    """The variants of a run by name, one in memory at a time besides ``dense``, which is read already."""
    with progress.task("reading variants", total=len(run.manifest.variants)) as task:
        for name in run.manifest.variants:
            task.describe(name)
            yield name, dense if name == "dense" else load_bundle(run.bundle_path(name)).model
            task.advance()


def _of_variant(
    name: str,
    model: nn.Module,
    inputs: tuple[Tensor],
    granule: int,
    states: Sides,
    aliases: Mapping[str, str],
) -> VariantAlignment:
    with left_as_it_was(model, training=False):
        layers = [padded(layer, granule) for layer in layers_of(model, copied(inputs))]
    flops, lost = sum(one.layer.flops for one in layers), sum(one.flops_lost for one in layers)
    alike: dict[tuple[str, int, WidthRow, WidthRow], list[PaddedLayer]] = {}
    for one in layers:
        if one.flops_lost:
            sides = _width(one, Role.CONSUMER, states, aliases), _width(one, Role.PRODUCER, states, aliases)
            alike.setdefault((one.layer.operator, one.layer.groups, *sides), []).append(one)
    rows = [
        PaddedRow(
            layers=(names := tuple(dict.fromkeys(one.layer.name for one in members))),
            named=named_layers(names),
            operator=operator,
            groups=groups,
            input=read,
            output=made,
            flops=sum(one.layer.flops for one in members),
            flops_lost=sum(one.flops_lost for one in members),
            share=sum(one.flops_lost for one in members) / (flops + lost),
        )
        for (operator, groups, read, made), members in alike.items()
    ]
    return VariantAlignment(
        variant=name,
        flops=flops,
        flops_lost=lost,
        padding_share=lost / max(flops + lost, 1),
        layers_total=len(layers),
        layers_padded=sum(1 for one in layers if one.flops_lost),
        rows=tuple(sorted(rows, key=lambda row: -row.flops_lost)),
    )


def _width(one: PaddedLayer, role: Role, states: Sides, aliases: Mapping[str, str]) -> WidthRow:
    side: Side = one.output if role is Role.PRODUCER else one.input
    weight = one.layer.weight
    # A depthwise kernel rides on the channels it reads: it makes and takes the same ones.
    owner = Role.AFFINE if one.layer.depthwise else role
    state = ACTIVATION if weight is None else states.get((aliases.get(weight, weight), owner), FIXED)
    return WidthRow(width=side.width, below=side.below, above=side.above, state=state)


def _states(graph: ChannelGraph, granule: int) -> Sides:
    """What may become of each dimension of a weight that holds channels."""
    return {(axis.tensor, axis.role): _state(graph, axis, granule) for axis in graph.axes if axis.learnable}


def _state(graph: ChannelGraph, axis: Axis, granule: int) -> str:
    channels = axis.channels[axis.channels != FROZEN]
    if not len(channels):
        return FIXED
    groups = np.unique(graph.group_of[channels])
    return NARROW if all(is_narrow(graph.groups[index], granule) for index in groups) else PRUNABLE
