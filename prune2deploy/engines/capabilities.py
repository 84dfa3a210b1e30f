"""What only some engines can tell: each is a Protocol of its own, asked for with ``isinstance``."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTime:
    """How long one layer of a built engine takes, as the engine's own profiler says.

    ``latency_ns`` is the mean over the profiled runs. ``operator`` is the engine's word for what it does. ``nodes`` are
    the names of the ONNX nodes that it was made of, empty where the engine cannot tell (a layer it put in by itself).
    """

    name: str
    operator: str
    latency_ns: float
    nodes: tuple[str, ...] = ()


@runtime_checkable
class DeviceClock(Protocol):
    """Its device has a clock of its own (CUDA events), which leaves out the launch and the wait."""

    def time_on_device(self, runs: int) -> list[int]:
        """Run ``runs`` times what is bound. Unit: ns each, by the device's clock. Shape: -> (runs,)."""


@runtime_checkable
class InputCopies(Protocol):
    """Its inputs lie in another memory than the host's."""

    def time_copies(self, copies: int) -> list[int]:
        """Copy the bound inputs from host to device ``copies`` times. Unit: ns of wall-clock time each."""


@runtime_checkable
class Queue(Protocol):
    """It can hold more than one run at a time."""

    def run_queued(self, runs: int) -> None:
        """Run ``runs`` times what is bound, the queue never empty, and wait for the last."""


@runtime_checkable
class LayerProfiler(Protocol):
    """It can say where its time goes."""

    def profile_layers(self, runs: int) -> Sequence[LayerTime]:
        """The mean time of each layer over ``runs`` runs of what is bound, in the order in which they run.

        Raises:
            EngineError: the profiler is not to be had here.
        """
