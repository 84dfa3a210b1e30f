"""Running a deserialized TensorRT engine on a GPU, with its work captured in a CUDA graph."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prune2deploy.engines.cuda import DeviceBuffer, Graph, Stream
from prune2deploy.engines.engine import Array, TensorInfo
from prune2deploy.engines.engine_file import EngineRecord
from prune2deploy.engines.onnx_file import OnnxFile
from prune2deploy.engines.tensorrt_build import collecting_logger
from prune2deploy.errors import EngineError, InputError


class TensorRTRun:
    """One engine in GPU memory, with one execution context.

    ``bind`` copies inputs to the GPU, and for a new shape chooses its profile, runs once plainly (kernels are
    specialised and memory is laid out then) and captures the run in a CUDA graph. ``run`` launches the graph
    and waits: the time of ``run`` is that of a request whose data lies on the GPU, launch and wait included.
    """

    def __init__(self, library: Any, name: str, content: bytes, record: EngineRecord, file: OnnxFile) -> None:
        self._library, self._name, self._record, self._file = library, name, record, file
        self._logger = collecting_logger(library)
        self._runtime = library.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(content)
        if self._engine is None:
            raise self._failure("cannot be loaded on this GPU", hint="build it again on this machine")
        self._context = self._new_context()
        if self._context is None:
            raise self._failure("has no room to run on this GPU", hint="free GPU memory or use a smaller --batch")
        self._stream = Stream()
        self._buffers: dict[str, DeviceBuffer] = {}
        self._host_outputs: dict[str, NDArray[np.generic]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._graph: Graph | None = None

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

    def run(self) -> None:
        """Run once over what is bound, and wait for the outputs."""
        if self._graph is not None:
            self._graph.launch()
        else:
            self._enqueue()
        self._stream.synchronize()

    def read(self) -> dict[str, NDArray[np.generic]]:
        """Outputs of the last run, copied from the GPU."""
        outputs = {}
        for name, layout in self._host_outputs.items():
            outputs[name] = np.empty_like(layout)
            self._buffers[name].read_into(outputs[name])
        return outputs

    def inspect(self) -> dict[str, Any]:
        """Layers as the engine runs them, counted by type and by the type of their outputs, and how it was built.

        An engine "of fp16" can hold no half layer at all: ``outputs_by_type`` tells.
        """
        inspector = self._engine.create_engine_inspector()
        text = inspector.get_engine_information(self._library.LayerInformationFormat.JSON)
        layers = json.loads(text).get("Layers", [])
        named = [layer for layer in layers if isinstance(layer, dict)]
        formats = (output.get("Format/Datatype", "") for layer in named for output in layer.get("Outputs", []))
        return {
            "engine": self._name,
            "version": self._record.library_version,
            "precision": self._record.precision,
            "layers": len(layers),
            "layers_by_type": dict(sorted(Counter(layer.get("LayerType", "") for layer in named).items())),
            "outputs_by_type": dict(sorted(Counter(formats).items())),
            "cuda_graph": self._graph is not None,
            "profiles": [dict(profile) for profile in self._record.profiles],
            "build_seconds": self._record.build_seconds,
            "network": dict(self._record.details),
        }

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

    def _new_context(self) -> Any:
        """A context; on TensorRT for RTX one that specialises kernels at once, not at some later run."""
        strategies = getattr(self._library, "DynamicShapesKernelSpecializationStrategy", None)
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
        batch = next(iter(shapes.values()))[0]
        if batch not in self._record.batches:
            raise EngineError(
                f"was built for batches {list(self._record.batches)}, not {batch}",
                where=str(self._file.path),
                hint=f"build it with --batch {batch}",
            )
        if self._record.profiles:
            number = self._record.batches.index(batch)
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
        self._buffers, self._host_outputs, self._shapes = {}, {}, {}

    def _demand(self, accepted: bool, what: str) -> None:
        if not accepted:
            raise self._failure(f"refused the {what}", hint="build it again for these shapes")

    def _failure(self, what: str, *, hint: str) -> EngineError:
        reason = f" ({self._logger.errors[-1]})" if self._logger.errors else ""
        return EngineError(f"the {self._name} engine {what}{reason}", where=str(self._file.path), hint=hint)
