"""What a source of architectures must answer."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from torch import nn

Arguments = Mapping[str, Any]


class Source(Protocol):
    """One library of architectures. Names are those behind the colon of a model spec."""

    def names(self) -> tuple[str, ...]:
        """Names that can be built here, sorted; empty where the source has no catalogue or is not installed."""

    def check(self, name: str) -> None:
        """Make sure that ``name`` can be built.

        Raises:
            ModelError: it is unknown, or the package is not installed.
        """

    def build(self, name: str, arguments: Arguments) -> object:
        """Call the factory. Whatever it raises is translated by the caller."""

    def input_size(self, name: str, arguments: Arguments, model: nn.Module) -> tuple[int, int] | None:
        """Height and width that the architecture is meant for, None where nothing says so."""

    def normalization(self, name: str, model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Mean and standard deviation that published weights expect of images in [0, 1]."""

    def class_count_argument(self, name: str) -> str | None:
        """The argument that sets the class count."""

    def input_channels_argument(self, name: str) -> str | None:
        """The argument that sets the input channels."""

    def training_only_prefixes(self, name: str, arguments: Arguments) -> tuple[str, ...]:
        """Key prefixes of heads that checkpoints carry and that are not built with these arguments."""


def input_channels_of(model: nn.Module) -> int | None:
    """Input channels of the first convolution, None where there is none."""
    for module in model.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            return module.in_channels
    return None


def nearest(name: str, names: Iterable[str]) -> list[str]:
    """Up to three names that read like ``name``, the nearest first."""
    return difflib.get_close_matches(name, list(names), n=3, cutoff=0.6)
