"""A model sliced for a while: trials need no copy of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from prune2deploy.budget.plan import PrunePlan
from prune2deploy.surgery.apply import apply_plan

_REGISTRIES = ("_parameters", "_buffers", "_modules")


@contextmanager
def sliced(model: nn.Module, plan: PrunePlan) -> Iterator[nn.Module]:
    """``model`` without what ``plan`` removes; afterwards all of its attributes are the objects that they were.

    What is not sliced is shared, so that memory is needed for the sliced tensors alone.

    Raises:
        InputError: the plan belongs to another model.
        ProofError: the plan would leave a convolution or norm with groups of different sizes.
    """
    before = {module: _attributes(module) for module in model.modules()}
    try:
        yield apply_plan(model, plan)
    finally:
        for module, attributes in before.items():
            module.__dict__.clear()
            module.__dict__.update(attributes)


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {**module.__dict__, **{name: dict(module.__dict__[name]) for name in _REGISTRIES}}
