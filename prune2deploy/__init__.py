"""prune2deploy: structural pruning that really makes deployed models faster.

    import prune2deploy as p2d
    model = p2d.load("p2d-runs/latest/pruned")
    result = p2d.prune(model, example_input, flops=0.33)

Importing this package is cheap; ``load`` and ``prune`` import torch when first used.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

__version__ = "0.1.0"

__all__ = ["__version__", "load"]


def load(path: str | Path) -> "nn.Module":
    """The model of a bundle that p2d wrote: pruned shapes, bit-equal weights, evaluation mode, on the CPU.

    Raises:
        CheckpointError: the bundle is missing, damaged, of a newer schema, or is none.
    """
    from prune2deploy.checkpoint.bundle import load_bundle

    return load_bundle(Path(path)).model
