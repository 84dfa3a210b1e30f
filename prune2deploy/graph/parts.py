"""The parts of a model that can be exported where the whole cannot: a detector's backbone, say."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prune2deploy.errors import P2DError

_WORTH_NAMING = 0.05
"""Share of the model's parameters from which a part is worth pruning by itself."""
_TRIED, _NAMED = 8, 3
_FAILURES = (P2DError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)
"""What running or exporting a part on its own may raise."""

FlopsOf = Callable[[nn.Module, tuple[Any, ...]], int]
"""The FLOPs of a part on its inputs, once it is exported and something can leave it; 0 where nothing can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A submodule that can be exported by itself.

    ``path`` is its name in the model, ``inputs`` what it was called with, ``share`` its part of the parameters.
    """

    path: str
    inputs: tuple[Any, ...]
    share: float
    flops: int


def exportable_parts(model: nn.Module, inputs: Sequence[Any], flops_of: FlopsOf) -> tuple[Part, ...]:
    """The largest parts of ``model`` that can be exported, none inside another, by falling share of the parameters.

    ``inputs`` are the positional arguments of ``forward``, on which the model is run once, as it stands.
    """
    total = max(_parameter_count(model), 1)
    candidates = {
        path: module
        for path, module in model.named_modules()
        if path and _parameter_count(module) >= _WORTH_NAMING * total
    }
    called = _inputs_of(candidates, model, inputs)
    found: list[Part] = []
    order = sorted(called, key=lambda path: -_parameter_count(candidates[path]))
    for path in order[:_TRIED]:
        if len(found) == _NAMED or any(path.startswith(f"{part.path}.") for part in found):
            continue
        first_sample = torch.utils._pytree.tree_map_only(Tensor, _first_sample, called[path])
        try:
            flops = flops_of(candidates[path], first_sample)
        except _FAILURES:
            continue
        if flops:
            share = _parameter_count(candidates[path]) / total
            found.append(Part(path=path, inputs=first_sample, share=share, flops=flops))
    return tuple(found)


def advice(parts: Sequence[Part]) -> str | None:
    """What to do about a model of which only ``parts`` can be exported; None where there are none."""
    if not parts:
        return None
    listed = " and ".join(f"{part.path} ({part.share:.0%} of the parameters)" for part in parts)
    shown = max(parts, key=lambda part: (_only_tensor(part) is not None, part.flops))
    tensor = _only_tensor(shown)
    example = "its inputs" if tensor is None else f"torch.rand{tuple(tensor.shape)}"
    which = "its part" if len(parts) == 1 else "its parts"
    alone = "by itself" if len(parts) == 1 else "by themselves"
    return (
        f"{which} {listed} can be exported and pruned {alone}: "
        f"model.{shown.path} = p2d.prune(model.{shown.path}, {example}, flops=0.5).model"
    )


def _only_tensor(part: Part) -> Tensor | None:
    tensors = [one for one in part.inputs if isinstance(one, Tensor)]
    return tensors[0] if len(tensors) == len(part.inputs) == 1 else None


def _inputs_of(candidates: dict[str, nn.Module], model: nn.Module, inputs: Sequence[Any]) -> dict[str, tuple[Any, ...]]:
    """What each candidate was first called with, where these are positional arguments only."""
    seen: dict[str, tuple[Any, ...]] = {}

    def recorder(path: str) -> Callable[..., None]:
        def record(_: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
            if not options and path not in seen:
                seen[path] = torch.utils._pytree.tree_map_only(Tensor, lambda one: one.detach().clone(), arguments)

        return record

    handles = [
        module.register_forward_pre_hook(recorder(path), with_kwargs=True) for path, module in candidates.items()
    ]
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model(*torch.utils._pytree.tree_map_only(Tensor, Tensor.clone, tuple(inputs)))
    except _FAILURES:
        return {}
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    return seen


def _first_sample(tensor: Tensor) -> Tensor:
    return tensor[:1] if tensor.dim() else tensor


def _parameter_count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
