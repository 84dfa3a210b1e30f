"""Which function of ``torch.nn.init`` set each parameter of a model, and with which arguments."""

import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

_SAMPLES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class InitialiserCall:
    """One call: ``function(tensor, **arguments)``, made at ``site`` (file and line of the code that asked for it)."""

    function: Callable[..., Tensor]
    arguments: Mapping[str, Any]
    site: str


@dataclass(slots=True)
class Recording:
    """Calls that were noted; ask ``calls_of`` once the model stands."""

    _calls: dict[tuple[int, tuple[int, ...]], tuple[InitialiserCall, Tensor]] = field(default_factory=dict)

    def note(self, tensor: Tensor, call: InitialiserCall) -> None:
        """Keep a call as the last one for the memory of ``tensor``, with a sample of the values that it set."""
        self._calls[tensor.data_ptr(), tuple(tensor.shape)] = (call, _sample(tensor))

    def calls_of(self, model: nn.Module) -> dict[str, InitialiserCall]:
        """The call that set each parameter, by name; without those whose values were changed after it."""
        found = {}
        for name, parameter in model.named_parameters():
            call, sample = self._calls.get((parameter.data_ptr(), tuple(parameter.shape)), (None, None))
            if call is not None and sample is not None and torch.equal(sample, _sample(parameter)):
                found[name] = call
        return found


@contextmanager
def record_initialisers() -> Iterator[Recording]:
    """Note all calls of the public functions of ``torch.nn.init``; they are as before afterwards.

    Functions that user code imported by name before are not seen; what they set is told by ``calls_of`` as unset.
    """
    recording = Recording()
    originals = {
        name: function
        for name, function in vars(nn.init).items()
        if name.endswith("_") and not name.startswith("_") and inspect.isfunction(function)
    }
    try:
        for name, function in originals.items():
            setattr(nn.init, name, _recorded(function, recording))
        yield recording
    finally:
        for name, function in originals.items():
            setattr(nn.init, name, function)


def _recorded(function: Callable[..., Tensor], recording: Recording) -> Callable[..., Tensor]:
    signature = inspect.signature(function)

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Tensor:
        result = function(*args, **kwargs)
        arguments = dict(signature.bind(*args, **kwargs).arguments)
        tensor = arguments.pop("tensor", None)
        arguments.pop("generator", None)
        if isinstance(tensor, Tensor) and not tensor.is_meta:
            caller = sys._getframe(1)
            site = f"{caller.f_code.co_filename}:{caller.f_lineno}"
            recording.note(tensor, InitialiserCall(function=function, arguments=arguments, site=site))
        return result

    return wrapper


def _sample(tensor: Tensor) -> Tensor:
    values = tensor.detach().reshape(-1)
    return torch.cat([values[:_SAMPLES], values[-_SAMPLES:], values.sum().reshape(1)]).clone()
