"""ONNX Runtime on the CPU: runs everywhere, and is the engine that every other one is checked against."""

import importlib.metadata
import re
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prune2deploy.engines.engine import Array, Availability, BuildOptions, BuildSummary, BuiltEngine, TensorInfo
from prune2deploy.engines.onnx_file import (
    OnnxFile,
    load_onnx_proto,
    nodes_of_operator,
    read_onnx_file,
    require_precision,
)
from prune2deploy.errors import EngineError, InputError
from prune2deploy.progress import SILENT, Progress

_PROVIDER = "CPUExecutionProvider"
_LOG_FATAL_ONLY = 4

# How ONNX Runtime names an operator that it cannot run, in each of its three ways of failing.
_UNSUPPORTED = (
    re.compile(r"implementation for (?P<operator>\w+)\(\d+\) node with name '(?P<node>[^']*)'"),
    re.compile(r"No Op registered for (?P<operator>\w+) with"),
    re.compile(r"(?:(?P<domain>[\w.]+):)?(?P<operator>\w+)\(-?\d+\) is not a registered function/op"),
)


class OrtCpuEngine:
    """ONNX Runtime with its CPU provider, as a service would run it: all graph optimisations, sequential execution.

    One session uses ``threads`` threads inside an operator and one between operators. Waiting threads spin
    (ONNX Runtime's default, which low latency needs) but are told to stop when a run ends: several sessions
    share the process while variants are interleaved, and threads that spin on would slow the next variant.
    """

    name = "ort-cpu"
    precisions = frozenset({"fp32"})
    stores_engines = False

    def availability(self) -> Availability:
        """Whether onnxruntime is installed and can be imported."""
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

    def build(self, onnx_path: Path, options: BuildOptions, *, progress: Progress = SILENT) -> BuiltEngine:
        """Open a session on an ONNX file.

        Raises:
            EngineError: onnxruntime is not usable, has no such precision, or lacks an operator (named).
            InputError: the file is missing or no valid ONNX network.
        """
        present = self.availability()
        if not present.runs:
            raise EngineError(present.reason or "is not usable here", where=self.name, hint=present.hint)
        if options.precision not in self.precisions:
            raise EngineError(
                f"has no precision {options.precision}",
                where=self.name,
                hint=f"choose from {', '.join(sorted(self.precisions))}",
            )
        file = read_onnx_file(onnx_path)
        require_precision(file, options.precision)
        return _Session(file, options.threads)

    def build_file(
        self, onnx_path: Path, engine_path: Path, options: BuildOptions, *, progress: Progress = SILENT
    ) -> BuildSummary:
        """Refuse: ONNX Runtime's optimised graph is laid out for one CPU, and opening the ONNX file takes seconds.

        Raises:
            EngineError: always.
        """
        raise EngineError(
            "has no stored engine: it opens the ONNX file itself",
            where=self.name,
            hint="run `p2d bench` directly, or build with --engine trt or trt-rtx",
        )


class _Session:
    """One open session with its bound arrays."""

    def __init__(self, file: OnnxFile, threads: int) -> None:
        self._file = file
        self._threads = threads
        self._session: Any = _open_session(file.path, threads)
        self._binding: Any = None
        self._bound: dict[str, Array] = {}
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
        """Copy inputs and preallocate outputs; runs once, because only a run tells the output shapes.

        Raises:
            InputError: a name, dtype or shape is not what the network takes.
        """
        import onnxruntime

        session = self._opened()
        self._bound = {name: np.array(array, order="C") for name, array in arrays.items()}
        try:
            outputs = session.run(None, self._bound)
        except _ort_errors() as error:
            raise InputError(f"does not take these arrays ({_one_line(error)})", where=str(self._file.path)) from error
        binding = session.io_binding()
        for name, array in self._bound.items():
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
        self._results = {}
        for tensor, output in zip(self.outputs, outputs, strict=True):
            self._results[tensor.name] = onnxruntime.OrtValue.ortvalue_from_numpy(output)
            binding.bind_ortvalue_output(tensor.name, self._results[tensor.name])
        self._binding = binding

    def run(self) -> None:
        """Run once over what is bound."""
        self._session.run_with_iobinding(self._binding)

    def read(self) -> dict[str, NDArray[np.generic]]:
        """Outputs of the last run, as copies."""
        return {name: np.array(value.numpy(), copy=True) for name, value in self._results.items()}

    def inspect(self) -> dict[str, Any]:
        """The optimised graph: its node count and its operators by type, beside those of the file.

        Operators of the ``com.microsoft.nchwc`` domain are the blocked convolutions that ONNX Runtime
        prefers; a convolution outside of it was not blocked, often because of an awkward channel count.
        """
        with tempfile.TemporaryDirectory() as folder:
            optimised_path = Path(folder) / "optimised.onnx"
            _open_session(self._file.path, self._threads, optimised_path=optimised_path)
            optimised = load_onnx_proto(optimised_path)
        operators = Counter(
            node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"
            for node in optimised.graph.node
        )
        return {
            "provider": _PROVIDER,
            "version": importlib.metadata.version(_distribution()),
            "threads": self._threads,
            "nodes": len(optimised.graph.node),
            "operators": dict(sorted(operators.items())),
            "operators_in_file": dict(sorted(self._file.operators.items())),
        }

    def close(self) -> None:
        """Free the session."""
        self._session = self._binding = None
        self._results, self._bound = {}, {}

    def _opened(self) -> Any:
        if self._session is None:
            raise EngineError("the session is closed", where=str(self._file.path), hint="build the engine again")
        return self._session


def _open_session(path: Path, threads: int, *, optimised_path: Path | None = None) -> Any:
    import onnxruntime

    onnxruntime.set_default_logger_severity(_LOG_FATAL_ONLY)
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = _LOG_FATAL_ONLY
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    if optimised_path is not None:
        settings.optimized_model_filepath = str(optimised_path)
    try:
        return onnxruntime.InferenceSession(str(path), settings, providers=[_PROVIDER])
    except _ort_errors() as error:
        raise _translated(error, path) from error


def _translated(error: Exception, path: Path) -> EngineError | InputError:
    message = _one_line(error)
    for pattern in _UNSUPPORTED:
        if found := pattern.search(message):
            operator = found["operator"]
            named = found.groupdict().get("node")
            nodes = (named,) if named else nodes_of_operator(load_onnx_proto(path), operator)
            listing = ", ".join(repr(node) for node in nodes[:3])
            return EngineError(
                f"ort-cpu cannot run operator {operator} (node {listing})",
                where=str(path),
                hint="replace the operator in the model, or name another --engine",
            )
    if "opset" in message.lower():
        return EngineError(
            f"ort-cpu cannot run this opset ({message})", where=str(path), hint="update onnxruntime, or export anew"
        )
    return InputError(f"is no valid ONNX network ({message})", where=str(path), hint="export it again")


def _ort_errors() -> tuple[type[Exception], ...]:
    """ONNX Runtime's errors, which share no base class."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    # ValueError is what Python-side checks of the inputs' names raise.
    return (
        state.Fail, state.InvalidArgument, state.InvalidGraph, state.InvalidProtobuf, state.NoModel, state.NoSuchFile,
        state.NotImplemented, state.RuntimeException, state.EPFail, ValueError,
    )  # fmt: skip


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)


def _distribution() -> str:
    """The package that provides ``onnxruntime`` here: it has a CPU and a GPU edition."""
    return importlib.metadata.packages_distributions()["onnxruntime"][0]
