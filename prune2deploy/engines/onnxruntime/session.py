"""What the engines of ONNX Runtime share: sessions, bound arrays, errors in one line, and what a session tells."""

import importlib.metadata
import re
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prune2deploy.engines.capabilities import LayerProfile
from prune2deploy.engines.engine import Array, Availability, TensorInfo
from prune2deploy.engines.onnx_file import OnnxFile, load_onnx_proto, nodes_of_operator
from prune2deploy.engines.onnxruntime.census import optimised_census
from prune2deploy.engines.onnxruntime.profile import profile_from_trace
from prune2deploy.engines.preconditions import closed, require_profilable
from prune2deploy.errors import EngineError, InputError

CPU_PROVIDER = "CPUExecutionProvider"
_LOG_FATAL_ONLY = 4
# Runs of a traced session before those that count: it allocates and lays out its memory in them.
_RUNS_TO_SETTLE = 3

# How ONNX Runtime names an operator that it cannot run, in each of its ways of failing.
_UNSUPPORTED = (
    re.compile(r"implementation for (?P<operator>\w+)\(\d+\) node with name '(?P<node>[^']*)'"),
    re.compile(r"No Op registered for (?P<operator>\w+) with"),
    re.compile(r"(?:(?P<domain>[\w.]+):)?(?P<operator>\w+)\(-?\d+\) is not a registered function/op"),
    re.compile(r"of operator \((?P<operator>\w+)\) in node \((?P<node>[^)]*)\) is invalid"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """An execution provider: its name and options, and the device on which arrays are bound."""

    engine: str
    name: str
    device: str = "cpu"
    options: Mapping[str, str] = field(default_factory=dict)


def package_availability() -> Availability:
    """Whether onnxruntime is installed and can be imported; it then runs on the CPU."""
    if find_spec("onnxruntime") is None:
        return Availability(
            runs=False, builds=False, reason="onnxruntime is not installed", hint="pip install onnxruntime"
        )
    try:
        import onnxruntime
    except ImportError as error:
        return Availability(
            runs=False,
            builds=False,
            reason=f"onnxruntime cannot be loaded ({error})",
            hint="pip install --force-reinstall onnxruntime",
        )
    return Availability(runs=True, builds=True, version=onnxruntime.__version__, device="CPU")


class OrtRun:
    """One open session with its bound arrays. ``run`` copies nothing: inputs and outputs keep their places."""

    def __init__(self, file: OnnxFile, provider: Provider, threads: int) -> None:
        self._file, self._provider, self._threads = file, provider, threads
        self._session: Any = open_session(file.path, provider, threads)
        self._binding: Any = None
        self._bound: dict[str, Any] = {}
        self._types: dict[str, np.dtype[Any]] = {}
        self._results: dict[str, Any] = {}

    @property
    def inputs(self) -> Sequence[TensorInfo]:
        """Inputs, in the file's order."""
        return self._file.inputs

    @property
    def outputs(self) -> Sequence[TensorInfo]:
        """Outputs, in the file's order."""
        return self._file.outputs

    def bind(self, arrays: Mapping[str, Array]) -> None:
        """Copy inputs to the device; for new shapes also run once, because only a run tells the output shapes.

        Raises:
            InputError: a name, dtype or shape is not what the network takes.
            EngineError: the session is closed, or the device cannot run this batch.
        """
        if self._session is None:
            raise closed(self._file.path)
        given = {name: np.array(array, order="C") for name, array in arrays.items()}
        try:
            if self._fits(given):
                for name, array in given.items():
                    self._bound[name].update_inplace(array)
            else:
                self._bind_anew(given)
        except ort_errors() as error:
            raise self._binding_error(error) from error

    def run(self) -> None:
        """Run once over what is bound, and wait."""
        self._session.run_with_iobinding(self._binding)

    def read(self) -> dict[str, NDArray[np.generic]]:
        """Outputs of the last run, as copies."""
        return {name: np.array(value.numpy(), copy=True) for name, value in self._results.items()}

    def inspect(self) -> dict[str, Any]:
        """The optimised graph: operators by type beside those of the file, and which precision its layers compute in.

        Operators of the ``com.microsoft.nchwc`` domain are the blocked convolutions that ONNX Runtime
        prefers; a convolution outside of it was not blocked, often because of an awkward channel count.
        """
        with tempfile.TemporaryDirectory() as folder:
            optimised_path = Path(folder) / "optimised.onnx"
            open_session(self._file.path, self._provider, self._threads, optimised_path=optimised_path)
            optimised = load_onnx_proto(optimised_path)
        operators = Counter(
            node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"
            for node in optimised.graph.node
        )
        return {
            "provider": self._provider.name,
            "version": importlib.metadata.version(_distribution()),
            "threads": self._threads,
            "nodes": len(optimised.graph.node),
            "operators": dict(sorted(operators.items())),
            "operators_in_file": dict(sorted(self._file.operators.items())),
            "census": optimised_census(optimised, self._file.path).to_document(),
        }

    def profile_layers(self, runs: int) -> LayerProfile:
        """How long each node of the optimised graph takes, in a second session with the settings of this one.

        Raises:
            InputError: nothing is bound, or ``runs`` is not positive.
            EngineError: the profile cannot be read.
        """
        require_profilable(runs, bound=self._binding is not None, where=self._file.path)
        with tempfile.TemporaryDirectory() as folder:
            optimised_path, prefix = Path(folder) / "optimised.onnx", Path(folder) / "trace"
            session = open_session(
                self._file.path, self._provider, self._threads, optimised_path=optimised_path, trace_prefix=prefix
            )
            binding = session.io_binding()
            for name, value in self._bound.items():
                binding.bind_ortvalue_input(name, value)
            for tensor in self.outputs:
                binding.bind_output(tensor.name, self._provider.device)
            for _ in range(_RUNS_TO_SETTLE + runs):
                session.run_with_iobinding(binding)
            trace = Path(session.end_profiling())
            return profile_from_trace(trace, load_onnx_proto(optimised_path), self._file.path, runs=runs)

    def close(self) -> None:
        """Free the session; closing twice is harmless."""
        self._session = self._binding = None
        self._results, self._bound = {}, {}

    def _fits(self, given: Mapping[str, Array]) -> bool:
        """Whether the places of the last binding can hold these arrays."""
        return self._bound.keys() == given.keys() and all(
            self._bound[name].shape() == list(array.shape) and self._types[name] == array.dtype
            for name, array in given.items()
        )

    def _bind_anew(self, given: Mapping[str, Array]) -> None:
        import onnxruntime

        device = self._provider.device
        binding = self._session.io_binding()
        bound = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array, device, 0) for name, array in given.items()}
        for name, value in bound.items():
            binding.bind_ortvalue_input(name, value)
        for tensor in self.outputs:
            binding.bind_output(tensor.name, device)
        self._first_run(binding)
        values = binding.get_outputs()
        binding.clear_binding_outputs()
        for tensor, value in zip(self.outputs, values, strict=True):
            binding.bind_ortvalue_output(tensor.name, value)
        self._bound, self._binding = bound, binding
        self._types = {name: array.dtype for name, array in given.items()}
        self._results = {tensor.name: value for tensor, value in zip(self.outputs, values, strict=True)}

    def _first_run(self, binding: Any) -> None:
        """The run that tells the output shapes, and allocates outputs."""
        self._session.run_with_iobinding(binding)

    def _binding_error(self, error: Exception) -> EngineError | InputError:
        return InputError(f"does not take these arrays ({one_line(error)})", where=str(self._file.path))


def open_session(
    path: Path,
    provider: Provider,
    threads: int,
    *,
    optimised_path: Path | None = None,
    trace_prefix: Path | None = None,
) -> Any:
    """Open a session: all graph optimisations, sequential execution, one thread between operators.

    Waiting threads spin (ONNX Runtime's default, which low latency needs) but are told to stop when a run ends:
    several sessions share the process while variants are interleaved, and threads that spin on would slow the next
    one. ``optimised_path`` is where to write the optimised graph, its weights in a file beside it; ``trace_prefix`` is
    how the file begins in which every run is traced.

    Raises:
        EngineError: an operator or opset is not to be had (named).
        InputError: the file is no valid network.
    """
    import onnxruntime

    onnxruntime.set_default_logger_severity(_LOG_FATAL_ONLY)
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = _LOG_FATAL_ONLY
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if optimised_path is not None:
        settings.optimized_model_filepath = str(optimised_path)
        # A graph with its weights inside could not be written beyond 2 GB, and only their types are read.
        settings.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights")
        settings.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    if trace_prefix is not None:
        settings.enable_profiling = True
        settings.profile_file_prefix = str(trace_prefix)
    try:
        return onnxruntime.InferenceSession(str(path), settings, providers=[(provider.name, dict(provider.options))])
    except ort_errors() as error:
        raise _translated(error, path, provider.engine) from error


def _translated(error: Exception, path: Path, engine: str) -> EngineError | InputError:
    message = one_line(error)
    for pattern in _UNSUPPORTED:
        if found := pattern.search(message):
            operator = found["operator"]
            named = found.groupdict().get("node")
            nodes = (named,) if named else nodes_of_operator(load_onnx_proto(path), operator)
            listing = ", ".join(repr(node) for node in nodes[:3])
            return EngineError(
                f"{engine} cannot run operator {operator} (node {listing})",
                where=str(path),
                hint="replace the operator in the model, or name another --engine",
            )
    if "opset" in message.lower():
        return EngineError(
            f"{engine} cannot run this opset ({message})", where=str(path), hint="update onnxruntime, or export anew"
        )
    return InputError(f"is no valid ONNX network ({message})", where=str(path), hint="export it again")


def ort_errors() -> tuple[type[Exception], ...]:
    """ONNX Runtime's errors, which share no base class."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    # The last two are what checks outside of the session raise: names of inputs, types of arrays.
    return (
        state.Fail, state.InvalidArgument, state.InvalidGraph, state.InvalidProtobuf, state.NoModel, state.NoSuchFile,
        state.NotImplemented, state.RuntimeException, state.EPFail, ValueError, RuntimeError,
    )  # fmt: skip


def one_line(error: Exception) -> str:
    """What an error of ONNX Runtime says, without its code."""
    text = " ".join(str(error).split())
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)


def _distribution() -> str:
    """The package that provides ``onnxruntime`` here: it has a CPU and a GPU edition."""
    return importlib.metadata.packages_distributions()["onnxruntime"][0]
