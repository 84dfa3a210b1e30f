"""The little of CUDA that running an engine needs: memory, a stream, its clock, a captured graph. No torch.

``cuda.bindings`` (NVIDIA's own Python bindings) is imported only when something here is called.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prune2deploy.errors import EngineError

_HINT = "see `p2d doctor`"


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaDevice:
    """The GPU that engines run on: the first one that CUDA shows."""

    name: str
    compute_capability: tuple[int, int]
    driver_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NoCudaDevice:
    """Why there is no GPU to run on, and what to do."""

    reason: str
    hint: str


def find_device() -> CudaDevice | NoCudaDevice:
    """The GPU, or why there is none. Never raises."""
    try:
        runtime = _runtime()
    except EngineError as error:
        return NoCudaDevice(reason=error.what, hint=error.hint or _HINT)
    status, count = runtime.cudaGetDeviceCount()
    if status == runtime.cudaError_t.cudaErrorInsufficientDriver:
        return NoCudaDevice(
            reason="there is no NVIDIA driver, or it is too old",
            hint="install a current NVIDIA driver (in a container: start it with access to the GPUs)",
        )
    if status != runtime.cudaError_t.cudaSuccess or not count:
        return NoCudaDevice(
            reason=f"CUDA shows no GPU ({_text(runtime, status)})", hint="check nvidia-smi and CUDA_VISIBLE_DEVICES"
        )
    status, properties = runtime.cudaGetDeviceProperties(0)
    if status != runtime.cudaError_t.cudaSuccess:
        return NoCudaDevice(reason=f"the GPU does not answer ({_text(runtime, status)})", hint="check nvidia-smi")
    _, driver_version = runtime.cudaDriverGetVersion()
    return CudaDevice(
        name=properties.name.split(b"\0")[0].decode(),
        compute_capability=(int(properties.major), int(properties.minor)),
        driver_version=int(driver_version),
    )


class DeviceBuffer:
    """Memory on the GPU, freed by ``free``. ``address`` is what engines are given."""

    def __init__(self, bytes_total: int) -> None:
        self.bytes_total = bytes_total
        # Empty tensors need an address too.
        self.address = int(_call("cudaMalloc", max(bytes_total, 1)))

    def write(self, array: NDArray[np.generic]) -> None:
        """Copy a contiguous host array here, and wait for it."""
        kind = _runtime().cudaMemcpyKind.cudaMemcpyHostToDevice
        _call("cudaMemcpy", self.address, array.ctypes.data, array.nbytes, kind)
        # From pageable memory cudaMemcpy may return when the array has been staged and is not here yet ("API
        # synchronization behavior" in CUDA's reference), and streams that do not block do not wait for the default one.
        _call("cudaStreamSynchronize", 0)

    def read_into(self, array: NDArray[np.generic]) -> None:
        """Copy what is here into a contiguous host array, and wait for it."""
        kind = _runtime().cudaMemcpyKind.cudaMemcpyDeviceToHost
        _call("cudaMemcpy", array.ctypes.data, self.address, array.nbytes, kind)

    def free(self) -> None:
        """Give the memory back; freeing twice is harmless."""
        if self.address:
            _call("cudaFree", self.address)
            self.address = 0


class Stream:
    """A stream of its own: the default stream cannot be captured, and synchronises with everything."""

    def __init__(self) -> None:
        runtime = _runtime()
        self._handle: Any = _call("cudaStreamCreateWithFlags", runtime.cudaStreamNonBlocking)
        # Looked up once, because both are called in timed loops.
        self._synchronize: Callable[[Any], tuple[Any]] = runtime.cudaStreamSynchronize
        self._success = runtime.cudaError_t.cudaSuccess

    @property
    def number(self) -> int:
        """The handle as an integer, as TensorRT takes it."""
        return int(self._handle)

    def synchronize(self) -> None:
        """Wait for everything on the stream."""
        (status,) = self._synchronize(self._handle)
        if status != self._success:
            raise _cuda_error("cudaStreamSynchronize", status)

    def capture(self, enqueue: Callable[[], None]) -> "Graph":
        """Record what ``enqueue`` puts on this stream, without running it, as a graph that can be launched.

        Raises:
            EngineError: something in it cannot be captured. The stream is usable afterwards.
        """
        mode = _runtime().cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        _call("cudaStreamBeginCapture", self._handle, mode)
        try:
            enqueue()
        except EngineError:
            # A capture that was begun must be ended, or the stream stays unusable; its own error says less.
            _runtime().cudaStreamEndCapture(self._handle)
            raise
        recorded = _call("cudaStreamEndCapture", self._handle)
        try:
            return Graph(_call("cudaGraphInstantiate", recorded, 0), self._handle)
        finally:
            _call("cudaGraphDestroy", recorded)

    def time(self, enqueue: Callable[[], None], runs: int) -> list[int]:
        """Put the work of ``enqueue`` here ``runs`` times in a row, and time each by the GPU's clock. Unit: ns.

        One untimed run goes first: behind it the host gets ahead, so that the GPU goes from one run to the next without
        waiting for a launch. Where the GPU is faster than the launches, its wait for them is in the time all the same.
        """
        with ExitStack() as stack:
            moments = [(_Moment(), _Moment()) for _ in range(runs)]
            for pair in moments:
                for moment in pair:
                    stack.callback(moment.close)
            enqueue()
            for before, after in moments:
                before.record(self._handle)
                enqueue()
                after.record(self._handle)
            self.synchronize()
            return [after.since(before) for before, after in moments]

    def close(self) -> None:
        """Destroy the stream; closing twice is harmless."""
        if self._handle is not None:
            _call("cudaStreamDestroy", self._handle)
            self._handle = None


class _Moment:
    """A point in the work of a stream (a CUDA event), and when the GPU reached it."""

    def __init__(self) -> None:
        runtime = _runtime()
        self._handle: Any = _call("cudaEventCreate")
        self._record: Callable[[Any, Any], tuple[Any]] = runtime.cudaEventRecord
        self._success = runtime.cudaError_t.cudaSuccess

    def record(self, stream: Any) -> None:
        """Put it behind all that is on the stream now."""
        (status,) = self._record(self._handle, stream)
        if status != self._success:
            raise _cuda_error("cudaEventRecord", status)

    def since(self, earlier: "_Moment") -> int:
        """How long after another one it was reached. Unit: ns, in steps of about 500."""
        milliseconds: float = _call("cudaEventElapsedTime", earlier._handle, self._handle)
        return round(milliseconds * 1e6)

    def close(self) -> None:
        """Destroy the event."""
        _call("cudaEventDestroy", self._handle)


class Graph:
    """A captured sequence of GPU work, bound to the addresses and shapes that it was captured with."""

    def __init__(self, executable: Any, stream: Any) -> None:
        runtime = _runtime()
        self._executable, self._stream = executable, stream
        self._launch: Callable[[Any, Any], tuple[Any]] = runtime.cudaGraphLaunch
        self._success = runtime.cudaError_t.cudaSuccess

    def launch(self) -> None:
        """Start it on its stream, and do not wait."""
        (status,) = self._launch(self._executable, self._stream)
        if status != self._success:
            raise _cuda_error("cudaGraphLaunch", status)

    def close(self) -> None:
        """Destroy the graph; closing twice is harmless."""
        if self._executable is not None:
            _call("cudaGraphExecDestroy", self._executable)
            self._executable = None


def _runtime() -> Any:
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise EngineError(
            f"the CUDA bindings for Python cannot be loaded ({error})", hint="pip install cuda-bindings"
        ) from error
    return runtime


def _call(function: str, *arguments: Any) -> Any:
    """Call a function of the CUDA runtime and return its result (None where it has none).

    Raises:
        EngineError: it did not return success.
    """
    runtime = _runtime()
    status, *results = getattr(runtime, function)(*arguments)
    if status != runtime.cudaError_t.cudaSuccess:
        raise _cuda_error(function, status)
    return results[0] if results else None


def _cuda_error(function: str, status: Any) -> EngineError:
    runtime = _runtime()
    hint = "check nvidia-smi, then try again"
    if status == runtime.cudaError_t.cudaErrorMemoryAllocation:
        hint = "free GPU memory or use a smaller --batch"
    return EngineError(f"CUDA failed: {_text(runtime, status)}", where=function, hint=hint)


def _text(runtime: Any, status: Any) -> str:
    _, text = runtime.cudaGetErrorString(status)
    return text.decode() if isinstance(text, bytes) else str(text)
