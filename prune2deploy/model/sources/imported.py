"""A user's own factory, by import path."""

import inspect
from collections.abc import Callable, Sequence

from torch import nn

from prune2deploy.errors import ModelError
from prune2deploy.model.sources.source import Arguments
from prune2deploy.user_code import import_object

_CLASS_COUNT_ARGUMENTS = ("num_classes", "n_classes", "class_count")
_INPUT_CHANNELS_ARGUMENTS = ("in_channels", "in_chans", "input_channels")


class ImportedSource:
    """``package.module:factory``, a class or a function."""

    def names(self) -> tuple[str, ...]:
        """Empty: any module may be named."""
        return ()

    def check(self, name: str) -> None:
        """Import the factory."""
        _factory(name)

    def build(self, name: str, arguments: Arguments) -> object:
        """Call the factory."""
        return _factory(name)(**arguments)

    def input_size(self, name: str, arguments: Arguments, model: nn.Module) -> tuple[int, int] | None:
        """None: the factory does not say."""
        return None

    def normalization(self, name: str, model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """None: the factory does not say."""
        return None

    def class_count_argument(self, name: str) -> str | None:
        """``num_classes``, ``n_classes`` or ``class_count``, whichever the factory takes."""
        return _parameter_among(name, _CLASS_COUNT_ARGUMENTS)

    def input_channels_argument(self, name: str) -> str | None:
        """``in_channels``, ``in_chans`` or ``input_channels``, whichever the factory takes."""
        return _parameter_among(name, _INPUT_CHANNELS_ARGUMENTS)

    def training_only_prefixes(self, name: str, arguments: Arguments) -> tuple[str, ...]:
        """None are known."""
        return ()


def _factory(path: str) -> Callable[..., object]:
    factory = import_object(path, error_type=ModelError)
    if not callable(factory):
        raise ModelError(
            f"is {type(factory).__name__}, which cannot be called",
            where=path,
            hint="name a class or a function that returns the model",
        )
    return factory


def _parameter_among(path: str, names: Sequence[str]) -> str | None:
    try:
        parameters = inspect.signature(_factory(path)).parameters
    except ValueError:
        return None
    return next((name for name in names if name in parameters), None)
