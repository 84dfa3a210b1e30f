"""Every value of an edited graph must have the shape that the labels predict."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from prune2deploy.errors import ProofError
from prune2deploy.graph.labelling import place_of
from prune2deploy.graph.labels import Value
from prune2deploy.surgery.rewrite import KeptLabels, Values

Known = dict[Any, Any]
"""What operators gave on the meta device, by what they were given. Blocks repeat, so that most calls are known."""


def check_predicted_shapes(
    graph: torch.fx.Graph,
    tensors: Mapping[str, Tensor],
    inputs: Sequence[Any],
    values: Values,
    kept: KeptLabels,
    *,
    known: Known | None = None,
) -> None:
    """Run ``graph`` without data and compare the shape of every value with the predicted one.

    ``tensors`` are the parameters and buffers that the graph reads, by name; ``values`` the labelled values by node.
    ``known`` spares work where several graphs are checked: it is read and added to.

    Raises:
        ProofError: an operator refuses the new sizes, or a shape is another one; the operator is named.
    """
    leaves = torch.utils._pytree.tree_leaves(inputs)
    if _passes_on_meta(graph, tensors, leaves, values, kept, {} if known is None else known):
        return
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        fakes = {name: mode.from_tensor(tensor.detach()) for name, tensor in tensors.items()}
        fake_inputs = [mode.from_tensor(one) if isinstance(one, Tensor) else one for one in leaves]
        _Checker(graph, fakes, values, kept).run(*fake_inputs, enable_io_processing=False)


def _passes_on_meta(
    graph: torch.fx.Graph,
    tensors: Mapping[str, Tensor],
    inputs: Sequence[Any],
    values: Values,
    kept: KeptLabels,
    known: Known,
) -> bool:
    """Whether all shapes are as predicted on the meta device, many times faster than with tensors that are faked.

    Not all operators run there, so what does not pass is for the fake ones to judge.
    """
    with torch.no_grad():
        metas = {name: tensor.detach().to("meta") for name, tensor in tensors.items()}
        meta_inputs = [one.to("meta") if isinstance(one, Tensor) else one for one in inputs]
        try:
            _MetaChecker(graph, metas, values, kept, known).run(*meta_inputs, enable_io_processing=False)
        except (ProofError, TypeError):
            return False
    return True


class _Checker(torch.fx.Interpreter):
    def __init__(self, graph: torch.fx.Graph, tensors: Mapping[str, Tensor], values: Values, kept: KeptLabels) -> None:
        super().__init__(nn.Module(), graph=graph)
        self.extra_traceback = False  # it would write over the one line of a refusal
        self._tensors = tensors
        self._values = values
        self._kept = kept

    def get_attr(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._tensors[str(target)]

    def run_node(self, n: torch.fx.Node) -> Any:
        try:
            result = super().run_node(n)
        except (RuntimeError, ValueError, IndexError) as error:
            raise ProofError(
                f"{n.target} refuses the sizes of the pruned model ({str(error).splitlines()[0]})", where=place_of(n)
            ) from error
        if n.op == "call_function" and n.name in self._values:
            predicted = self._values[n.name]
            results = result if isinstance(result, list | tuple) else (result,)
            for one, value in zip(results, predicted if isinstance(predicted, tuple) else (predicted,), strict=False):
                self._compare(n, one, value)
        return result

    def _compare(self, node: torch.fx.Node, result: Any, value: Value) -> None:
        if isinstance(result, Tensor) and tuple(result.shape) != self._kept.shape(value):
            raise ProofError(
                f"{node.target} gives shape {tuple(result.shape)}, but {self._kept.shape(value)} was predicted",
                where=place_of(node),
            )


class _MetaChecker(_Checker):
    """Puts on the meta device what the graph makes elsewhere, and calls each operator once for the same arguments."""

    def __init__(
        self,
        graph: torch.fx.Graph,
        tensors: Mapping[str, Tensor],
        values: Values,
        kept: KeptLabels,
        known: Known,
    ) -> None:
        super().__init__(graph, tensors, values, kept)
        self._known = known

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not isinstance(target, torch._ops.OpOverload):
            return super().call_function(target, args, kwargs)
        call = (target, _described(args), _described(tuple(kwargs.items())))
        if call not in self._known:
            moved = torch.utils._pytree.tree_map_only(torch.device, lambda _: torch.device("meta"), (args, kwargs))
            self._known[call] = _described(super().call_function(target, *moved))
        return _made(self._known[call])


@dataclass(frozen=True, slots=True)
class _Meta:
    """A tensor without data."""

    shape: torch.Size
    strides: tuple[int, ...]
    dtype: torch.dtype


def _described(value: Any) -> Any:
    """Nested arguments or results in a form that can be compared and looked up."""
    if isinstance(value, Tensor):
        return _Meta(value.shape, value.stride(), value.dtype)
    if isinstance(value, list | tuple):
        return tuple(_described(one) for one in value)
    return (type(value), value) if isinstance(value, int | float) else value


def _made(described: Any) -> Any:
    """The result that was described."""
    if isinstance(described, _Meta):
        return torch.empty_strided(described.shape, described.strides, dtype=described.dtype, device="meta")
    if isinstance(described, tuple):
        if len(described) == 2 and isinstance(described[0], type):
            return described[1]
        return tuple(_made(one) for one in described)
    return described
