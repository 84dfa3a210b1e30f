"""The Python face of pruning: a module in, a smaller module out, proven."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from prune2deploy.budget.alignment import granule_for
from prune2deploy.budget.plan import PrunePlan
from prune2deploy.budget.target import Budget
from prune2deploy.errors import InputError
from prune2deploy.graph.labels import AttentionAxis
from prune2deploy.importance.criterion import Batches
from prune2deploy.pipeline.backends import AUTO, find_channels, refuse_edited
from prune2deploy.pipeline.cutting import CutChoices, cut_to_budget, inexact_cuts, inexact_note, layer_widths
from prune2deploy.pipeline.frozen import frozen_rows
from prune2deploy.pipeline.prune import DATA_FREE_METHOD
from prune2deploy.pipeline.restrictions import Restrictions, reasons_to_stay
from prune2deploy.progress import SILENT, Progress


@dataclass(frozen=True, kw_only=True)
class PruneResult:
    """A pruned module, the plan that made it, and a report of what was done.

    ``model`` is a copy of the module that was given, sliced: same class, same attribute names, smaller tensors. Where
    its graph was edited (``report["backend"]`` is ``graph``), it is an ``EditedModule`` with the same tensor names.
    ``report`` is a JSON object: FLOPs and parameters achieved, widths by layer, what is frozen and why, the proof.
    """

    model: nn.Module
    plan: PrunePlan
    report: dict[str, Any]


def prune_module(
    model: nn.Module,
    example_input: torch.Tensor | Sequence[Any],
    *,
    flops: float | None = None,
    params: float | None = None,
    method: str = DATA_FREE_METHOD,
    batches: Batches | None = None,
    ranking: str = "global",
    scope: str = "all",
    protect: Sequence[str] = (),
    only: Sequence[str] = (),
    exact_only: bool = False,
    backend: str = AUTO,
    attention: str = AttentionAxis.HEADS,
    align: int | None = None,
    seed: int = 0,
    progress: Progress = SILENT,
) -> PruneResult:
    """Prune any module that ``torch.export`` can trace; ``model`` itself stays whole.

    ``example_input`` are the positional arguments of ``forward``, tensors with a batch of 1 (of a larger one, the
    first sample is taken). ``flops`` and ``params`` are the fractions that may stay. ``batches`` of (images, labels)
    are for methods that need data. ``protect`` and ``only`` are shell patterns for names of layers; ``exact_only``
    leaves out cuts that change the statistics of a norm. ``backend`` is ``module`` (slice the modules), ``graph`` (edit
    the exported graph) or ``auto``. ``attention``: whole ``heads`` leave, or the same positions of every head
    (``head-dim``). ``align`` is the granule of widths, None for 16 where the target allows it, 1 for none.

    Raises:
        InputError: a value cannot be used.
        ModelError: the model cannot be exported.
        TargetError: no plan reaches the target, or nothing would be pruned.
        ProofError: the cut is not exact.
    """
    if align is not None and align < 1:
        raise InputError(f"is {align}", where="align", hint="pass a number of channels from 1 on")
    given = (example_input,) if isinstance(example_input, torch.Tensor) else tuple(example_input)
    inputs = tuple(one[:1] if isinstance(one, torch.Tensor) and one.dim() > 0 else one for one in given)
    refuse_edited(model, where=type(model).__name__)
    channels = find_channels(model, inputs, backend=backend, attention=attention, progress=progress)
    restrictions = Restrictions(scope=scope, protect=tuple(protect), only=tuple(only), exact_only=exact_only)
    channels = channels.without_groups(reasons_to_stay(channels.graph, restrictions))
    choices = CutChoices(
        budget=Budget(flops=flops, parameters=params),
        method=method,
        ranking=ranking,
        granule=align,
        default_granule=granule_for(),
        seed=seed,
    )
    cut = cut_to_budget(model, channels, inputs, choices, batches=batches, progress=progress)
    inexact = inexact_cuts(channels.graph, cut.allocation.kept)
    report = {
        "backend": channels.backend,
        "attention": channels.traced.attention.value,
        "flops": cut.proof.flops,
        "parameters": cut.proof.parameters,
        "flops_fraction": cut.allocation.flops_fraction,
        "parameters_fraction": cut.allocation.parameters_fraction,
        "alignment": cut.allocation.granule,
        "proof_relative_error": cut.proof.relative_error,
        "layers": layer_widths(channels.graph, {"pruned": cut.allocation.kept}),
        "frozen": [asdict(row) for row in frozen_rows(channels.graph)],
        "inexact": inexact,
        "notes": [*channels.notes, *cut.allocation.notes, *inexact_note(inexact)],
    }
    return PruneResult(model=cut.model, plan=cut.plan, report=report)
