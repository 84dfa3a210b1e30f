"""What only some engines can tell: each is a Protocol of its own, asked for with ``isinstance``."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTime:
    """How long one layer of a built engine takes, as the engine's own profiler says.

    ``latency_ns`` is a mean or median over profiled runs; ``LayerProfile.told_by`` says which. ``operator`` is the
    engine's word for what it does. ``nodes`` are the names of the ONNX nodes that it was made of (the first output
    where a node has no name), empty where the engine cannot tell (a layer it put in by itself).
    """

    name: str
    operator: str
    latency_ns: float
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerProfile:
    """The layers of a built engine in the order in which they run.

    ``run_ns`` is what a whole run took in the same runs and by the same measure, so that the rest lies between the
    layers; None where profiled runs are not like others (without the CUDA graph, say). ``told_by`` says whose profiler
    this is and what the figures are; ``left_out`` is what it cannot tell, in words.
    """

    layers: tuple[LayerTime, ...]
    run_ns: float | None
    told_by: str
    left_out: tuple[str, ...] = ()


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

    def queue_depth(self) -> int:
        """How many runs it holds at once. May build what serves the queue, which takes its time."""

    def run_queued(self, runs: int) -> None:
        """Run ``runs`` times what is bound, the queue never empty, and wait for the last."""


@runtime_checkable
class LayerProfiler(Protocol):
    """It can say where its time goes."""

    def profile_layers(self, runs: int) -> LayerProfile:
        """How long each layer takes over ``runs`` runs of what is bound, beside the timed engine where need be.

        Raises:
            InputError: nothing is bound, or ``runs`` is not positive.
            EngineError: the profiler is not to be had here.
        """
