"""prune2deploy: structural pruning that really makes deployed models faster.

    import prune2deploy as p2d
    model = p2d.load("p2d-runs/latest/pruned")
    result = p2d.prune(model, example_input, flops=0.33)

Importing this package is cheap; ``load`` and ``prune`` import torch when first used.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from prune2deploy.pipeline.api import PruneResult

__version__ = "0.1.0"

__all__ = ["__version__", "load", "prune"]


def load(path: str | Path) -> "nn.Module":
    """The model of a bundle that p2d wrote: pruned shapes, bit-equal weights, evaluation mode, on the CPU.

    Raises:
        CheckpointError: the bundle is missing, damaged, of a newer schema, or is none.
    """
    from prune2deploy.checkpoint.bundle import load_bundle

    return load_bundle(Path(path)).model


def prune(
    model: "nn.Module",
    example_input: "Tensor | Sequence[Any]",
    *,
    flops: float | None = None,
    params: float | None = None,
    **choices: Any,
) -> "PruneResult":
    """Prune a module to fractions of its FLOPs and parameters; ``result.model``, ``result.plan``, ``result.report``.

    ``choices`` are those of ``pipeline.api.prune_module``: method, batches, ranking, scope, align, seed, progress.

    Raises:
        InputError, ModelError: a value cannot be used, or the model cannot be exported.
        TargetError: no plan reaches the target, or nothing would be pruned.
        ProofError: the cut is not exact; there is no result.
    """
    from prune2deploy.pipeline.api import prune_module

    return prune_module(model, example_input, flops=flops, params=params, **choices)
