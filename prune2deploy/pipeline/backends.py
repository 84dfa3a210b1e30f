"""Which way to cut a model: slicing its modules, or editing its exported graph where sizes stand in the code."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from prune2deploy.budget.from_mask import plan_from_mask
from prune2deploy.budget.plan import PrunePlan
from prune2deploy.errors import InputError, ModelError, ProofError
from prune2deploy.graph.channels import ChannelGraph
from prune2deploy.graph.labels import AttentionAxis
from prune2deploy.graph.trace import Trace, export_program, trace, trace_program
from prune2deploy.pipeline.choices import ATTENTION, BACKENDS, known
from prune2deploy.progress import SILENT, Progress
from prune2deploy.surgery.apply import pruned_copy
from prune2deploy.surgery.edit import Editor
from prune2deploy.surgery.edited import EditedModule
from prune2deploy.surgery.equality import FORWARD_ERRORS, compared
from prune2deploy.surgery.trial import (
    keep_what_cannot_leave,
    randomised_copy,
    trial_is_exact,
    trial_mask,
    without_culprits,
)

AUTO = "auto"
MODULE = "module"
GRAPH = "graph"
_WORTH_EDITING = 0.005
"""Share of the dense FLOPs that halving must remove beyond slicing before ``auto`` gives up the user's own class."""


@dataclass(frozen=True, kw_only=True)
class Channels:
    """A model's channels as one of the backends can remove them. ``editor`` None: by slicing its modules.

    ``notes`` say why that backend was taken, where there was a choice.
    """

    traced: Trace
    editor: Editor | None = None
    notes: tuple[str, ...] = ()

    @property
    def backend(self) -> str:
        """``module`` or ``graph``."""
        return MODULE if self.editor is None else GRAPH

    @property
    def graph(self) -> ChannelGraph:
        """The channels themselves."""
        return self.traced.graph

    def without_groups(self, reasons: dict[int, str]) -> "Channels":
        """These channels, of which some groups cannot leave: group index to the reason, which is kept for the user."""
        return replace(self, traced=self.traced.without_groups(reasons))

    def cut(self, model: nn.Module, plan: PrunePlan) -> nn.Module:
        """``model`` without what ``plan`` removes; it stays whole.

        Raises:
            InputError: the plan belongs to another model.
            ProofError: the plan cannot be carried out.
        """
        return pruned_copy(model, plan) if self.editor is None else self.editor.edited_copy(model, plan)


def find_channels(
    model: nn.Module,
    inputs: Sequence[Any],
    *,
    backend: str = AUTO,
    attention: str = AttentionAxis.HEADS,
    progress: Progress = SILENT,
) -> Channels:
    """The channels of ``model`` that can leave without breaking its code. ``inputs`` have a batch of 1.

    ``auto`` slices modules, unless sizes written in the code keep channels in place that editing the graph frees. Where
    slicing fails on trial, the graph is edited; which groups made it fail is found out only if that cannot be done.
    ``attention``: whole ``heads`` leave attentions, or the same positions of every head (``head-dim``).

    Raises:
        InputError: there is no such backend, or no such part of attentions.
        ModelError: the model cannot be exported; with ``graph`` also: not in training mode or with a free batch size.
        ProofError: ``graph`` was asked for, and a cut on trial is not exact.
    """
    known(backend, BACKENDS, where="backend")
    axis = AttentionAxis(known(attention, ATTENTION, where="attention"))
    if isinstance(model, EditedModule):  # an edited graph holds its sizes as constants, and has no modules to slice
        return Channels(traced=trace(model, inputs, attention=axis))
    with progress.task("tracing the model", total=3) as task:
        program = export_program(model, tuple(inputs))
        task.advance()
        sample = randomised_copy(model, inputs=inputs)
        if backend == GRAPH:
            task.describe("editing the graph on trial")
            free = trace_program(model, program, sizes_are_free=True, attention=axis)
            return Channels(traced=free, editor=_tried_editor(model, sample, free, inputs))
        task.describe("cutting on trial")
        sliced = trace_program(model, program, attention=axis)
        slices = trial_is_exact(sliced, sample, inputs)
        task.advance()
        note = None
        if backend == AUTO:
            free = trace_program(model, program, sizes_are_free=True, attention=axis)
            gain = _halved_flops(sliced.graph) - _halved_flops(free.graph)
            if not slices or gain >= _WORTH_EDITING:
                task.describe("editing the graph on trial")
                try:
                    editor = _tried_editor(model, sample, free, inputs)
                except (ModelError, ProofError) as error:
                    note = (
                        f"modules are sliced: editing the graph would let more leave, but cannot be done here ({error})"
                    )
                else:
                    return Channels(traced=free, editor=editor, notes=(_why_edited(gain if slices else None),))
        if not slices:
            task.describe("looking for the sizes written in the code")
            sliced = without_culprits(sliced, sample, inputs)
        sliced = keep_what_cannot_leave(sliced, sample, inputs)
        return Channels(traced=sliced, notes=() if note is None else (note,))


def _why_edited(gain: float | None) -> str:
    """The note for the user; ``gain`` None where finding out what slicing would leave was spared."""
    if gain is None:
        return (
            "the exported graph is edited instead of slicing modules: sizes written in the code keep channels in place"
        )
    return (
        f"the exported graph is edited instead of slicing modules: halving takes {gain:.1%} more of the FLOPs, "
        "which sizes or data in the code would keep in place"
    )


def refuse_edited(model: nn.Module, *, where: str | None = None) -> None:
    """Refuse a model that was pruned by graph editing: its graph cannot be cut again.

    Raises:
        InputError: it was.
    """
    if isinstance(model, EditedModule):
        raise InputError(
            "was pruned by editing its graph, which cannot be cut again",
            where=where,
            hint="prune the dense model again, to the smaller target",
        )


def _halved_flops(graph: ChannelGraph) -> float:
    """The share of the dense FLOPs that half of each group would leave."""
    kept = graph.everything()
    for group in graph.groups:
        kept[group.channels[(len(group.channels) + 1) // 2 :]] = False
    return graph.cost.flops(kept) / max(graph.cost.dense_flops, 1)


def _tried_editor(model: nn.Module, sample: nn.Module, traced: Trace, inputs: Sequence[Any]) -> Editor:
    """The editor, once a cut of all groups of ``sample``, a randomised copy, equals its gated dense self."""
    editor = Editor.of(model, traced, inputs)
    kept = trial_mask(traced.graph, range(len(traced.graph.groups)))
    edited = editor.edited_copy(sample, plan_from_mask(traced.graph, kept))
    try:
        comparison = compared(traced, sample, edited, kept, inputs)
    except FORWARD_ERRORS as error:
        summary = (str(error).splitlines() or [type(error).__name__])[0]
        raise ProofError(f"the edited graph does not run: {summary}", where="graph editing") from error
    if comparison.fault is not None:
        raise ProofError(
            f"the edited graph is not the dense one without those channels: {comparison.fault}", where="graph editing"
        )
    return editor
