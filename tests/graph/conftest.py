"""How the tests of the graph look at a model, cut it at random and prove the cut."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from prune2deploy.budget.from_mask import plan_from_mask
from prune2deploy.graph.channels import ChannelGraph, ChannelMask
from prune2deploy.graph.trace import Trace, trace
from prune2deploy.surgery.apply import pruned_copy
from prune2deploy.surgery.trial import randomised_copy
from prune2deploy.surgery.verify import Proof, count_flops, count_parameters, prove


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A traced model, and what the tests ask of it."""

    model: nn.Module
    inputs: tuple[Any, ...]
    trace: Trace

    @property
    def graph(self) -> ChannelGraph:
        return self.trace.graph

    @property
    def widths(self) -> dict[str, int]:
        """Channel count of each group, by its name."""
        return {group.name: len(group.channels) for group in self.graph.groups}

    def channels(self, tensor: str, dim: int) -> list[int]:
        """The channel of each index of a dimension, -1 where it cannot leave."""
        for axis in self.graph.axes:
            if (axis.tensor, axis.dim) == (tensor, dim):
                return axis.channels.tolist()
        return [-1] * self.graph.shapes[tensor][dim]

    def frozen(self, tensor: str, dim: int = 0) -> str:
        """Why a producing dimension cannot leave, with the operator."""
        return "; ".join(f"{one.reason} [{one.operator}]" for one in self.graph.frozen if (tensor, dim) in one.axes)

    def place(self, tensor: str) -> str:
        return next(one.place for one in self.graph.frozen if (tensor, 0) in one.axes)


@pytest.fixture(scope="session")
def see() -> Callable[..., Seen]:
    """Trace a model on random inputs of the given shapes, (1, 3, 12, 12) by default; what is no shape is an input."""

    def traced(model: nn.Module, *inputs: Any) -> Seen:
        generator = torch.Generator().manual_seed(0)
        given = tuple(
            torch.randn(*one, generator=generator) if isinstance(one, tuple) else one
            for one in inputs or [(1, 3, 12, 12)]
        )
        return Seen(model=model, inputs=given, trace=trace(model, given))

    return traced


@pytest.fixture(scope="session")
def random_mask() -> Callable[[ChannelGraph, int], ChannelMask]:
    """Keep a random part of each group, never none of it; at least one channel leaves in all."""

    def mask(graph: ChannelGraph, seed: int) -> ChannelMask:
        random = np.random.default_rng(seed)
        kept = graph.everything()
        for group in graph.groups:
            removed = random.integers(1, len(group.channels))
            kept[random.permutation(group.channels)[:removed]] = False
        return kept

    return mask


@pytest.fixture(scope="session")
def prove_random_cut(random_mask: Callable[[ChannelGraph, int], ChannelMask]) -> Callable[..., Proof]:
    """Prove a random cut with random weights and statistics, and the closed form of the cost, dense and cut."""

    def proven(seen: Seen, seed: int = 0, kept: ChannelMask | None = None) -> Proof:
        graph, inputs = seen.graph, seen.inputs
        assert graph.groups, f"nothing can leave: {graph.frozen}"
        sample = randomised_copy(seen.model, seed=seed)
        assert (count_flops(sample, inputs), count_parameters(sample)) == (
            graph.cost.dense_flops,
            graph.cost.dense_parameters,
        )
        kept = random_mask(graph, seed) if kept is None else kept
        pruned = pruned_copy(sample, plan_from_mask(graph, kept))
        proof = prove(seen.trace, sample, pruned, kept, inputs)
        assert (count_flops(pruned, inputs), count_parameters(pruned)) == (proof.flops, proof.parameters)
        assert proof.parameters < graph.cost.dense_parameters
        return proof

    return proven
