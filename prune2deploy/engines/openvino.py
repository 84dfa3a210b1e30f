"""OpenVINO on the CPU."""

import contextlib
import importlib
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prune2deploy.engines.capabilities import LayerProfile
from prune2deploy.engines.engine import Array, Availability, BuildOptions, BuildSummary, BuiltEngine, TensorInfo
from prune2deploy.engines.engine_census import EngineLayer, census_of_engine
from prune2deploy.engines.onnx_file import OnnxFile, load_onnx_proto, nodes_of_operator
from prune2deploy.engines.openvino_profile import profile_of_request
from prune2deploy.engines.openvino_requests import RequestQueue, inputs_of, outputs_of, place
from prune2deploy.engines.preconditions import (
    checked_arrays,
    checked_file,
    closed,
    no_stored_engine,
    require_profilable,
)
from prune2deploy.errors import EngineError, InputError
from prune2deploy.progress import SILENT, Progress

_DEVICE = "CPU"
_HINT = "pip install 'prune2deploy[openvino]'"
_TELEMETRY = "openvino_telemetry"
# OpenVINO's names of what costs FLOPs, and of the types that they compute in.
_LAYER_TYPES = {"Convolution", "GroupConvolution", "Deconvolution", "FullyConnected", "MatMul", "MHA"}
_LAYER_TYPES |= {"ScaledDotProductAttention", "ScaledDotProductAttentionWithKVCache", "QKVProjection", "LLMMLP"}
_PRECISIONS = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "i8": "int8", "u8": "int8"}
_CAPABILITIES = {"FP32": "fp32", "FP16": "fp16", "BF16": "bf16", "INT8": "int8"}

# How OpenVINO names operators that it does not know, and those whose ONNX node it cannot translate.
_UNKNOWN = re.compile(r"No conversion rule found for operations: ([^\n]+)")
_FAILED = re.compile(r"ONNX node '<Node\((\w+)\): ?([^>]*)>'")


_FOR_LATENCY = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"}
_FOR_THROUGHPUT = {"PERFORMANCE_HINT": "THROUGHPUT"}
_COUNTING = {**_FOR_LATENCY, "PERF_COUNT": "YES"}


class OpenVINOEngine:
    """OpenVINO's CPU plugin, set for latency: one stream, ``threads`` threads.

    Its queue is a build of its own, set for throughput: as many streams as OpenVINO finds best for ``threads`` threads,
    which they share.

    Float layers compute in the type of the file where the CPU has that, else in fp32; the census of an engine tells. By
    itself OpenVINO would compute an fp32 file in bf16 where the CPU can.
    """

    name = "openvino"
    precisions = frozenset({"fp32", "fp16", "bf16", "int8"})
    stores_engines = False

    def availability(self) -> Availability:
        """Whether openvino is installed and finds a CPU that it runs on."""
        if find_spec("openvino") is None:
            return Availability(runs=False, builds=False, reason="openvino is not installed", hint=_HINT)
        try:
            library = _library()
            core = library.Core()
            capabilities = core.get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES")
        except (ImportError, OSError, RuntimeError) as error:
            return Availability(
                runs=False,
                builds=False,
                reason=f"openvino cannot be loaded ({_reason(error)})",
                hint="pip install --force-reinstall openvino",
            )
        computes = ", ".join(precision for name, precision in _CAPABILITIES.items() if name in capabilities)
        version = library.get_version().split("-")[0]
        return Availability(runs=True, builds=True, version=version, device=f"CPU ({computes})")

    def build(self, onnx_path: Path, options: BuildOptions, *, progress: Progress = SILENT) -> BuiltEngine:
        """Compile an ONNX file for the CPU, at the first of the batch sizes.

        Raises:
            EngineError: openvino is not usable, has no such precision, or lacks an operator (named).
            InputError: the file is missing, no valid ONNX network, or of another precision.
        """
        return _Compiled(checked_file(self, onnx_path, options), options)

    def build_file(
        self, onnx_path: Path, engine_path: Path, options: BuildOptions, *, progress: Progress = SILENT
    ) -> BuildSummary:
        """Refuse: a compiled model is tied to the CPU and the version, and compiling the ONNX file takes seconds.

        Raises:
            EngineError: always.
        """
        raise no_stored_engine(self.name, "it compiles the ONNX file itself")


class _Compiled:
    """The network compiled once for each batch size that is bound, since fixed shapes run faster than free ones."""

    def __init__(self, file: OnnxFile, options: BuildOptions) -> None:
        self._file, self._options = file, options
        self._library = _library()
        self._core: Any = self._library.Core()
        self._requests: dict[tuple[tuple[int, ...], ...], Any] = {}
        self._queues: dict[tuple[tuple[int, ...], ...], RequestQueue] = {}
        self._network = self._read()
        self._request: Any = None
        self._shapes: tuple[tuple[int, ...], ...] = ()
        self._compiled(
            tuple(options.shapes.get(one.name, _with_batch(one.shape, options.batches[0])) for one in file.inputs)
        )

    @property
    def inputs(self) -> Sequence[TensorInfo]:
        """Inputs, in the file's order."""
        return self._file.inputs

    @property
    def outputs(self) -> Sequence[TensorInfo]:
        """Outputs, in the file's order."""
        return self._file.outputs

    def bind(self, arrays: Mapping[str, Array]) -> None:
        """Place inputs in tensors of OpenVINO, compiling the network for their shapes if they are new.

        Raises:
            InputError: a name, dtype or shape is not what the network takes.
            EngineError: the engine is closed, or cannot be compiled for these shapes.
        """
        if self._core is None:
            raise closed(self._file.path)
        given = checked_arrays(self.inputs, arrays, self._file.path)
        self._shapes = tuple(array.shape for array in given)
        self._request = self._compiled(self._shapes)
        place(self._request, given)
        if self._shapes in self._queues:
            self._queues[self._shapes].place(given)

    def run(self) -> None:
        """Run once over what is bound, and wait."""
        # infer() would also copy the outputs for Python.
        self._request.start_async()
        self._request.wait()

    def read(self) -> dict[str, NDArray[np.generic]]:
        """Outputs of the last run, as copies."""
        return outputs_of(self._request, self.outputs)

    def queue_depth(self) -> int:
        """How many runs are computed at once: the streams of a build for throughput, made when first asked for.

        Raises:
            EngineError: it cannot be compiled.
            ParityError: it computes something else than the engine itself.
        """
        return self._queue().depth

    def run_queued(self, runs: int) -> None:
        """Run ``runs`` times what is bound on the build for throughput, all its streams busy, and wait for the last.

        Raises:
            EngineError: as ``queue_depth``, or OpenVINO fails at a run.
            ParityError: as ``queue_depth``.
        """
        queue = self._queue()
        try:
            queue.run(runs)
        except RuntimeError as error:
            raise EngineError(
                f"openvino failed at a queued run ({_reason(error)})",
                where=str(self._file.path),
                hint="use a smaller --batch, or name another --engine",
            ) from error

    def inspect(self) -> dict[str, Any]:
        """What the plugin executes: nodes by type, kernels, which precision its layers compute in, and the settings."""
        compiled = next(iter(self._requests.values())).get_compiled_model()
        nodes = [_Node(node) for node in compiled.get_runtime_model().get_ops()]
        layers = [node for node in nodes if node.kind in _LAYER_TYPES]
        return {
            "device": self._core.get_property(_DEVICE, "FULL_DEVICE_NAME"),
            "version": self._library.get_version(),
            "threads": int(compiled.get_property("INFERENCE_NUM_THREADS")),
            "inference_precision": str(compiled.get_property("INFERENCE_PRECISION_HINT").to_string()),
            "nodes": sum(node.kind not in ("Const", "Input", "Output") for node in nodes),
            "operators": dict(sorted(Counter(node.kind for node in nodes).items())),
            "kernels": dict(sorted(Counter(node.kernel for node in layers).items())),
            "operators_in_file": dict(sorted(self._file.operators.items())),
            "census": census_of_engine(
                (EngineLayer(precision=node.precision, names=node.names) for node in layers), self._file.path
            ).to_document(),
        }

    def profile_layers(self, runs: int) -> LayerProfile:
        """How long each executed node takes, in the network compiled anew with counters.

        Raises:
            InputError: nothing is bound, or ``runs`` is not positive.
            EngineError: the network cannot be compiled again.
        """
        require_profilable(runs, bound=self._request is not None, where=self._file.path)
        counting = self._compile(self._shapes, _COUNTING).create_infer_request()
        place(counting, inputs_of(self._request, self.inputs))
        return profile_of_request(counting, self._file.path, runs=runs)

    def close(self) -> None:
        """Free the compiled networks; closing twice is harmless."""
        self._request = self._core = self._network = None
        self._requests, self._queues = {}, {}

    def _queue(self) -> RequestQueue:
        """The queue at the bound shapes, holding what is bound; compiled and checked when first asked for."""
        if self._shapes not in self._queues:
            self.run()
            expected, first = self.read(), self.outputs[0]
            queue = RequestQueue(self._library, self._compile(self._shapes, _FOR_THROUGHPUT))
            queue.place(inputs_of(self._request, self.inputs))
            queue.require(expected[first.name], first, precision=self._options.precision, where=str(self._file.path))
            self._queues[self._shapes] = queue
        return self._queues[self._shapes]

    def _read(self) -> Any:
        try:
            return self._core.read_model(str(self._file.path))
        except RuntimeError as error:
            raise _translated(error, self._file.path) from error

    def _float_type(self) -> str:
        """What float layers compute in: the file's own type where the CPU has it, else fp32."""
        wanted = {"fp16": "FP16", "bf16": "BF16"}.get(self._options.precision, "FP32")
        present = wanted in self._core.get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES")
        return {"FP16": "f16", "BF16": "bf16"}.get(wanted, "f32") if present else "f32"

    def _compiled(self, shapes: tuple[tuple[int, ...], ...]) -> Any:
        """A request of the network at these shapes."""
        if shapes not in self._requests:
            self._requests[shapes] = self._compile(shapes, _FOR_LATENCY).create_infer_request()
        return self._requests[shapes]

    def _compile(self, shapes: tuple[tuple[int, ...], ...], hints: Mapping[str, Any]) -> Any:
        settings = {
            **hints,
            "INFERENCE_NUM_THREADS": self._options.threads,
            # Which CPUs they may use is decided where this process was started.
            "ENABLE_CPU_PINNING": False,
            "INFERENCE_PRECISION_HINT": self._float_type(),
        }
        try:
            self._network.reshape(dict(enumerate(map(list, shapes))))
            return self._core.compile_model(self._network, _DEVICE, settings)
        except RuntimeError as error:
            spelled = ", ".join("x".join(map(str, shape)) for shape in shapes)
            raise EngineError(
                f"openvino cannot compile it for inputs of {spelled} ({_reason(error)})",
                where=str(self._file.path),
                hint="name another --engine",
            ) from error


class _Node:
    """What OpenVINO says of one node that it executes."""

    def __init__(self, node: Any) -> None:
        facts = node.get_rt_info()
        self.kind = facts["layerType"].astype(str)
        self.kernel = facts["primitiveType"].astype(str)
        precision = facts["runtimePrecision"].astype(str)
        self.precision = _PRECISIONS.get(precision, precision)
        self.names = tuple(facts["originalLayersNames"].astype(str).split(","))


def _library() -> Any:
    with _without_telemetry():
        return importlib.import_module("openvino")


@contextlib.contextmanager
def _without_telemetry() -> Iterator[None]:
    """Keep openvino from reporting its import to its makers: without this package it goes on in silence."""
    if _TELEMETRY in sys.modules:
        yield
        return
    # None makes an import of that name fail.
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[_TELEMETRY]


def _with_batch(shape: tuple[int | None, ...], batch: int) -> tuple[int, ...]:
    """The shape with ``batch`` for a free first size, and 1 for other free ones, which binding will tell."""
    return tuple((batch if index == 0 else 1) if size is None else size for index, size in enumerate(shape))


def _translated(error: RuntimeError, path: Path) -> EngineError | InputError:
    message = str(error)
    model = load_onnx_proto(path)
    # OpenVINO calls a node by its output.
    names = {output: node.name or output for node in model.graph.node for output in node.output}
    for operator, output in _refused(message):
        nodes = (names.get(output, output),) if output else nodes_of_operator(model, operator)
        if nodes:
            listing = ", ".join(repr(name) for name in nodes[:3])
            return EngineError(
                f"openvino cannot run operator {operator} (node {listing})",
                where=str(path),
                hint="replace the operator in the model, or name another --engine",
            )
    return InputError(f"is no valid ONNX network ({_reason(error)})", where=str(path), hint="export it again")


def _refused(message: str) -> Iterator[tuple[str, str]]:
    """(operator, output of its node) that a report says cannot be translated; the latter empty where it names none."""
    if unknown := _UNKNOWN.search(message):
        for operator in unknown[1].split(","):
            yield re.sub(r"-\d+$", "", re.split(r"[.:]", operator.strip())[-1]), ""
    yield from _FAILED.findall(message)


def _reason(error: Exception) -> str:
    """The line of OpenVINO's report that says what is wrong: the last one that is not a place in its source."""
    lines = [" ".join(line.split()) for line in str(error).splitlines()]
    telling = [line for line in lines if line and not line.startswith(("Exception from", "Check ", "Summary"))]
    return (telling or lines or [type(error).__name__])[-1]
