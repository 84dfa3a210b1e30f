"""The layers that cost FLOPs, as one forward pass runs them: their widths, groups and kernels.

The channel graph prices a model in closed form; this looks at what really runs, also where a plan was already carried
out. FLOPs are those of ``torch.utils.flop_counter``, fused attention taken apart.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torch.utils.module_tracker import ModuleTracker

_ATEN = torch.ops.aten
_CONVOLUTIONS = (_ATEN.convolution, _ATEN._convolution)
# Where each product takes its two matrices.
_PRODUCTS: Mapping[Any, tuple[int, int]] = {
    _ATEN.mm: (0, 1),
    _ATEN.bmm: (0, 1),
    _ATEN.addmm: (1, 2),
    _ATEN.baddbmm: (1, 2),
}
_TRANSPOSED, _GROUPS = 6, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One convolution or matrix product, at the batch that ran.

    ``name`` is the module path. ``input_width`` and ``output_width`` count the channels of all ``groups``; of a
    product they are the summed dimension and the last one. ``kernel`` is () for products. ``weight`` is the
    ``state_dict`` name of the parameter, None where both operands are activations (attention) or the weight is
    computed. ``reads_image`` is True where the data has the shape of the model's input.
    """

    name: str
    operator: str
    flops: int
    input_width: int
    output_width: int
    groups: int
    kernel: tuple[int, ...]
    weight: str | None
    reads_image: bool

    @property
    def depthwise(self) -> bool:
        """Whether each filter reads one channel alone."""
        return self.groups > 1 and self.groups == self.input_width


def layers_of(model: nn.Module, inputs: Sequence[Tensor]) -> tuple[Layer, ...]:
    """Every convolution and matrix product of one forward pass, in the order of execution.

    ``model`` is in evaluation mode, and ``inputs`` lie on its device; the first is the image.
    """
    recorder = _Recorder(model, tuple(inputs[0].shape))
    with torch.no_grad(), _plain_attention(), recorder.modules, recorder:
        model(*inputs)
    return tuple(recorder.layers)


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention as two matrix products and a softmax, so that each can be seen."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every operator that ``torch.utils.flop_counter`` counts, with its widths."""

    def __init__(self, model: nn.Module, image: tuple[int, ...]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layers: list[Layer] = []
        self.modules = ModuleTracker()
        self._image = image
        self._root = type(model).__name__
        self._names: dict[int, str] = {}
        for name, tensor in model.named_parameters():
            self._names.setdefault(_storage(tensor), name)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        if packet in flop_registry:
            flops = int(flop_registry[packet](*args, **(kwargs or {}), out_val=out))
            if packet in _CONVOLUTIONS:
                self._convolution(args, flops)
            elif packet in _PRODUCTS:
                first, second = (args[position] for position in _PRODUCTS[packet])
                self._product(first, second, flops)
        return out

    def _convolution(self, args: Sequence[Any], flops: int) -> None:
        data, weight, groups = args[0], args[1], int(args[_GROUPS])
        transposed = bool(args[_TRANSPOSED])
        depthwise = not transposed and groups > 1 and weight.shape[1] == 1
        kind = "transposed " if transposed else "depthwise " if depthwise else ""
        spatial = weight.dim() - 2
        self._note(
            weight,
            operator=f"{kind}convolution",
            flops=flops,
            input_width=weight.shape[0] if transposed else weight.shape[1] * groups,
            output_width=weight.shape[1] * groups if transposed else weight.shape[0],
            groups=groups,
            kernel=tuple(weight.shape[2:]),
            reads_image=tuple(data.shape[-spatial - 1 :]) == self._image[1:],
        )

    def _product(self, first: Tensor, second: Tensor, flops: int) -> None:
        turned = _storage(first) in self._names and _storage(second) not in self._names
        self._note(
            first if turned else second,
            operator="product",
            flops=flops,
            input_width=first.shape[-1],
            output_width=first.shape[-2] if turned else second.shape[-1],
            groups=1,
            kernel=(),
            reads_image=False,
        )

    def _note(self, weight: Tensor, **facts: Any) -> None:
        parameter = self._names.get(_storage(weight))
        running = max((path for path in self.modules.parents if path != "Global"), key=len, default="")
        name = parameter.rpartition(".")[0] if parameter is not None else running.removeprefix(f"{self._root}.")
        self.layers.append(Layer(name=name or self._root, weight=parameter, **facts))


def _storage(tensor: Tensor) -> int:
    """What tensors share that are views of each other."""
    return int(tensor.untyped_storage()._cdata)
