"""Running a deserialized TensorRT engine on a GPU, with its work captured in a CUDA graph."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prune2deploy.engines.capabilities import LayerProfile
from prune2deploy.engines.census import Census
from prune2deploy.engines.cuda import DeviceBuffer, Graph, Stream
from prune2deploy.engines.engine import Array, TensorInfo
from prune2deploy.engines.onnx_file import OnnxFile
from prune2deploy.engines.preconditions import require_profilable
from prune2deploy.engines.tensorrt.engine_file import EngineRecord
from prune2deploy.engines.tensorrt.layers import EngineLayer, engine_census, engine_layers, layer_summary, node_flops
from prune2deploy.engines.tensorrt.library import last_error, listening
from prune2deploy.engines.tensorrt.profile import layer_profiler, profile_from_times
from prune2deploy.engines.tensorrt.shapes import profile_number, spelled
from prune2deploy.errors import EngineError, InputError

# Without the graph, the first runs are slower than those that follow.
_RUNS_TO_SETTLE = 3


class TensorRTRun:
    """One engine in GPU memory, with one execution context.

    ``bind`` copies inputs to the GPU, and for a new shape chooses its profile, runs once plainly (kernels are
    specialised and memory is laid out then) and captures the run in a CUDA graph. ``run`` launches the graph
    and waits: the time of ``run`` is that of a request whose data lies on the GPU, launch and wait included.
    """

    def __init__(self, library: Any, name: str, content: bytes, record: EngineRecord, file: OnnxFile) -> None:
        self.library, self._name, self._record, self._file = library, name, record, file
        with listening(library) as self._logger:
            self._runtime, self._engine = deserialized(
                library, self._logger, content, host_code=record.version_compatible
            )
            if self._engine is None:
                raise self._failure("cannot be loaded on this GPU", hint="build it again on this machine")
            if record.stripped:
                self._refit()
        self._context = self._new_context()
        if self._context is None:
            raise self._failure("has no room to run on this GPU", hint="free GPU memory or use a smaller --batch")
        self._stream = Stream()
        self._buffers: dict[str, DeviceBuffer] = {}
        self._host_outputs: dict[str, NDArray[np.generic]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._graph: Graph | None = None
        self._given: dict[str, Array] = {}

    @property
    def inputs(self) -> Sequence[TensorInfo]:
        """Inputs, in the file's order."""
        return self._file.inputs

    @property
    def outputs(self) -> Sequence[TensorInfo]:
        """Outputs, in the file's order."""
        return self._file.outputs

    def bind(self, arrays: Mapping[str, Array]) -> None:
        """Copy inputs to the GPU; for shapes other than the last ones, allocate outputs and capture the run anew.

        Raises:
            InputError: an input is missing, or has another type than the engine takes.
            EngineError: the engine has no profile for these shapes, or the GPU fails.
        """
        self._logger.errors.clear()
        given = {tensor.name: self._input_array(tensor, arrays) for tensor in self.inputs}
        shapes = {name: array.shape for name, array in given.items()}
        if shapes != self._shapes:
            self._release_bindings()
            self._choose_shapes(shapes)
            for name, array in given.items():
                self._place(name, array.nbytes)
            self._allocate_outputs()
        for name, array in given.items():
            self._buffers[name].write(array)
        if shapes != self._shapes:
            self._enqueue()
            self._stream.synchronize()
            self._graph = self._captured()
            self._shapes = shapes
        self._given = given

    def run(self) -> None:
        """Run once over what is bound, and wait for the outputs."""
        self._launch()
        self._stream.synchronize()

    def time_on_device(self, runs: int) -> list[int]:
        """Run ``runs`` times what is bound, each timed by CUDA events around its graph. Unit: ns. Shape: -> (runs,).

        Raises:
            EngineError: the GPU fails.
        """
        return self._stream.time(self._launch, runs)

    def time_copies(self, copies: int) -> list[int]:
        """Copy the bound inputs to the GPU ``copies`` times, as ``bind`` does: from pageable memory, waiting for each.

        Unit: ns of wall-clock time each. Shape: -> (copies,).

        Raises:
            EngineError: the GPU fails.
        """
        samples = []
        for _ in range(copies):
            begun = time.perf_counter_ns()
            for name, array in self._given.items():
                self._buffers[name].write(array)
            samples.append(time.perf_counter_ns() - begun)
        return samples

    def queue_depth(self) -> int:
        """Two: one run that the GPU works on, and the next one waiting on its stream."""
        return 2

    def run_queued(self, runs: int) -> None:
        """Launch ``runs`` runs without waiting, then wait for the last.

        All may be under way: CUDA holds a launch back where a stream is full. They follow each other on one stream, in
        one context, and so read and write the same memory.

        Raises:
            EngineError: the GPU fails.
        """
        for _ in range(runs):
            self._launch()
        self._stream.synchronize()

    def read(self) -> dict[str, NDArray[np.generic]]:
        """Outputs of the last run, copied from the GPU."""
        outputs = {}
        for name, layout in self._host_outputs.items():
            outputs[name] = np.empty_like(layout)
            self._buffers[name].read_into(outputs[name])
        return outputs

    def inspect(self) -> dict[str, Any]:
        """Layers as the engine runs them, counted by type and by the type of their outputs, and how it was built."""
        return {
            "engine": self._name,
            "version": self._record.library_version,
            "precision": self._record.precision,
            **layer_summary(self._layers()),
            "census": self.census().to_document(),
            "cuda_graph": self._graph is not None,
            "profiles": [dict(profile) for profile in self._record.profiles],
            "build_seconds": self._record.build_seconds,
            "network": dict(self._record.details),
        }

    def census(self) -> Census:
        """Which precision its layers really run in, with the FLOPs of the ONNX nodes that they were made of."""
        census = engine_census(self._layers(), node_flops(self._file.path))
        recorded = self._record.details.get("census")
        # Some engines tell nothing of their layers; then what the build found stands.
        return Census.from_document(recorded) if recorded and not census.layers else census

    def profile_layers(self, runs: int) -> LayerProfile:
        """How long each layer takes, by the library's profiler; not through the CUDA graph, which runs all as one.

        Raises:
            InputError: nothing is bound, or ``runs`` is not positive.
            EngineError: the engine could not be run.
        """
        require_profilable(runs, bound=bool(self._shapes), where=self._file.path)
        times: dict[str, list[float]] = {}
        self.run_profiled(layer_profiler(self.library, {}), _RUNS_TO_SETTLE)
        self.run_profiled(layer_profiler(self.library, times), runs)
        return profile_from_times(times, self._layers(), self._file.path, runs=runs)

    def run_profiled(self, profiler: Any, iterations: int) -> None:
        """Run what is bound that often, each layer reported to ``profiler`` (the library's ``IProfiler``).

        Not through the CUDA graph, which runs all layers as one.

        Raises:
            InputError: nothing is bound.
            EngineError: the engine could not be run.
        """
        if not self._shapes:
            raise InputError("has no inputs bound", where=str(self._file.path), hint="call bind before profiling")
        self._context.profiler = profiler
        try:
            for _ in range(iterations):
                self._enqueue()
                self._stream.synchronize()
        finally:
            self._context.profiler = None

    def close(self) -> None:
        """Free GPU memory, the graph, the stream and the engine."""
        if self._engine is None:
            return
        self._release_bindings()
        self._stream.close()
        # The context must go before its engine, and the engine before its runtime.
        self._context = None
        self._engine = None
        self._runtime = None

    def _layers(self) -> tuple[EngineLayer, ...]:
        return inspected_layers(self.library, self._engine, self._context)

    def _refit(self) -> None:
        """Fill in the weights that the engine was built without, from the ONNX file."""
        refitter = self.library.Refitter(self._engine, self._logger)
        parser = self.library.OnnxParserRefitter(refitter, self._logger)
        if not parser.refit_from_file(str(self._file.path)) or not refitter.refit_cuda_engine():
            raise self._failure("cannot take its weights from the ONNX file", hint="build it without --strip-weights")

    def _new_context(self) -> Any:
        """A context; on TensorRT for RTX one that specialises kernels at once, not at some later run."""
        strategies = getattr(self.library, "DynamicShapesKernelSpecializationStrategy", None)
        if strategies is None:
            return self._engine.create_execution_context()
        settings = self._engine.create_runtime_config()
        settings.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        return self._engine.create_execution_context(settings)

    def _input_array(self, tensor: TensorInfo, arrays: Mapping[str, Array]) -> Array:
        if tensor.name not in arrays:
            raise InputError(f"input {tensor.name!r} is missing", where=str(self._file.path))
        array = np.ascontiguousarray(arrays[tensor.name])
        if str(array.dtype) != tensor.dtype:
            raise InputError(
                f"input {tensor.name!r} takes {tensor.dtype}, not {array.dtype}", where=str(self._file.path)
            )
        return array

    def _choose_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        # An input whose first size the file fixes, beside one whose first size is free, holds no batch.
        leading = [tensor for tensor in self.inputs if tensor.shape and tensor.shape[0] is None] or self.inputs
        batch = shapes[leading[0].name][0]
        number = profile_number(batch, self._record.batches, self._record.ranges)
        if number is None:
            raise EngineError(
                f"no profile takes a batch of {batch}; it was built for "
                f"{spelled(self._record.batches, self._record.ranges)}",
                where=str(self._file.path),
                hint=f"build it with --batch {batch}",
            )
        if self._record.profiles:
            self._demand(self._context.set_optimization_profile_async(number, self._stream.number), f"profile {number}")
            self._stream.synchronize()
        for name, shape in shapes.items():
            self._demand(self._context.set_input_shape(name, shape), f"shape {shape} of {name!r}")
        if unknown := self._context.infer_shapes():
            raise self._failure(f"cannot infer the shapes of {', '.join(unknown)}", hint="report this model")

    def _allocate_outputs(self) -> None:
        self._host_outputs = {}
        for tensor in self.outputs:
            shape = tuple(self._context.get_tensor_shape(tensor.name))
            layout = np.empty(shape, dtype=tensor.dtype)
            self._host_outputs[tensor.name] = layout
            self._place(tensor.name, layout.nbytes)

    def _place(self, name: str, bytes_total: int) -> None:
        self._buffers[name] = DeviceBuffer(bytes_total)
        self._demand(self._context.set_tensor_address(name, self._buffers[name].address), f"address of {name!r}")

    def _launch(self) -> None:
        """Start one run, and do not wait."""
        if self._graph is not None:
            self._graph.launch()
        else:
            self._enqueue()

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._stream.number):
            raise self._failure("could not be run", hint="check GPU memory and nvidia-smi")

    def _captured(self) -> Graph | None:
        """The run as a CUDA graph, or None where the context says that it cannot be captured."""
        capturable = getattr(self._context, "is_stream_capturable", None)
        if capturable is not None and not capturable(self._stream.number):
            return None
        return self._stream.capture(self._enqueue)

    def _release_bindings(self) -> None:
        if self._graph is not None:
            self._graph.close()
            self._graph = None
        for buffer in self._buffers.values():
            buffer.free()
        self._buffers, self._host_outputs, self._shapes, self._given = {}, {}, {}, {}

    def _demand(self, accepted: bool, what: str) -> None:
        if not accepted:
            raise self._failure(f"refused the {what}", hint="build it again for these shapes")

    def _failure(self, what: str, *, hint: str) -> EngineError:
        told = last_error(self._logger, "")
        reason = f" ({told})" if told else ""
        return EngineError(f"the {self._name} engine {what}{reason}", where=str(self._file.path), hint=hint)


def deserialized(library: Any, logger: Any, content: bytes, *, host_code: bool) -> tuple[Any, Any]:
    """A runtime and the engine in it, None for the engine where it cannot be loaded here.

    ``host_code`` lets the engine bring machine code for the CPU, as version-compatible ones do (their own runtime).
    """
    runtime = library.Runtime(logger)
    if host_code:
        runtime.engine_host_code_allowed = True
    return runtime, runtime.deserialize_cuda_engine(content)


def inspected_layers(library: Any, engine: Any, context: Any = None) -> tuple[EngineLayer, ...]:
    """The layers that an engine tells of; with a context for the shapes that it was given."""
    inspector = engine.create_engine_inspector()
    if context is not None:
        inspector.execution_context = context
    return engine_layers(inspector.get_engine_information(library.LayerInformationFormat.JSON))
