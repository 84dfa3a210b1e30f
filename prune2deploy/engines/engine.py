"""What an engine is: the Protocol that all of them share, and the values it speaks in.

Engines live to the right of export: they know ONNX files and arrays, and import no torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from prune2deploy.errors import InputError
from prune2deploy.progress import SILENT, Progress

Array = NDArray[Any]

PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "int8")


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRTOptions:
    """What only the TensorRT family knows.

    ``ranges`` are optimisation profiles beside those of the single batch sizes: smallest, best and largest batch.
    ``workspace_bytes`` limits scratch memory and ``optimization_level`` (0 to 5) the search for kernels; None is the
    library's default. ``timing_cache`` keeps measured kernels in the user's cache folder. ``hardware_compatible``
    engines run on other GPU generations too, ``version_compatible`` ones under later versions of the library.
    ``strip_weights`` leaves out what can be filled in again from the ONNX file. ``compute_capabilities`` are the GPU
    generations to build for (TensorRT for RTX), all that the library offers if empty.
    """

    ranges: tuple[tuple[int, int, int], ...] = ()
    workspace_bytes: int | None = None
    optimization_level: int | None = None
    timing_cache: bool = True
    hardware_compatible: bool = False
    version_compatible: bool = False
    strip_weights: bool = False
    compute_capabilities: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        for least, best, most in self.ranges:
            if not 1 <= least <= best <= most:
                raise InputError(
                    f"{least}:{best}:{most} is no range of batch sizes",
                    where="--batch",
                    hint="pass smallest, best and largest: --batch 1:8:32",
                )
        if self.workspace_bytes is not None and self.workspace_bytes < 1:
            raise InputError(f"is positive, not {self.workspace_bytes}", where="--workspace")
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise InputError(f"is a level from 0 to 5, not {self.optimization_level}", where="--optimization-level")


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """How an engine is built from an ONNX file.

    ``batches`` are the batch sizes that will be run; engines with profiles have one for each. ``threads`` is
    the number of CPU threads inside one operator (CPU engines only). ``cache`` is a folder for built engines,
    None to keep none. ``bundle`` is the bundle that the ONNX file was exported from, where one is known: the torch
    engines run that. ``shapes`` are the whole shapes of inputs, batch included, by name, where the file leaves more
    than the batch free; there is then one batch size.
    """

    precision: str = "fp32"
    batches: tuple[int, ...] = (1,)
    threads: int = 1
    cache: Path | None = None
    bundle: Path | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    tensorrt: TensorRTOptions = field(default_factory=TensorRTOptions)

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise InputError(
                f"{self.precision!r} is no precision", where="--precision", hint=f"choose from {', '.join(PRECISIONS)}"
            )
        if not (self.batches or self.tensorrt.ranges) or any(batch < 1 for batch in self.batches):
            raise InputError(f"batch sizes are positive, not {self.batches}", where="--batch")
        if self.threads < 1:
            raise InputError(f"the number of threads is positive, not {self.threads}", where="--threads")


@dataclass(frozen=True, slots=True, kw_only=True)
class Availability:
    """Whether an engine can be used on this machine, and if not, what to do about it.

    ``builds`` is True where engines can be built though not run (TensorRT for RTX without a GPU). ``device`` begins
    with "CPU" where they run on that, and is the name of the GPU otherwise.
    """

    runs: bool
    builds: bool
    version: str | None = None
    device: str | None = None
    reason: str | None = None
    hint: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """One input or output: its name, dtype as NumPy spells it, and shape with None for dynamic sizes."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


class BuiltEngine(Protocol):
    """An engine for one ONNX file, ready to run in this process.

    Timing calls ``bind`` once for each batch size, ``run`` many times, ``read`` when it wants outputs.
    ``run`` returns only when the outputs are there.
    """

    @property
    def inputs(self) -> Sequence[TensorInfo]:
        """Inputs, in the file's order."""

    @property
    def outputs(self) -> Sequence[TensorInfo]:
        """Outputs, in the file's order."""

    def bind(self, arrays: Mapping[str, Array]) -> None:
        """Place inputs where ``run`` reads them (on the device, for GPU engines), and allocate outputs."""

    def run(self) -> None:
        """Run once over what is bound, and wait for the outputs."""

    def read(self) -> dict[str, NDArray[np.generic]]:
        """Outputs of the last run, by name, as host arrays of their own."""

    def inspect(self) -> dict[str, Any]:
        """What the engine tells of itself: layers, precisions, providers. JSON values only.

        Under "census" lies the document of an ``engines.census.Census``: which precision its layers really compute in.
        """

    def close(self) -> None:
        """Free what it holds; closing twice is harmless."""


class Engine(Protocol):
    """One way to run ONNX files."""

    @property
    def name(self) -> str:
        """What ``--engine`` calls it."""

    @property
    def precisions(self) -> frozenset[str]:
        """Precisions of ONNX files that it takes."""

    @property
    def stores_engines(self) -> bool:
        """Whether a built engine can be kept in a file."""

    def availability(self) -> Availability:
        """Whether it can be used here. Never raises; imports its package only when asked."""

    def build(self, onnx_path: Path, options: BuildOptions, *, progress: Progress = SILENT) -> BuiltEngine:
        """Build an engine that can be run.

        Raises:
            EngineError: the engine is not usable here, or lacks an operator (named).
            InputError: the file is missing or no ONNX file.
        """

    def build_file(
        self, onnx_path: Path, engine_path: Path, options: BuildOptions, *, progress: Progress = SILENT
    ) -> "BuildSummary":
        """Build and store an engine without running it, where the engine has files to store.

        Raises:
            EngineError: as ``build``; also where this engine has no stored form.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSummary:
    """What a build gave: the stored file, its size, how long it took, and what the engine tells of itself.

    ``reused``: the file was there already, built from the same network in the same way, and was left as it is.
    """

    file: Path
    bytes_total: int
    build_seconds: float
    details: Mapping[str, Any] = field(default_factory=dict)
    reused: bool = False
