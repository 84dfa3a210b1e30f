"""How far a batch can grow into the activation memory that a cut freed."""

import math

from prune2deploy.graph.channels import ChannelMask
from prune2deploy.graph.cost import CostModel

_UNIT = 32


def activation_sizes(cost: CostModel, kept: ChannelMask) -> float:
    """Numbers that the convolutions and products of a model put out for one image, under a mask.

    It stands for the memory of activations, because norms and rectifiers behind them keep as many numbers for the
    backward pass. A layer of F FLOPs and P weights computes F / (2 P) positions, each as wide as what the layer makes.
    Products of activations (attention scores) and layers whose weight is not named ``weight`` are left out.
    """
    weights = {term.layer: term for term in cost.parameter_terms}
    dense = [len(width) for width in cost.widths]
    sizes, gone = cost.sizes(kept), cost.removed_branches(kept)
    total = 0.0
    for term in cost.flop_terms:
        weight = weights.get(f"{term.layer}.weight")
        if term.produced is None or weight is None or not weight.coefficient or not gone.isdisjoint(term.branches):
            continue
        flops = term.coefficient * math.prod(dense[width] for width in term.widths)
        parameters = weight.coefficient * math.prod(dense[width] for width in weight.widths)
        total += flops / (2 * parameters) * sizes[term.produced]
    return total


def grown_batch(
    batch_size: int, *, current: int, memory_ratio: float, largest: int | None, images: int, processes: int
) -> int:
    """The batch that takes the memory which ``batch_size`` took of the dense model, at least ``current``.

    ``memory_ratio`` is the share of the dense activations that is left. Rounded down to a multiple of 32 images (of the
    first batch, where that is smaller) that divides among the processes. At most ``largest``; without that, an epoch
    of ``images`` keeps at least ten steps.
    """
    unit = math.lcm(_UNIT if batch_size >= _UNIT else batch_size, processes)
    limit = largest if largest is not None else images // 10
    wanted = min(batch_size / max(memory_ratio, 1e-9), limit)
    return max(current, int(wanted // unit) * unit)
