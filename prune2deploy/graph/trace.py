"""From a module to its channel graph: export, interpret, resolve."""

import io
import traceback
import warnings
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.export import ExportedProgram

from prune2deploy.errors import ModelError
from prune2deploy.graph.branches import with_branches
from prune2deploy.graph.channels import ChannelGraph
from prune2deploy.graph.inline import inline_wrappers, write_scales
from prune2deploy.graph.interpret import Interpretation, interpret, tensors_of
from prune2deploy.graph.labels import AttentionAxis
from prune2deploy.graph.parts import advice, exportable_parts
from prune2deploy.graph.resolve import ReadDimension, channels_of_labels, resolve

_DEPENDS_ON_DATA = "data-dependent expression"
_LONGEST_SUMMARY = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A model's channel graph, with what proofs and graph editing need beside it.

    ``program`` is the exported dense model and ``interpretation`` the labels of its values. ``reads`` are the places
    where channels are summed over, ``norms`` those where statistics are taken over channels. ``channel_of_label`` has
    shape (label count,): the channel of each label of ``interpretation``, -1 where it stays. ``sizes_are_free``:
    sizes written in the code were no constraint, so the plan is for editing the graph, not for slicing the module.
    ``attention`` is what was to leave attentions.
    """

    graph: ChannelGraph
    program: ExportedProgram
    reads: tuple[ReadDimension, ...]
    norms: tuple[ReadDimension, ...]
    interpretation: Interpretation
    channel_of_label: NDArray[np.int64]
    sizes_are_free: bool = False
    attention: AttentionAxis = AttentionAxis.HEADS

    def without_groups(self, reasons: Mapping[int, str], *, lines: Mapping[int, str] | None = None) -> "Trace":
        """The trace in which some groups cannot leave: group index to the reason, which is kept for the user.

        ``lines``: of some of them, the source line at fault, as ``file:line``.
        """
        if not reasons:
            return self
        number = self.graph.numbers_without(reasons)
        return replace(
            self,
            graph=self.graph.without_groups(reasons, lines=lines),
            reads=tuple(replace(one, channels=number[one.channels]) for one in self.reads),
            norms=tuple(replace(one, channels=number[one.channels]) for one in self.norms),
            channel_of_label=number[self.channel_of_label],
        )

    def interpreted_again(self, model: nn.Module, program: ExportedProgram) -> tuple[Interpretation, NDArray[np.int64]]:
        """Another export of the traced model (other mode, dynamic batch): its values, and the channel of each label.

        The second result has shape (label count of that interpretation,), with the channels of this trace.

        Raises:
            ModelError: some size in the program depends on data.
        """
        _prepare(program, sizes_are_free=self.sizes_are_free)
        other = interpret(program, tensors_of(model), sizes_are_free=self.sizes_are_free, attention=self.attention)
        return other, channels_of_labels(other.labelling, self.channel_of_label)


def trace(
    model: nn.Module,
    example_inputs: torch.Tensor | Sequence[Any],
    *,
    sizes_are_free: bool = False,
    attention: AttentionAxis = AttentionAxis.HEADS,
) -> Trace:
    """Trace ``model`` in evaluation mode and find its channels.

    ``example_inputs`` are the positional arguments of ``forward``; with a batch of 1, FLOPs are those of one input.
    ``sizes_are_free``: sizes written in the code (of splits, slices, paddings) are no constraint, because they will be
    rewritten in the exported program. ``attention``: whole heads leave attentions, or the same positions of every head.
    The model is left as it was.

    Raises:
        ModelError: ``torch.export`` cannot trace the model; the message names the line.
    """
    inputs = (example_inputs,) if isinstance(example_inputs, torch.Tensor) else tuple(example_inputs)
    program = export_program(model, inputs)
    return trace_program(model, program, sizes_are_free=sizes_are_free, attention=attention)


def trace_program(
    model: nn.Module,
    program: ExportedProgram,
    *,
    sizes_are_free: bool = False,
    attention: AttentionAxis = AttentionAxis.HEADS,
) -> Trace:
    """Find the channels of ``model`` in ``program``, its own export.

    Raises:
        ModelError: some size in the program depends on data.
    """
    _prepare(program, sizes_are_free=sizes_are_free)
    tensors = tensors_of(model)
    interpretation = interpret(program, tensors, sizes_are_free=sizes_are_free, attention=attention)
    resolved = resolve(interpretation.labelling, tensors)
    graph = resolved.graph
    if not sizes_are_free:  # an edited graph has no modules that could be replaced
        graph = with_branches(graph, program, interpretation, resolved.channel_of_label)
    return Trace(
        graph=graph,
        program=program,
        reads=resolved.reads,
        norms=resolved.norms,
        interpretation=interpretation,
        channel_of_label=resolved.channel_of_label,
        sizes_are_free=sizes_are_free,
        attention=attention,
    )


def _prepare(program: ExportedProgram, *, sizes_are_free: bool) -> None:
    inline_wrappers(program)
    if sizes_are_free:
        write_scales(program)


def export_program(
    model: nn.Module, inputs: tuple[Any, ...], *, training: bool = False, dynamic_batch: bool = False
) -> ExportedProgram:
    """``torch.export`` in one of the modes, with its errors translated and its chatter kept quiet.

    With ``dynamic_batch`` the first dimension of all tensor inputs is one free size; ``inputs`` then have a batch of 2
    or more. The model is left as it was.

    Raises:
        ModelError: it cannot be traced; the message names the line.
    """
    was_training = {module: module.training for module in model.modules()}
    model.train(training)
    batch = {0: torch.export.Dim("batch")}
    sizes = torch.utils._pytree.tree_map(
        lambda one: batch if isinstance(one, torch.Tensor) and one.dim() > 0 else None, inputs
    )
    try:
        # What it cannot follow, torch.export prints whole to standard error.
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()), torch.set_grad_enabled(training):
            warnings.simplefilter("ignore")
            return torch.export.export(model, inputs, dynamic_shapes=sizes if dynamic_batch else None, strict=False)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise _untraceable(model, inputs, error, seek_parts=not training and not dynamic_batch) from error
    finally:
        for module, mode in was_training.items():
            module.training = mode


def _untraceable(model: nn.Module, inputs: tuple[Any, ...], error: Exception, *, seek_parts: bool) -> ModelError:
    """Why a model was not exported: its code fails by itself on these inputs, or ``torch.export`` cannot follow it.

    With ``seek_parts`` the largest parts are named that can be exported by themselves.
    """
    try:
        with torch.no_grad():
            model(*torch.utils._pytree.tree_map_only(torch.Tensor, torch.Tensor.clone, inputs))
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as own:  # noqa: BLE001  # told to the user, whatever it is
        shapes = [tuple(one.shape) for one in torch.utils._pytree.tree_leaves(inputs) if isinstance(one, torch.Tensor)]
        return ModelError(
            f"the model fails on inputs of shape {', '.join(map(str, shapes))}: {_summary(own)}",
            where=_line_in_user_code(own),
            hint="pass the input size that it expects with --input",
        )
    return ModelError(
        f"the model cannot be exported: {_summary(error)}",
        where=_line_in_user_code(error),
        hint=(advice(exportable_parts(model, inputs, _removable_flops)) if seek_parts else None)
        or "rewrite that line without control flow on data: what torch.export cannot trace cannot be deployed",
    )


def _removable_flops(part: nn.Module, inputs: tuple[Any, ...]) -> int:
    """The FLOPs of a part that can be exported, 0 where nothing can leave it."""
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.export.export(part.eval(), inputs, strict=False)
    graph = trace_program(part, program).graph
    return graph.cost.dense_flops if graph.groups else 0


def _summary(error: Exception) -> str:
    said = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if _DEPENDS_ON_DATA in said:
        return "a size in it depends on data"
    return said if len(said) <= _LONGEST_SUMMARY else f"{said[:_LONGEST_SUMMARY]} ..."


def _line_in_user_code(error: BaseException) -> str | None:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/torch/" not in frame.filename]
    outside = [frame for frame in frames if frame.filename != __file__]
    return f"{outside[-1].filename}:{outside[-1].lineno}" if outside else None
