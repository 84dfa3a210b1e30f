"""Building an architecture for its names and shapes alone, without drawing weights that are thrown away."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from prune2deploy.errors import ModelError
from prune2deploy.model.spec import ModelSpec, build_model


def build_skeleton(spec: ModelSpec) -> nn.Module:
    """The architecture with its uninitialised tensors on the meta device, where they take no memory and no time.

    Small tables that a constructor computes (``arange``, ``linspace``) are real, since some constructors read them.

    Raises:
        ModelError: it cannot be built, or its constructor reads values of its own weights.
    """
    try:
        with _EmptyOnMeta():
            return build_model(spec, seed=0)
    except ModelError:
        # A constructor that computes with its uninitialised weights mixes the two devices; all on meta may still do.
        with torch.device("meta"):
            return build_model(spec, seed=0)


class _EmptyOnMeta(TorchFunctionMode):
    """``torch.empty``, from which every layer makes its weights, gives meta tensors unless a device is asked for."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        arguments = dict(kwargs or {})
        if func is torch.empty and arguments.get("device") is None:
            arguments["device"] = "meta"
        return func(*args, **arguments)
