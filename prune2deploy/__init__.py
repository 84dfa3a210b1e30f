"""prune2deploy: structural pruning that really makes deployed models faster.

    import prune2deploy as p2d
    model = p2d.load("p2d-runs/latest/pruned")
    result = p2d.prune(model, example_input, flops=0.33)

Importing this package is cheap; ``load`` and ``prune`` import torch when first used.
"""

__version__ = "0.1.0"
