"""The plans that ``latency.py`` times against each other: all keep the same importance of the same network.

Importance is the package's (``budget.worth``): that of a plan follows from the widths that it keeps, since every method
here keeps the channels of the largest norms. So a rival is one whose widths are worth as much as those of the plan that
was made for the engine.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from prune2deploy.budget.allocate import allocate
from prune2deploy.budget.from_mask import plan_from_mask
from prune2deploy.budget.ladder import Ladder
from prune2deploy.budget.target import Budget
from prune2deploy.errors import TargetError
from prune2deploy.graph.channels import ChannelGraph, ChannelMask
from prune2deploy.pipeline.backends import Channels

_STEPS = 10
_RATIO_STEP = 0.01


@dataclass(frozen=True, kw_only=True)
class Rival:
    """A pruned network, the share of the importance that it keeps, and the FLOPs of it."""

    model: nn.Module
    importance: float
    flops_fraction: float


def importance_of(ladder: Ladder, kept: ChannelMask) -> float:
    """The share of the model's importance that a mask keeps. Shape: (channel_count,) -> ()."""
    counts = np.array([int(kept[group.channels].sum()) for group in ladder.graph.groups])
    return float(np.exp(ladder.worth_of(counts)))


def by_flops(
    model: nn.Module, channels: Channels, scores: NDArray[np.float64], *, importance: float, granule: int
) -> Rival:
    """The package's own pruning to a FLOP count, aligned: the fewest FLOPs that keep so much importance."""
    graph = channels.graph
    ladder = Ladder.of(graph, scores, granule)

    def at(fraction: float) -> ChannelMask | None:
        try:
            return allocate(graph, scores, Budget(flops=fraction), granule=granule, ranking="global").kept
        except TargetError:
            return None

    low, high = 0.02, 0.98
    best = at(high)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        kept = at(middle)
        if kept is not None and importance_of(ladder, kept) >= importance:
            best, high = kept, middle
        else:
            low = middle
    assert best is not None
    return Rival(
        model=channels.cut(model, plan_from_mask(graph, best)),
        importance=importance_of(ladder, best),
        flops_fraction=graph.cost.flops(best) / graph.cost.dense_flops,
    )


@dataclass(kw_only=True)
class TorchPruning:
    """Torch-Pruning's global magnitude pruning of one network, without rounding, as its users call it.

    ``image`` has shape (1, C, H, W). What was pruned to a ratio is kept for later targets, as widths.
    """

    model: nn.Module
    graph: ChannelGraph
    ladder: Ladder
    image: torch.Tensor
    widths: dict[float, tuple[int, ...]] = field(default_factory=dict)

    def keeping(self, importance: float) -> Rival:
        """The largest ratio, in steps of a hundredth, whose widths keep so much importance."""
        first, last = 1, 95
        while first < last:
            middle = (first + last + 1) // 2
            if self._importance(middle * _RATIO_STEP) >= importance:
                first = middle
            else:
                last = middle - 1
        ratio = first * _RATIO_STEP
        model = self._pruned(ratio)
        return Rival(model=model, importance=self._importance(ratio), flops_fraction=self._flops_fraction(model))

    def _importance(self, ratio: float) -> float:
        key = round(ratio, 2)
        if key not in self.widths:
            self.widths[key] = self._widths_of(self._pruned(ratio))
        counts = [width // group.positions for width, group in zip(self.widths[key], self.graph.groups, strict=True)]
        return float(np.exp(sum(self.ladder.worth(group, max(count, 1)) for group, count in enumerate(counts))))

    def _pruned(self, ratio: float) -> nn.Module:
        import torch_pruning

        model = copy.deepcopy(self.model)
        pruner = torch_pruning.pruner.MagnitudePruner(
            model,
            self.image,
            importance=torch_pruning.importance.MagnitudeImportance(p=2),
            pruning_ratio=ratio,
            global_pruning=True,
            ignored_layers=[one for one in model.modules() if isinstance(one, nn.Linear) and one.out_features == 10],
        )
        pruner.step()
        return model.eval()

    def _widths_of(self, model: nn.Module) -> tuple[int, ...]:
        """The width of each group: that of the layer that makes it first."""
        dense = dict(self.model.named_modules())
        pruned = dict(model.named_modules())
        return tuple(
            group.width * _outputs(pruned[group.name]) // _outputs(dense[group.name]) for group in self.graph.groups
        )

    def _flops_fraction(self, model: nn.Module) -> float:
        return _counted(model, self.image) / _counted(self.model, self.image)


def _outputs(layer: nn.Module) -> int:
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    return int(weight.shape[0])


def _counted(model: nn.Module, image: torch.Tensor) -> int:
    from prune2deploy.surgery.verify import count_flops

    return count_flops(model, (image,))


Making = Callable[[], Rival]


def made(rivals: Sequence[tuple[str, Making]]) -> tuple[dict[str, Rival], dict[str, str]]:
    """The rivals that could be made, and for each of the others the error, in one line."""
    found, failed = {}, {}
    for name, make in rivals:
        try:
            found[name] = make()
        except Exception as error:  # noqa: BLE001  # a peer that fails on a network is a result
            failed[name] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"
    return found, failed
