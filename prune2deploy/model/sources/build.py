"""Building with a seed, and translating whatever a factory raises."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from prune2deploy.errors import ModelError, P2DError
from prune2deploy.model.sources.source import Arguments, Source

_PRETRAINED_ARGUMENTS = frozenset({"weights", "weights_backbone", "pretrained"})


def build(source: Source, *, name: str, arguments: Arguments, where: str, seed: int | None) -> nn.Module:
    """Build ``name``; see ``model.spec.build_model``, whose contract this is."""
    if refused := sorted(_PRETRAINED_ARGUMENTS & set(arguments)):
        raise ModelError(
            f"{refused[0]} is not an argument here: a spec names an architecture, not its weights",
            where=where,
            hint=f"drop {refused[0]}, and pass the weights as a checkpoint file",
        )
    source.check(name)
    try:
        with _seeded(seed):
            model = source.build(name, arguments)
    except (P2DError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ModelError(
            f"cannot be built ({type(error).__name__}: {_first_line(error)})",
            where=where,
            hint="check the arguments in the spec",
        ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"the factory returns {type(model).__name__}, not an nn.Module",
            where=where,
            hint="name a class or a function that returns the model",
        )
    return model


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """Seed for the duration only.

    Where CUDA is not yet in use its generator is not touched: seeding it would be queued and reach the caller.
    """
    if seed is None:
        yield
    elif torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            yield
    else:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            yield


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]
