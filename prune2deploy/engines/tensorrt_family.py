"""TensorRT and TensorRT for RTX: one implementation, two packages."""

import hashlib
import importlib
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from prune2deploy.engines.cuda import CudaDevice, NoCudaDevice, find_device
from prune2deploy.engines.engine import Availability, BuildOptions, BuildSummary, BuiltEngine
from prune2deploy.engines.engine_file import EngineRecord, read_engine, write_engine
from prune2deploy.engines.onnx_file import OnnxFile, read_onnx_file, require_precision
from prune2deploy.engines.tensorrt_build import serialized_from_onnx
from prune2deploy.engines.tensorrt_run import TensorRTRun
from prune2deploy.errors import EngineError, InputError
from prune2deploy.progress import SILENT, Progress


class TensorRTEngine:
    """NVIDIA TensorRT 10 and 11. Builds and runs on a GPU; an engine belongs to the GPU model it was built on."""

    name: str = "trt"
    precisions: frozenset[str] = frozenset({"fp32", "tf32", "fp16", "bf16"})
    stores_engines: bool = True
    module: ClassVar[str] = "tensorrt"
    builds_without_device: ClassVar[bool] = False
    hint: ClassVar[str] = "pip install 'prune2deploy[trt]' (its libraries come from NVIDIA's package index)"

    def availability(self) -> Availability:
        """Whether the package is there and loads, and a GPU to run on."""
        if find_spec(self.module) is None:
            return Availability(runs=False, builds=False, reason=f"{self.module} is not installed", hint=self.hint)
        device = find_device()
        # Without a GPU TensorRT can do nothing, and loading its libraries takes seconds.
        if isinstance(device, NoCudaDevice) and not self.builds_without_device:
            return Availability(runs=False, builds=False, reason=device.reason, hint=device.hint)
        try:
            version = str(self._library().__version__)
        except EngineError as error:
            return Availability(runs=False, builds=False, reason=error.what, hint=error.hint)
        if isinstance(device, NoCudaDevice):
            return Availability(runs=False, builds=True, version=version, reason=device.reason, hint=device.hint)
        return Availability(runs=True, builds=True, version=version, device=device.name)

    def build(self, onnx_path: Path, options: BuildOptions, *, progress: Progress = SILENT) -> BuiltEngine:
        """Build an engine, or take it from ``options.cache``, and load it on the GPU.

        Raises:
            EngineError: the package or a GPU is missing, or the network cannot be built (operator named).
            InputError: the file is missing, no ONNX network, or of another precision.
        """
        device = self._device()
        library = self._library()
        file = self._checked(onnx_path, options)
        if options.cache is None:
            content, record = self._build(library, file, options, device)
        else:
            engine_path = options.cache / self._cache_name(library, file, options, device)
            content, record = self._cached(library, file, options, device, engine_path)
        return TensorRTRun(library, self.name, content, record, file)

    def build_file(
        self, onnx_path: Path, engine_path: Path, options: BuildOptions, *, progress: Progress = SILENT
    ) -> BuildSummary:
        """Build an engine and store it at ``engine_path``, with ``ENGINE.json`` beside it.

        Raises:
            EngineError: the package is missing, a GPU where one is needed, or the network cannot be built.
            InputError: the file is missing, no ONNX network, or of another precision.
            StorageError: the engine cannot be written.
        """
        library = self._library()
        device = None if self.builds_without_device else self._device()
        file = self._checked(onnx_path, options)
        content, record = self._build(library, file, options, device)
        write_engine(engine_path, content, record)
        return BuildSummary(
            file=engine_path,
            bytes_total=record.bytes_total,
            build_seconds=record.build_seconds,
            details={"profiles": [dict(profile) for profile in record.profiles], **record.details},
        )

    def load_file(self, onnx_path: Path, engine_path: Path, options: BuildOptions) -> BuiltEngine:
        """Load a stored engine of an ONNX file, after its record was checked against the file and this machine.

        Raises:
            InputError: the engine is missing, damaged, or was built from another file.
            EngineError: it was built for another engine, version or GPU, or there is no GPU.
        """
        library = self._library()
        file = self._checked(onnx_path, options)
        content, record = self._stored(library, file, options, engine_path)
        self._device()
        return TensorRTRun(library, self.name, content, record, file)

    def _library(self) -> Any:
        try:
            return importlib.import_module(self.module)
        except ModuleNotFoundError as error:
            raise EngineError(f"{self.module} is not installed", where=self.name, hint=self.hint) from error
        except (ImportError, OSError) as error:
            raise EngineError(f"{self.module} cannot be loaded ({error})", where=self.name, hint=self.hint) from error

    def _device(self) -> CudaDevice:
        if find_spec(self.module) is None:
            raise EngineError(f"{self.module} is not installed", where=self.name, hint=self.hint)
        device = find_device()
        if isinstance(device, NoCudaDevice):
            raise EngineError(device.reason, where=self.name, hint=f"{device.hint}, or use --engine ort-cpu")
        return device

    def _checked(self, onnx_path: Path, options: BuildOptions) -> OnnxFile:
        if options.precision not in self.precisions:
            raise EngineError(
                f"has no precision {options.precision}",
                where=self.name,
                hint=f"choose from {', '.join(sorted(self.precisions))}",
            )
        file = read_onnx_file(onnx_path)
        require_precision(file, options.precision)
        return file

    def _build(
        self, library: Any, file: OnnxFile, options: BuildOptions, device: CudaDevice | None
    ) -> tuple[bytes, EngineRecord]:
        built = serialized_from_onnx(library, self.name, file, options)
        record = EngineRecord(
            engine=self.name,
            precision=options.precision,
            onnx_sha256=file.sha256,
            engine_sha256=hashlib.sha256(built.content).hexdigest(),
            bytes_total=len(built.content),
            library_version=str(library.__version__),
            device=self._bound_device(device),
            batches=built.batches,
            profiles=built.profiles,
            build_seconds=built.build_seconds,
            details=built.details,
        )
        return built.content, record

    def _stored(
        self, library: Any, file: OnnxFile, options: BuildOptions, engine_path: Path
    ) -> tuple[bytes, EngineRecord]:
        here = find_device()
        return read_engine(
            engine_path,
            engine=self.name,
            library_version=str(library.__version__),
            device=_device_text(here) if isinstance(here, CudaDevice) else None,
            onnx_sha256=file.sha256,
            precision=options.precision,
            batches=options.batches,
        )

    def _cached(
        self, library: Any, file: OnnxFile, options: BuildOptions, device: CudaDevice, engine_path: Path
    ) -> tuple[bytes, EngineRecord]:
        if engine_path.exists():
            try:
                return self._stored(library, file, options, engine_path)
            except (InputError, EngineError):
                # A cache entry that cannot be used is replaced below.
                pass
        content, record = self._build(library, file, options, device)
        write_engine(engine_path, content, record)
        return content, record

    def _bound_device(self, device: CudaDevice | None) -> str | None:
        """The GPU that an engine is tied to; engines that build without one run on any."""
        return None if device is None or self.builds_without_device else _device_text(device)

    def _cache_name(self, library: Any, file: OnnxFile, options: BuildOptions, device: CudaDevice) -> str:
        key = json.dumps(
            [
                self.name,
                str(library.__version__),
                file.sha256,
                options.precision,
                sorted(set(options.batches)),
                options.tensorrt.workspace_bytes,
                self._bound_device(device),
            ]
        )
        digest = hashlib.sha256(key.encode()).hexdigest()[:16]
        return f"{file.path.stem}-{self.name}-{digest}.engine"


class TensorRTRTXEngine(TensorRTEngine):
    """NVIDIA TensorRT for RTX: builds anywhere, for every supported GPU; compiles for the GPU when it is loaded."""

    name = "trt-rtx"
    module = "tensorrt_rtx"
    builds_without_device = True
    hint = "pip install 'prune2deploy[trt-rtx]'"


def _device_text(device: CudaDevice) -> str:
    major, minor = device.compute_capability
    return f"{device.name} sm_{major}{minor}"
