"""ONNX Runtime on an NVIDIA GPU: arrays stay on the device, and the whole run is one CUDA graph where it can be."""

import contextlib
import functools
import io
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from prune2deploy.engines.capabilities import LayerProfile
from prune2deploy.engines.cuda import NoCudaDevice, find_device
from prune2deploy.engines.engine import Array, Availability, BuildOptions, BuildSummary, BuiltEngine
from prune2deploy.engines.onnx_file import OnnxFile
from prune2deploy.engines.onnxruntime.session import OrtRun, Provider, one_line, ort_errors, package_availability
from prune2deploy.engines.preconditions import checked_file, no_stored_engine
from prune2deploy.errors import EngineError, InputError
from prune2deploy.progress import SILENT, Progress

CUDA_PROVIDER = "CUDAExecutionProvider"

_GRAPH_ID = "gpu_graph_id"
_NO_GRAPH = "-1"
# What a layer is: if the provider leaves one of these to the CPU, the engine is not a GPU engine.
_LAYERS = {"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "QLinearConv", "QLinearMatMul", "ConvInteger"}


class OrtCudaEngine:
    """ONNX Runtime with its CUDA provider.

    It has no int8 kernels for quantised files (it would compute them in fp32), and so takes none. TF32 is an option of
    the provider: on for ``tf32``, off for ``fp32``.
    """

    name = "ort-cuda"
    precisions = frozenset({"fp32", "tf32", "fp16", "bf16"})
    stores_engines = False

    def availability(self) -> Availability:
        """Whether the GPU edition of onnxruntime is installed, a GPU is there, and the provider's libraries load."""
        package = package_availability()
        if not package.runs:
            return package
        import onnxruntime

        if CUDA_PROVIDER not in onnxruntime.get_available_providers():
            return _absent(
                "this onnxruntime is the CPU edition",
                "pip uninstall onnxruntime, then pip install 'onnxruntime-gpu[cuda,cudnn]'",
                package.version,
            )
        device = find_device()
        if isinstance(device, NoCudaDevice):
            return _absent(device.reason, device.hint, package.version)
        if not _provider_loads():
            return _absent(
                "the CUDA provider of onnxruntime does not load (CUDA or cuDNN libraries of its version are missing)",
                "pip install 'onnxruntime-gpu[cuda,cudnn]'",
                package.version,
            )
        return Availability(runs=True, builds=True, version=package.version, device=device.name)

    def build(self, onnx_path: Path, options: BuildOptions, *, progress: Progress = SILENT) -> BuiltEngine:
        """Open a session on the GPU, with a CUDA graph where the network can be captured.

        Raises:
            EngineError: there is no GPU, the provider does not load, or it leaves a layer to the CPU (named).
            InputError: the file is missing, no valid ONNX network, or of another precision.
        """
        file = checked_file(self, onnx_path, options)
        try:
            return OrtCudaRun(file, options, graph=True)
        except (EngineError, InputError):
            # Control flow and operators on the CPU cannot be captured; whatever else is wrong fails again.
            return OrtCudaRun(file, options, graph=False)

    def build_file(
        self, onnx_path: Path, engine_path: Path, options: BuildOptions, *, progress: Progress = SILENT
    ) -> BuildSummary:
        """Refuse: ONNX Runtime keeps no engine files of its CUDA provider.

        Raises:
            EngineError: always.
        """
        raise no_stored_engine(self.name, "it opens the ONNX file itself")


class OrtCudaRun(OrtRun):
    """One session whose inputs and outputs lie on the GPU.

    A captured graph is tied to the places of its arrays. New shapes get new places, and a graph of their own under the
    next number; arrays of known shapes are copied into the old places. The time of ``run`` is that of a request whose
    data lies on the GPU, launch and wait included.

    It offers no ``DeviceClock`` and no ``Queue``: both need launches that do not wait. Until June 2026 the replay of a
    graph always waited (onnxruntime pull request 28686), a session does not tell whether its version still does, and
    events around a replay that waits would time the host as well.
    """

    def __init__(self, file: OnnxFile, options: BuildOptions, *, graph: bool) -> None:
        provider = Provider(
            engine=OrtCudaEngine.name,
            name=CUDA_PROVIDER,
            device="cuda",
            options={
                "use_tf32": "1" if options.precision == "tf32" else "0",
                "enable_cuda_graph": "1" if graph else "0",
                "cudnn_conv_algo_search": "EXHAUSTIVE",
            },
        )
        _preload_libraries()
        super().__init__(file, provider, options.threads)
        self._graph, self._graphs_made = graph, 0
        self._given: dict[str, Array] = {}
        self._run_options: Any = None
        _require_on_gpu(self._session, file.path)

    def run(self) -> None:
        """Run once over what is bound, and wait for the GPU."""
        self._session.run_with_iobinding(self._binding, self._run_options)
        self._binding.synchronize_outputs()

    def bind(self, arrays: Mapping[str, Array]) -> None:
        """As ``OrtRun.bind``; the arrays are kept for ``time_copies``."""
        super().bind(arrays)
        self._given = {name: np.array(array, order="C") for name, array in arrays.items()}

    def time_copies(self, copies: int) -> list[int]:
        """Copy the bound inputs to the GPU ``copies`` times, as ``bind`` does: from pageable memory, waiting for each.

        Unit: ns of wall-clock time each. Shape: -> (copies,).
        """
        samples = []
        for _ in range(copies):
            begun = time.perf_counter_ns()
            for name, array in self._given.items():
                self._bound[name].update_inplace(array)
            samples.append(time.perf_counter_ns() - begun)
        return samples

    def profile_layers(self, runs: int) -> LayerProfile:
        """Refuse: the profiler of ONNX Runtime's packages counts when a kernel was launched, not how long it ran.

        Builds with ``--enable_cuda_profiling`` tell more; the packages are built without.

        Raises:
            EngineError: always.
        """
        raise EngineError(
            "ONNX Runtime's packages do not time the layers on a GPU",
            where=OrtCudaEngine.name,
            hint="use --engine trt to see where the time goes",
        )

    def inspect(self) -> dict[str, Any]:
        """As ``OrtRun.inspect``, and whether a run is one CUDA graph."""
        return {**super().inspect(), "cuda_graph": self._graph, "tf32": self._provider.options["use_tf32"] == "1"}

    def _bind_anew(self, given: Mapping[str, Array]) -> None:
        super()._bind_anew(given)
        # The run that captures is not one that is timed.
        self.run()

    def _first_run(self, binding: Any) -> None:
        """The run that tells the output shapes: not captured, because its outputs have no fixed place yet."""
        import onnxruntime

        release = getattr(self._session, "release_captured_graph", None)
        if self._graph and self._graphs_made and release is not None:
            release(self._graphs_made)
        uncaptured = onnxruntime.RunOptions()
        uncaptured.add_run_config_entry(_GRAPH_ID, _NO_GRAPH)
        self._session.run_with_iobinding(binding, uncaptured)
        self._graphs_made += 1
        self._run_options = onnxruntime.RunOptions()
        if self._graph:
            self._run_options.add_run_config_entry(_GRAPH_ID, str(self._graphs_made))

    def _binding_error(self, error: Exception) -> EngineError | InputError:
        text = str(error)
        if "allocat" in text.lower() or "cuda" in text.lower():
            where = str(self._file.path)
            return EngineError(
                f"the GPU cannot run it ({one_line(error)})", where=where, hint="use a smaller --batch, see nvidia-smi"
            )
        return super()._binding_error(error)


def _absent(reason: str, hint: str, version: str | None) -> Availability:
    return Availability(runs=False, builds=False, version=version, reason=reason, hint=hint)


def _preload_libraries() -> None:
    """Load CUDA and cuDNN from where pip puts them; the loader does not look there by itself."""
    import onnxruntime

    preload = getattr(onnxruntime, "preload_dlls", None)
    if preload is not None:
        # It prints what it cannot find; whether that matters, the session tells.
        with contextlib.redirect_stdout(io.StringIO()):
            preload()


@functools.cache
def _provider_loads() -> bool:
    """Whether a session really gets the provider: ONNX Runtime falls back to the CPU with a mere warning."""
    import onnxruntime

    _preload_libraries()
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    onnxruntime.set_default_logger_severity(4)
    try:
        session = onnxruntime.InferenceSession(_smallest_network(), settings, providers=[CUDA_PROVIDER])
    except ort_errors():
        return False
    return CUDA_PROVIDER in session.get_providers()


def _smallest_network() -> bytes:
    value = (TensorProto.FLOAT, [1])
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "smallest",
        [helper.make_tensor_value_info("x", *value)],
        [helper.make_tensor_value_info("y", *value)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def _require_on_gpu(session: Any, path: Path) -> None:
    """Refuse a session that runs on the CPU, or leaves layers to it.

    Raises:
        EngineError: it does; the operator and node are named.
    """
    if CUDA_PROVIDER not in session.get_providers():
        raise EngineError(
            "onnxruntime fell back to the CPU", where=str(path), hint="see `p2d doctor`, or use --engine ort-cpu"
        )
    assignments = getattr(session, "get_provider_graph_assignment_info", None)
    if assignments is None:
        return
    for part in assignments():
        for node in part.get_nodes() if part.ep_name != CUDA_PROVIDER else ():
            if node.op_type in _LAYERS:
                raise EngineError(
                    f"ort-cuda cannot run operator {node.op_type} (node '{node.name}') on the GPU",
                    where=str(path),
                    hint="export another --precision, or name another --engine",
                )
