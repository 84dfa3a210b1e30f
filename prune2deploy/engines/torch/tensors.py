"""Between NumPy arrays on the host and torch tensors."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from prune2deploy.engines.engine import Array

if TYPE_CHECKING:
    import torch


def tensor_from_array(array: Array) -> "torch.Tensor":
    """A host tensor with an array's values. NumPy has no bfloat16 of its own, so its bits are taken over."""
    import torch

    values = np.ascontiguousarray(array)
    if values.dtype.name == "bfloat16":
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(values)


def array_from_tensor(tensor: "torch.Tensor", dtype: np.dtype[Any]) -> NDArray[Any]:
    """A copy on the host, as an array of ``dtype``."""
    import torch

    host = tensor.detach().to("cpu", copy=True).contiguous()
    if host.dtype == torch.bfloat16:
        return host.view(torch.int16).numpy().view(dtype)
    values: NDArray[Any] = host.numpy()
    return values
