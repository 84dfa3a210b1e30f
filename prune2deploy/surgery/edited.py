"""A pruned model as an edited graph, for code that slicing its modules would break.

Two exports of the model are kept, of evaluation and of training mode, with their sizes rewritten. Both compute with one
set of parameters, which have their original names; ``train()`` and ``eval()`` choose between them, so that batch norm,
dropout and stochastic depth behave as in the user's own class. The batch size stays free.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from prune2deploy.errors import ProofError

_BATCH_NORM = torch.ops.aten.batch_norm.default
_CONVOLUTIONS = {
    **dict.fromkeys((torch.ops.aten.conv1d.default, torch.ops.aten.conv2d.default, torch.ops.aten.conv3d.default), 6),
    **dict.fromkeys((torch.ops.aten.conv1d.padding, torch.ops.aten.conv2d.padding, torch.ops.aten.conv3d.padding), 6),
    torch.ops.aten.conv_transpose1d.default: 6,
    torch.ops.aten.conv_transpose2d.input: 6,
    torch.ops.aten.conv_transpose3d.input: 6,
}
"""Where each of them takes the number of its groups."""


class EditedModule(nn.Module):
    """Computes what ``evaluation`` says in evaluation mode and what ``training`` says in training mode.

    Both are graph modules made by ``torch.export``; ``parameters`` and ``buffers`` are what they read, by name.
    ``persistent`` are the buffers that belong to the ``state_dict``.
    """

    def __init__(
        self,
        *,
        evaluation: torch.fx.GraphModule,
        training: torch.fx.GraphModule,
        parameters: Mapping[str, nn.Parameter],
        buffers: Mapping[str, Tensor],
        persistent: frozenset[str],
    ) -> None:
        super().__init__()
        if evaluation._out_spec != training._out_spec or evaluation._in_spec != training._in_spec:
            raise ProofError("the model gives other outputs in training than in evaluation", where="graph editing")
        for name, parameter in parameters.items():
            owner, attribute = self._owner(name)
            owner.register_parameter(attribute, parameter)
        for name, buffer in buffers.items():
            owner, attribute = self._owner(name)
            owner.register_buffer(attribute, buffer, persistent=name in persistent)
        self._note_groups(evaluation.graph)
        self._in_spec, self._out_spec = evaluation._in_spec, evaluation._out_spec
        self._graphs = {False: evaluation.graph, True: training.graph}
        self._forwards: dict[bool, Callable[..., Any]] = {
            False: type(evaluation).forward,
            True: type(training).forward,
        }
        # torch.export reads the names of the inputs from the signature, which belongs to the class.
        self.__class__ = _class_with_inputs(type(self), inspect.signature(type(evaluation).forward))
        self.eval()

    def forward(self, *inputs: Any) -> Any:
        """As the model that was exported, whose parameter names the signature bears."""
        return self._forwards[self.training](self, *inputs)

    def graph(self, *, training: bool) -> torch.fx.Graph:
        """The graph that runs in a mode; not to be changed."""
        return self._graphs[training]

    @property
    def batch_norm_count(self) -> int:
        """How many batch norms keep running statistics."""
        return sum(_keeps_statistics(node) for node in self._graphs[False].nodes)

    @contextmanager
    def averaging_statistics(self) -> Iterator[Callable[[Tensor], None]]:
        """Renew the running statistics: yields a function that takes in one batch, each of equal weight.

        Everything but batch norms runs as in evaluation.
        """
        batches = 0

        def take(batch: Tensor) -> None:
            nonlocal batches
            batches += 1
            _Averaging(self, 1.0 / batches).run(*torch.utils._pytree.tree_leaves(((batch,), {})))

        yield take

    def _note_groups(self, graph: torch.fx.Graph) -> None:
        """Let the holder of a convolution's weight know its groups, from which initialisation takes the fans."""
        for node in graph.nodes:
            weight = node.args[1] if node.target in _CONVOLUTIONS else None
            if isinstance(weight, torch.fx.Node) and weight.op == "get_attr":
                position = _CONVOLUTIONS[node.target]
                groups = node.args[position] if len(node.args) > position else node.kwargs.get("groups", 1)
                self._owner(str(weight.target))[0].groups = groups

    def _owner(self, name: str) -> tuple[nn.Module, str]:
        *path, attribute = name.split(".")
        owner: nn.Module = self
        for part in path:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner._modules[part]  # type: ignore[assignment]
        return owner, attribute


def _class_with_inputs(kind: type[EditedModule], signature: inspect.Signature) -> type[EditedModule]:
    def forward(self: EditedModule, *inputs: Any) -> Any:
        return kind.forward(self, *inputs)

    forward.__signature__ = signature  # type: ignore[attr-defined]
    made = type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})
    return cast(type[EditedModule], made)


class _Averaging(torch.fx.Interpreter):
    """Runs the evaluation graph with batch norms in training mode, at a momentum of its own."""

    def __init__(self, model: EditedModule, momentum: float) -> None:
        super().__init__(model, graph=model.graph(training=False))
        self._momentum = momentum

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target is _BATCH_NORM and args[3] is not None:
            args = (*args[:5], True, self._momentum, *args[7:])
        return super().call_function(target, args, kwargs)


def _keeps_statistics(node: torch.fx.Node) -> bool:
    return node.target is _BATCH_NORM and node.args[3] is not None
