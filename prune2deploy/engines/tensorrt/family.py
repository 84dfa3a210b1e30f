"""TensorRT and TensorRT for RTX: one implementation, two packages."""

import hashlib
import json
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from prune2deploy.engines.census import Census, file_census, require_layers_of
from prune2deploy.engines.cuda import CudaDevice, NoCudaDevice, find_device
from prune2deploy.engines.engine import Availability, BuildOptions, BuildSummary, BuiltEngine
from prune2deploy.engines.onnx_file import OnnxFile, read_onnx_file, require_precision
from prune2deploy.engines.tensorrt.build import serialized_from_onnx
from prune2deploy.engines.tensorrt.engine_file import (
    EngineRecord,
    read_engine,
    read_record,
    require_space,
    write_engine,
)
from prune2deploy.engines.tensorrt.layers import engine_census, node_flops
from prune2deploy.engines.tensorrt.library import INSTALL, is_installed, listening, loaded_library
from prune2deploy.engines.tensorrt.locking import locked
from prune2deploy.engines.tensorrt.run import TensorRTRun, deserialized, inspected_layers
from prune2deploy.engines.tensorrt.settings import offered_capabilities
from prune2deploy.engines.tensorrt.timing_cache import timing_cache_path
from prune2deploy.errors import EngineError, InputError
from prune2deploy.progress import SILENT, Progress
from prune2deploy.storage import sha256_of_file

LOCK_SECONDS = 1800.0
_MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """One engine to be built or loaded. ``identity`` holds the fields of its record that tell it from any other."""

    library: Any
    file: OnnxFile
    options: BuildOptions
    device: CudaDevice | None
    identity: Mapping[str, Any]

    @property
    def cache_name(self) -> str:
        digest = hashlib.sha256(json.dumps(self.identity).encode()).hexdigest()[:16]
        return f"{self.file.path.stem}-{self.identity['engine']}-{digest}.engine"


class TensorRTEngine:
    """NVIDIA TensorRT 10 and 11. Builds and runs on a GPU; an engine belongs to the GPU model it was built on."""

    name: str = "trt"
    precisions: frozenset[str] = frozenset({"fp32", "tf32", "fp16", "bf16", "int8"})
    stores_engines: bool = True
    module: ClassVar[str] = "tensorrt"
    builds_without_device: ClassVar[bool] = False
    keeps_timings: ClassVar[bool] = True

    @property
    def hint(self) -> str:
        """How to install it."""
        return INSTALL.get(self.module, INSTALL["tensorrt"])

    def availability(self) -> Availability:
        """Whether the package is there and loads, and a GPU to run on."""
        if not is_installed(self.module):
            return Availability(runs=False, builds=False, reason=f"{self.module} is not installed", hint=self.hint)
        device = find_device()
        # Without a GPU TensorRT can do nothing, and loading its libraries takes seconds.
        if isinstance(device, NoCudaDevice) and not self.builds_without_device:
            return Availability(runs=False, builds=False, reason=device.reason, hint=device.hint)
        try:
            version = str(loaded_library(self.module, where=self.name).__version__)
        except EngineError as error:
            return Availability(runs=False, builds=False, reason=error.what, hint=error.hint)
        if isinstance(device, NoCudaDevice):
            return Availability(runs=False, builds=True, version=version, reason=device.reason, hint=device.hint)
        return Availability(runs=True, builds=True, version=version, device=device.name)

    def build(self, onnx_path: Path, options: BuildOptions, *, progress: Progress = SILENT) -> BuiltEngine:
        """Build an engine, or take it from ``options.cache``, and load it on the GPU.

        Raises:
            EngineError: the package or a GPU is missing, the network cannot be built (operator named), an option asks
                for what the library lacks, or no layer of the engine is of the precision that it was built as.
            InputError: the file is missing, no ONNX network, or of another precision.
            StorageError: the cache cannot be written.
        """
        device = self._device()
        job = self._job(onnx_path, options, device)
        if options.cache is None:
            content, record = self._build(job, progress)
        else:
            engine_path = options.cache / job.cache_name
            self._stored_or_built(job, engine_path, progress)
            content, record = self._read(job, engine_path)
        return self._loaded(job, content, record)

    def build_file(
        self, onnx_path: Path, engine_path: Path, options: BuildOptions, *, progress: Progress = SILENT
    ) -> BuildSummary:
        """Build an engine and store it at ``engine_path``, with ``ENGINE.json`` beside it.

        One that lies there already is left as it is if it was built from this file, with these options, for this
        machine. Of several processes that build the same file one builds, and the others wait and take that.

        Raises:
            EngineError: the package is missing, a GPU where one is needed, the network cannot be built, an option
                asks for what the library lacks, or no layer is of the precision that it was built as.
            InputError: the file is missing, no ONNX network, or of another precision.
            StorageError: the engine cannot be written, or another process does not stop writing it.
        """
        found = find_device() if is_installed(self.module) else None
        device = found if isinstance(found, CudaDevice) else None
        if not self.builds_without_device:
            device = self._device()
        job = self._job(onnx_path, options, device)
        record, reused = self._stored_or_built(job, engine_path, progress)
        return BuildSummary(
            file=engine_path,
            bytes_total=record.bytes_total,
            build_seconds=record.build_seconds,
            details={"profiles": [dict(profile) for profile in record.profiles], **record.details},
            reused=reused,
        )

    def load_file(self, onnx_path: Path, engine_path: Path, options: BuildOptions) -> BuiltEngine:
        """Load a stored engine of an ONNX file, after its record was checked against the file and this machine.

        Loading runs native code that trusts the engine like code of its own.

        Raises:
            InputError: the engine is missing, damaged, or was built from another file.
            EngineError: it was built for another engine, version, platform or GPU, or there is no GPU.
        """
        found = find_device()
        job = self._job(onnx_path, options, found if isinstance(found, CudaDevice) else None)
        content, record = self._read(job, engine_path)
        self._device()
        return self._loaded(job, content, record)

    def _device(self) -> CudaDevice:
        if not is_installed(self.module):
            raise EngineError(f"{self.module} is not installed", where=self.name, hint=self.hint)
        device = find_device()
        if isinstance(device, NoCudaDevice):
            raise EngineError(device.reason, where=self.name, hint=f"{device.hint}, or use --engine ort-cpu")
        return device

    def _job(self, onnx_path: Path, options: BuildOptions, device: CudaDevice | None) -> "_Job":
        library = loaded_library(self.module, where=self.name)
        if options.precision not in self.precisions:
            raise EngineError(
                f"has no precision {options.precision}",
                where=self.name,
                hint=f"choose from {', '.join(sorted(self.precisions))}",
            )
        file = read_onnx_file(onnx_path)
        require_precision(file, options.precision)
        bound = None if device is None or self.builds_without_device else _device_text(device)
        asked = options.tensorrt
        identity = {
            "engine": self.name,
            "precision": options.precision,
            "onnx_sha256": file.sha256,
            "library_version": str(library.__version__),
            "device": bound,
            "platform": None if self.builds_without_device else _platform(),
            "batches": tuple(sorted(set(options.batches))),
            "ranges": tuple(sorted(set(asked.ranges))),
            "shapes": {name: tuple(shape) for name, shape in sorted(options.shapes.items())},
            "workspace_bytes": asked.workspace_bytes,
            "optimization_level": asked.optimization_level,
            "hardware_compatible": asked.hardware_compatible,
            "version_compatible": asked.version_compatible,
            "stripped": asked.strip_weights,
            "compute_capabilities": tuple(sorted(set(asked.compute_capabilities))),
        }
        return _Job(library=library, file=file, options=options, device=device, identity=identity)

    def _stored_or_built(self, job: "_Job", engine_path: Path, progress: Progress) -> tuple[EngineRecord, bool]:
        """The record of the engine at that path, and whether it was there already."""
        with locked(engine_path, seconds=LOCK_SECONDS, progress=progress):
            current = _current(engine_path, job.identity)
            if current is not None:
                return current, True
            require_space(engine_path, _bytes_expected(job))
            content, record = self._build(job, progress)
            write_engine(engine_path, content, record)
        return record, False

    def _build(self, job: "_Job", progress: Progress) -> tuple[bytes, EngineRecord]:
        timings = None
        if self.keeps_timings and job.options.tensorrt.timing_cache and job.device is not None:
            version = str(job.library.__version__)
            timings = timing_cache_path(self.name, version, _device_text(job.device))
        built = serialized_from_onnx(
            job.library,
            self.name,
            job.file,
            job.options,
            has_gpu=job.device is not None,
            timings=timings,
            progress=progress,
        )
        census = self._census(job, built.content)
        details = {**built.details, "metadata": dict(job.file.metadata)}
        if census is not None:
            require_layers_of(census, job.options.precision, where=str(job.file.path))
            details["census"] = census.to_document()
        record = EngineRecord(
            **{**job.identity, "batches": built.shapes.batches, "ranges": built.shapes.ranges},
            engine_sha256=hashlib.sha256(built.content).hexdigest(),
            bytes_total=len(built.content),
            profiles=built.shapes.profiles,
            build_seconds=built.build_seconds,
            details=details,
        )
        return built.content, record

    def _census(self, job: "_Job", content: bytes) -> Census | None:
        """Of the engine where this machine has a GPU that loads it; else of the file, whose types it keeps."""
        if job.device is not None:
            with listening(job.library) as logger:
                host_code = job.options.tensorrt.version_compatible
                runtime, engine = deserialized(job.library, logger, content, host_code=host_code)
                if engine is not None:
                    census = engine_census(inspected_layers(job.library, engine), node_flops(job.file.path))
                    # The engine must go before its runtime.
                    del engine
                    del runtime
                    if census.layers:
                        return census
        try:
            return file_census(job.file.path)
        except InputError:
            return None

    def _read(self, job: "_Job", engine_path: Path) -> tuple[bytes, EngineRecord]:
        return read_engine(
            engine_path,
            engine=self.name,
            library_version=str(job.library.__version__),
            device=None if job.device is None else _device_text(job.device),
            platform=_platform(),
            onnx_sha256=job.file.sha256,
            precision=job.options.precision,
            batches=job.options.batches,
        )

    def _loaded(self, job: "_Job", content: bytes, record: EngineRecord) -> TensorRTRun:
        run = TensorRTRun(job.library, self.name, content, record, job.file)
        try:
            require_layers_of(run.census(), record.precision, where=str(job.file.path))
        except EngineError:
            run.close()
            raise
        return run


class TensorRTRTXEngine(TensorRTEngine):
    """NVIDIA TensorRT for RTX: builds anywhere, for every supported GPU; compiles for the GPU when it is loaded."""

    name = "trt-rtx"
    module = "tensorrt_rtx"
    builds_without_device = True
    keeps_timings = False

    def availability(self) -> Availability:
        """As that of TensorRT; some data centre GPUs can only build, since it has no kernels for them."""
        found = super().availability()
        device = find_device()
        if not found.runs or not isinstance(device, CudaDevice):
            return found
        offered = offered_capabilities(loaded_library(self.module, where=self.name))
        # What is newer than all that are listed may run what was built for the newest of them.
        if not offered or device.compute_capability in offered or device.compute_capability > max(offered):
            return found
        return replace(
            found,
            runs=False,
            reason=f"has nothing for {_device_text(device)}",
            hint="use --engine trt; engines for other GPUs can be built here",
        )


def _device_text(device: CudaDevice) -> str:
    major, minor = device.compute_capability
    return f"{device.name} sm_{major}{minor}"


def _platform() -> str:
    """The operating system and processor, to which engines of TensorRT belong."""
    return f"{sys.platform}-{platform.machine()}"


def _current(engine_path: Path, identity: Mapping[str, Any]) -> EngineRecord | None:
    """The record of what lies there, if it is whole and what would be built; None otherwise."""
    if not engine_path.is_file():
        return None
    try:
        record = read_record(engine_path)
    except InputError:
        return None
    same = all(getattr(record, name) == value for name, value in identity.items())
    return record if same and sha256_of_file(engine_path) == record.engine_sha256 else None


def _bytes_expected(job: _Job) -> int:
    """Roughly what the engine will take: its weights, and up to a MiB of kernels and shapes for each profile."""
    profiles = len(job.options.batches) + len(job.options.tensorrt.ranges)
    weights = 0 if job.options.tensorrt.strip_weights else job.file.bytes_total
    return weights + profiles * _MIB
