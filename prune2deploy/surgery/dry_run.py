"""Cuts on trial without data: whether a sliced module runs at all, and gives outputs of the dense shapes.

Most sizes written in a ``forward`` show in this. It needs no arithmetic and no memory, so that many cuts can be tried.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from prune2deploy.budget.plan import PrunePlan
from prune2deploy.errors import ProofError
from prune2deploy.surgery.apply import as_parameter_like
from prune2deploy.surgery.equality import FORWARD_ERRORS
from prune2deploy.surgery.evaluation_mode import evaluated
from prune2deploy.surgery.sliced import sliced

Shapes = list[tuple[int, ...]]


class DryRun:
    """A copy of a module whose tensors have shapes and no data."""

    def __init__(self, model: nn.Module, inputs: Sequence[Any]) -> None:
        """``inputs`` are positional arguments of ``forward``; of tensors only the shapes matter."""
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        tensors = {id(one): one for one in [*model.parameters(), *model.buffers()]}
        fakes: dict[int, Any] = {
            number: as_parameter_like(one, self._mode.from_tensor(one.detach())) for number, one in tensors.items()
        }
        self._model = copy.deepcopy(model, fakes)
        self._inputs: tuple[Any, ...] = torch.utils._pytree.tree_map_only(Tensor, self._mode.from_tensor, tuple(inputs))
        self._dense: Shapes | None = None
        try:
            self._dense = self._shapes()
        except FORWARD_ERRORS:
            self._dense = None

    @property
    def works(self) -> bool:
        """Whether the dense module itself runs without data; else nothing can be said of its cuts."""
        return self._dense is not None

    def failure(self, plan: PrunePlan) -> Exception | None:
        """What is raised when the module, cut by ``plan``, runs, if anything; a ``ProofError`` where shapes differ."""
        try:
            with sliced(self._model, plan):
                shapes = self._shapes()
        except (ProofError, *FORWARD_ERRORS) as error:
            return error
        return None if shapes == self._dense else ProofError(f"outputs of shapes {shapes} instead of {self._dense}")

    def _shapes(self) -> Shapes:
        with self._mode:
            return [tuple(one.shape) for one in evaluated(self._model, self._inputs)]
