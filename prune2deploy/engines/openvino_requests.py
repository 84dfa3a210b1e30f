"""Requests of a network that OpenVINO compiled: their tensors as arrays, and several of them as a queue."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prune2deploy.engines.engine import Array, TensorInfo
from prune2deploy.engines.parity import relative_error
from prune2deploy.errors import ParityError

# Two builds of one network differ by rounding, in fp16 and bf16 by that of these types.
_TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 3e-2, "int8": 3e-2}


def values(tensor: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    """A tensor's memory as an array of ``dtype``: OpenVINO shows bfloat16 as another type of the same size."""
    stored: NDArray[Any] = tensor.data
    return stored if stored.dtype == dtype else stored.view(dtype)


def place(request: Any, arrays: Sequence[Array]) -> None:
    """Copy inputs into a request's own tensors, so that later changes of the caller's arrays change nothing."""
    for index, array in enumerate(arrays):
        values(request.get_input_tensor(index), array.dtype)[...] = array


def inputs_of(request: Any, infos: Sequence[TensorInfo]) -> list[NDArray[Any]]:
    """A request's input tensors, not copied."""
    return [values(request.get_input_tensor(index), np.dtype(info.dtype)) for index, info in enumerate(infos)]


def outputs_of(request: Any, infos: Sequence[TensorInfo]) -> dict[str, NDArray[np.generic]]:
    """What a request gave, by name, as copies."""
    return {
        info.name: values(request.get_output_tensor(index), np.dtype(info.dtype)).copy()
        for index, info in enumerate(infos)
    }


class RequestQueue:
    """A queue in front of a compiled network, with as many requests as it computes best at once."""

    def __init__(self, library: Any, compiled: Any) -> None:
        self._queue: Any = library.AsyncInferQueue(compiled)

    @property
    def depth(self) -> int:
        """How many runs are computed at once."""
        return len(self._queue)

    def place(self, arrays: Sequence[Array]) -> None:
        """Copy inputs into every request."""
        for request in self._queue:
            place(request, arrays)

    def run(self, runs: int) -> None:
        """Run ``runs`` times, every request taken as soon as it is free, and wait for the last."""
        for _ in range(runs):
            self._queue.start_async()
        self._queue.wait_all()

    def require(self, expected: NDArray[np.generic], info: TensorInfo, *, precision: str, where: str) -> None:
        """Hold the first output of every request to what another build of the network gave for the same inputs.

        Raises:
            ParityError: one differs by more than rounding does.
        """
        self.run(self.depth)
        for request in self._queue:
            error = relative_error(outputs_of(request, [info])[info.name], expected, variant=where)
            # Written so that NaN fails.
            if not error <= _TOLERANCE[precision]:
                raise ParityError(
                    f"openvino's builds for latency and for throughput differ by {error:.3g} (relative)",
                    where=where,
                    hint="measure another --scenario, or name another --engine",
                )
