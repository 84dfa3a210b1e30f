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
from prune2deploy.surgery.edit import edited_copy
from prune2deploy.surgery.equality import relative_error
from prune2deploy.surgery.gated import _GatedInterpreter, _program_inputs, gated_outputs, tensors_in
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

    def traced(model: nn.Module, *inputs: Any, **choices: Any) -> Seen:
        generator = torch.Generator().manual_seed(0)
        given = tuple(
            torch.randn(*one, generator=generator) if isinstance(one, tuple) else one
            for one in inputs or [(1, 3, 12, 12)]
        )
        return Seen(model=model, inputs=given, trace=trace(model, given, **choices))

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


@pytest.fixture(scope="session")
def prove_edited_cut(random_mask: Callable[[ChannelGraph, int], ChannelMask]) -> Callable[..., Proof]:
    """Prove a random cut by editing the exported graph, with random weights. For models seen with free sizes."""

    def proven(seen: Seen, seed: int = 0) -> Proof:
        sample = randomised_copy(seen.model, seed=seed)
        kept = random_mask(seen.graph, seed)
        edited = edited_copy(sample, seen.trace, plan_from_mask(seen.graph, kept), seen.inputs)
        proof = prove(seen.trace, sample, edited, kept, seen.inputs)
        assert proof.parameters < seen.graph.cost.dense_parameters
        return proof

    return proven


class _Scrambled(_GatedInterpreter):
    """Overwrites, in every value, the positions whose channels leave: nothing that stays may depend on them."""

    def __init__(self, trace: Trace, kept: ChannelMask) -> None:
        super().__init__(trace, kept)
        self._values = trace.interpretation.values
        self._keeps = np.append(kept, True)[trace.channel_of_label]
        self._generator = torch.Generator().manual_seed(1)

    def run_node(self, n: torch.fx.Node) -> Any:
        result = super().run_node(n)
        values = self._values.get(n.name)
        if isinstance(result, list | tuple):
            pairs = zip(result, values if isinstance(values, tuple) else (None,) * len(result), strict=True)
            return tuple(self._scrambled(one, value) for one, value in pairs)
        return self._scrambled(result, values)

    def _scrambled(self, result: Any, value: Any) -> Any:
        if not isinstance(result, torch.Tensor) or not result.is_floating_point() or value is None:
            return result
        for block in value.blocks:
            [dim] = block.dims
            assert len(block.labels) == result.shape[dim]
            leaves = torch.from_numpy(~self._keeps[block.labels])
            if leaves.any():
                shape = [-1 if other == dim else 1 for other in range(result.dim())]
                noise = torch.randn(result.shape, generator=self._generator, dtype=result.dtype) * 3
                result = torch.where(leaves.view(shape), noise, result)
        return result


@pytest.fixture(scope="session")
def prove_labels(random_mask: Callable[[ChannelGraph, int], ChannelMask]) -> Callable[..., float]:
    """Prove that what stays never depends on what leaves, whether or not slicing the module can make the cut.

    Every position of every value whose channel leaves is overwritten with noise; the outputs must be those of the
    gated dense model. Returns the relative error.
    """

    def proven(seen: Seen, seed: int = 0) -> float:
        sample = randomised_copy(seen.model, seed=seed)
        kept = random_mask(seen.graph, seed)
        gated = gated_outputs(seen.trace, sample, kept, seen.inputs)
        assert sum(float(one.abs().sum()) for one in gated) > 0
        with torch.no_grad():
            scrambled = _Scrambled(seen.trace, kept).run(*_program_inputs(seen.trace, sample, seen.inputs))
        error = relative_error(gated, tensors_in(scrambled))
        assert error < 1e-4, f"what stays depends on what leaves: {error}"
        return error

    return proven
