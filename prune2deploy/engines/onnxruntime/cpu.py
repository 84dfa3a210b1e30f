"""ONNX Runtime on the CPU: runs everywhere, and is the engine that every other one is checked against."""

from pathlib import Path

from prune2deploy.engines.engine import Availability, BuildOptions, BuildSummary, BuiltEngine
from prune2deploy.engines.onnxruntime.session import CPU_PROVIDER, OrtRun, Provider, package_availability
from prune2deploy.engines.preconditions import checked_file, no_stored_engine
from prune2deploy.progress import SILENT, Progress


class OrtCpuEngine:
    """ONNX Runtime with its CPU provider, as a service would run it.

    It takes fp16 files, but has no half kernels for most CPUs and widens them to fp32: the census of an engine tells.
    """

    name = "ort-cpu"
    precisions = frozenset({"fp32", "fp16", "int8"})
    stores_engines = False

    def availability(self) -> Availability:
        """Whether onnxruntime is installed and can be imported."""
        return package_availability()

    def build(self, onnx_path: Path, options: BuildOptions, *, progress: Progress = SILENT) -> BuiltEngine:
        """Open a session on an ONNX file.

        Raises:
            EngineError: onnxruntime is not usable, has no such precision, or lacks an operator (named).
            InputError: the file is missing, no valid ONNX network, or of another precision.
        """
        file = checked_file(self, onnx_path, options)
        return OrtRun(file, Provider(engine=self.name, name=CPU_PROVIDER), options.threads)

    def build_file(
        self, onnx_path: Path, engine_path: Path, options: BuildOptions, *, progress: Progress = SILENT
    ) -> BuildSummary:
        """Refuse: ONNX Runtime's optimised graph is laid out for one CPU, and opening the ONNX file takes seconds.

        Raises:
            EngineError: always.
        """
        raise no_stored_engine(self.name, "it opens the ONNX file itself")
