"""PyTorch itself, which deployment is measured against: eager, compiled, or captured as a CUDA graph.

These engines run the bundle that an ONNX file was exported from, and not the file. The file says what the network
takes and gives, and of which weights it was made. This is the only module of this folder that uses torch.
"""

import json
import os
import shutil
import sysconfig
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from prune2deploy.engines.census import Census
from prune2deploy.engines.engine import Array, Availability, BuildOptions, BuildSummary, BuiltEngine, TensorInfo
from prune2deploy.engines.onnx_file import OnnxFile
from prune2deploy.engines.preconditions import checked_arrays, checked_file, closed, no_stored_engine
from prune2deploy.errors import EngineError, InputError
from prune2deploy.progress import SILENT, Progress

if TYPE_CHECKING:
    import torch

Mode = Literal["eager", "compile", "cuda-graph"]

_NAMES: Mapping[Mode, str] = {"eager": "torch", "compile": "torch-compile", "cuda-graph": "torch-cuda-graph"}
# Each variant, copy and batch size of a benchmark is one more compilation of the same code.
_MOST_COMPILATIONS = 256
_RUNS_BEFORE_CAPTURE = 3
# What an ONNX file's metadata says was built into its graph: the option that did it, and its value where nothing was.
_BUILT_IN: Mapping[str, tuple[str, object]] = {
    "input_format": ("--input", "nchw"),
    "normalize": ("--normalize", None),
    "softmax": ("--softmax", False),
    "top_k": ("--top-k", None),
}


class TorchEngine:
    """Runs the module of a bundle with PyTorch, on the GPU if torch sees one and otherwise on the CPU.

    Weights are cast to the precision; inputs and outputs have the types of the ONNX file, and their casts are part of
    a run. On a GPU other precisions than fp32 use the channels-last layout, which their convolutions want. Nothing
    else is changed: batch norms are not folded, and ``torch.compile`` has its default mode.
    """

    stores_engines = False
    precisions = frozenset({"fp32", "tf32", "fp16", "bf16"})

    def __init__(self, mode: Mode) -> None:
        self.mode = mode
        self.name = _NAMES[mode]

    def availability(self) -> Availability:
        """Whether torch can be imported, and has what the mode needs: a compiler, or a GPU."""
        if find_spec("torch") is None:
            return _absent("torch is not installed", "pip install torch")
        try:
            import torch
        except (ImportError, OSError) as error:
            return _absent(f"torch cannot be loaded ({error})", "pip install --force-reinstall torch")
        gpu = torch.cuda.is_available()
        version = str(torch.__version__)
        if self.mode == "cuda-graph" and not gpu:
            return _absent("torch sees no GPU", "run it on a machine with an NVIDIA GPU and its driver", version)
        if self.mode == "compile" and (lack := _missing_compiler(gpu=gpu)) is not None:
            return _absent(f"torch.compile finds no {lack}", f"install {lack}", version)
        device = str(torch.cuda.get_device_name(0)) if gpu else "CPU"
        return Availability(runs=True, builds=True, version=version, device=device)

    def build(self, onnx_path: Path, options: BuildOptions, *, progress: Progress = SILENT) -> BuiltEngine:
        """Load the bundle of an ONNX file. Compiling and capturing happen when a shape is bound for the first time.

        Raises:
            EngineError: no bundle is known for the file, or the mode, precision or device is not to be had here.
            InputError: the file is missing, no ONNX network, was exported from other weights, or has preprocessing or
                postprocessing in its graph, which the bundle lacks.
            CheckpointError: the bundle is damaged.
        """
        file = checked_file(self, onnx_path, options)
        if options.bundle is None:
            raise EngineError(
                f"{self.name} runs bundles, and no bundle is known for this ONNX file",
                where=str(onnx_path),
                hint="bench the run folder that it was exported from, or name another --engine",
            )
        _refuse_what_is_built_in(self.name, file)
        import torch

        if options.precision == "tf32" and not torch.cuda.is_available():
            raise EngineError("tf32 is a way of GPUs, and torch sees none", where=self.name, hint="use fp32")
        run = _CudaRun if torch.cuda.is_available() else _Run
        return run(self, file, options, options.bundle)

    def build_file(
        self, onnx_path: Path, engine_path: Path, options: BuildOptions, *, progress: Progress = SILENT
    ) -> BuildSummary:
        """Refuse: the bundle is all that there is to store.

        Raises:
            EngineError: always.
        """
        raise no_stored_engine(self.name, "it runs the bundle itself")


class _Run:
    """A module on its device, called on bound tensors."""

    def __init__(self, engine: TorchEngine, file: OnnxFile, options: BuildOptions, bundle: Path) -> None:
        import torch

        from prune2deploy.checkpoint.bundle import load_bundle

        loaded = load_bundle(bundle)
        stated = file.metadata.get("weights_sha256")
        if stated is not None and stated != loaded.manifest.weights_sha256:
            raise InputError(
                f"was exported from other weights than {bundle} holds", where=str(file.path), hint="export it again"
            )
        self._engine, self._file, self._options, self._bundle = engine, file, options, bundle
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._type = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(options.precision, torch.float32)
        channels_last = self._device.type == "cuda" and options.precision != "fp32"
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self._model: Any = loaded.model.requires_grad_(False).to(self._device, self._type)
        if channels_last:
            self._model = self._model.to(memory_format=torch.channels_last)
        self._call = self._compiled() if engine.mode == "compile" else self._forward
        self._bound: tuple[torch.Tensor, ...] = ()
        self._results: Sequence[torch.Tensor] = ()
        self._graph: Any = None

    @property
    def inputs(self) -> Sequence[TensorInfo]:
        """Inputs of the ONNX file, in its order."""
        return self._file.inputs

    @property
    def outputs(self) -> Sequence[TensorInfo]:
        """Outputs of the ONNX file, in its order."""
        return self._file.outputs

    def bind(self, arrays: Mapping[str, Array]) -> None:
        """Copy inputs to the device; for new shapes also run once, which compiles or captures.

        Raises:
            InputError: a name, dtype or shape is not what the ONNX file takes.
            EngineError: the engine is closed, or torch cannot run the module here (the layer is named).
        """
        import torch

        if self._model is None:
            raise closed(self._file.path)
        given = [_tensor(array) for array in checked_arrays(self.inputs, arrays, self._file.path)]
        self._settle()
        with torch.inference_mode():
            if [tensor.shape for tensor in given] == [tensor.shape for tensor in self._bound]:
                for place, tensor in zip(self._bound, given, strict=True):
                    place.copy_(tensor)
                return
            self._graph = None
            self._bound = tuple(tensor.to(self._device, copy=True) for tensor in given)
            try:
                if self._engine.mode == "cuda-graph":
                    self._capture()
                self.run()
            # Whatever torch raises here, kernels that are missing and compilers that fail included, is one of these.
            except RuntimeError as error:
                self._bound = ()
                raise self._failure(error, given) from error
        if len(self._results) != len(self.outputs):
            raise InputError(
                f"the module gives {len(self._results)} tensors, the file {len(self.outputs)}",
                where=str(self._file.path),
                hint="export it again",
            )

    def run(self) -> None:
        """Run once over what is bound, and wait for the outputs."""
        self._launch()

    def read(self) -> dict[str, NDArray[np.generic]]:
        """Outputs of the last run, as host arrays of their own."""
        return {
            info.name: _array(tensor, np.dtype(info.dtype))
            for info, tensor in zip(self.outputs, self._results, strict=True)
        }

    def inspect(self) -> dict[str, Any]:
        """Device, layout and settings, and the precision of every convolution and product, counted in one eager run."""
        import torch

        return {
            "mode": self._engine.mode,
            "version": str(torch.__version__),
            "device": str(self._device),
            "threads": torch.get_num_threads(),
            "bundle": str(self._bundle),
            "memory_format": str(self._layout).removeprefix("torch."),
            "tf32": self._options.precision == "tf32",
            "cuda_graph": self._graph is not None,
            "census": self._census().to_document(),
        }

    def close(self) -> None:
        """Free the module and its tensors; closing twice is harmless."""
        self._model = self._graph = None
        self._call = self._forward
        self._bound, self._results = (), ()
        if self._device.type == "cuda":
            import torch

            torch.cuda.empty_cache()

    def _launch(self) -> None:
        """Run once; on a GPU, without waiting for it."""
        import torch

        if self._graph is not None:
            self._graph.replay()
        else:
            with torch.inference_mode():
                self._results = self._call(*self._bound)

    def _forward(self, *inputs: "torch.Tensor") -> Sequence["torch.Tensor"]:
        """What the ONNX file computes: casts to the precision of the weights, the module, and casts back."""
        import torch
        from torch.utils import _pytree

        given = (tensor.to(self._type) if tensor.is_floating_point() else tensor for tensor in inputs)
        outputs = self._model(*given)
        leaves = [outputs] if isinstance(outputs, torch.Tensor) else _pytree.tree_leaves(outputs)
        types = [getattr(torch, info.dtype) for info in self.outputs]
        return [leaf.to(kind) for leaf, kind in zip(leaves, types, strict=False)]

    def _compiled(self) -> Callable[..., Sequence["torch.Tensor"]]:
        import torch
        import torch._dynamo

        # Past its limits torch goes on uncompiled with a mere warning, and would be timed under a wrong name.
        torch._dynamo.config.recompile_limit = _MOST_COMPILATIONS
        torch._dynamo.config.fail_on_recompile_limit_hit = True
        compiled: Callable[..., Sequence[torch.Tensor]] = torch.compile(self._forward, dynamic=False)
        return compiled

    def _capture(self) -> None:
        """Record one run as a CUDA graph; what torch chooses in its first runs is chosen before."""
        import torch

        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_RUNS_BEFORE_CAPTURE):
                self._call(*self._bound)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._results = self._call(*self._bound)
        self._graph = graph

    def _settle(self) -> None:
        """Torch's settings, which hold for the whole process, as this engine wants them."""
        import torch

        torch.set_num_threads(self._options.threads)
        if self._device.type == "cuda":
            backends: Any = torch.backends
            products = "tf32" if self._options.precision == "tf32" else "ieee"
            backends.cuda.matmul.fp32_precision = products
            backends.cudnn.conv.fp32_precision = products
            backends.cudnn.benchmark = True

    def _census(self) -> Census:
        """One eager run at batch 1 (or the file's), in which every operator that costs FLOPs is counted by its type."""
        import torch
        from torch.utils._python_dispatch import TorchDispatchMode
        from torch.utils.flop_counter import flop_registry

        names = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
        layers: list[tuple[str, int]] = []

        class Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
            def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
                out = function(*arguments, **(keywords or {}))
                cost = flop_registry.get(function.overloadpacket)
                if cost is not None:
                    # Of addmm the first is the bias, of everything else the data.
                    kind = next(value.dtype for value in arguments if isinstance(value, torch.Tensor))
                    flops = cost(*arguments, **(keywords or {}), out_val=out)
                    layers.append((names.get(kind, str(kind).removeprefix("torch.")), int(flops)))
                return out

        zeros = [
            torch.zeros([1 if size is None else size for size in info.shape], dtype=getattr(torch, info.dtype))
            for info in self.inputs
        ]
        with torch.no_grad(), Counting():  # type: ignore[no-untyped-call]
            self._forward(*(tensor.to(self._device) for tensor in zeros))
        return Census.of(layers, origin="engine")

    def _failure(self, error: RuntimeError, given: Sequence["torch.Tensor"]) -> EngineError:
        import torch

        if isinstance(error, torch.cuda.OutOfMemoryError):
            return EngineError("the GPU has not enough memory", where=str(self._bundle), hint="use a smaller --batch")
        layer = self._failing_layer(given)
        place = f" in layer {layer!r}" if layer else ""
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return EngineError(
            f"{self._engine.name} cannot run it in {self._options.precision} on {self._device.type}{place} "
            f"({lines[0] if lines else type(error).__name__})",
            where=str(self._bundle),
            hint="use another --precision, or name another --engine",
        )

    def _failing_layer(self, given: Sequence["torch.Tensor"]) -> str | None:
        """The innermost submodule that an eager run is in when it fails; None where it does not fail."""
        inside: list[str] = []
        hooks = []
        for name, module in self._model.named_modules():
            hooks.append(module.register_forward_pre_hook(lambda _, __, name=name: inside.append(name)))
            hooks.append(module.register_forward_hook(lambda _, __, ___: inside.pop() and None))
        try:
            self._forward(*(tensor.to(self._device) for tensor in given))
        except RuntimeError:
            return inside[-1] if inside else None
        finally:
            for hook in hooks:
                hook.remove()
        return None


class _CudaRun(_Run):
    """A module on a GPU, which has a clock and a memory of its own and takes several runs at once."""

    _given: Sequence["torch.Tensor"] = ()

    def bind(self, arrays: Mapping[str, Array]) -> None:
        """As ``_Run.bind``; the arrays are kept for ``time_copies``."""
        super().bind(arrays)
        self._given = [_tensor(array) for array in checked_arrays(self.inputs, arrays, self._file.path)]

    def run(self) -> None:
        """Run once over what is bound, and wait for the GPU."""
        import torch

        self._launch()
        torch.cuda.synchronize()

    def time_on_device(self, runs: int) -> list[int]:
        """Run ``runs`` times what is bound, each timed by CUDA events around it. Unit: ns. Shape: -> (runs,).

        One untimed run goes first, behind which the host can get ahead. In eager mode it often cannot, and the time
        holds the GPU's waits for the next kernel.
        """
        import torch

        event: Any = torch.cuda.Event
        moments = [(event(enable_timing=True), event(enable_timing=True)) for _ in range(runs)]
        self._launch()
        for before, after in moments:
            before.record()
            self._launch()
            after.record()
        torch.cuda.synchronize()
        return [round(before.elapsed_time(after) * 1e6) for before, after in moments]

    def time_copies(self, copies: int) -> list[int]:
        """Copy the bound inputs to the GPU ``copies`` times, as ``bind`` does: from pageable memory, waiting for each.

        Unit: ns of wall-clock time each. Shape: -> (copies,).
        """
        import torch

        samples = []
        with torch.inference_mode():
            for _ in range(copies):
                begun = time.perf_counter_ns()
                for place, tensor in zip(self._bound, self._given, strict=True):
                    place.copy_(tensor)
                torch.cuda.synchronize()
                samples.append(time.perf_counter_ns() - begun)
        return samples

    def queue_depth(self) -> int:
        """Two: one run that the GPU works on, and the next one waiting on its stream."""
        return 2

    def run_queued(self, runs: int) -> None:
        """Launch ``runs`` runs without waiting, on one stream, then wait for the last."""
        import torch

        for _ in range(runs):
            self._launch()
        torch.cuda.synchronize()


def _absent(reason: str, hint: str, version: str | None = None) -> Availability:
    return Availability(runs=False, builds=False, version=version, reason=reason, hint=hint)


def _missing_compiler(*, gpu: bool) -> str | None:
    """What torch.compile lacks here: a C++ compiler; for a GPU Triton and a C compiler; Python's headers for both."""
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "Python.h (Python's headers: python3-dev on Debian)"
    if gpu:
        if find_spec("triton") is None:
            return "triton (pip install triton)"
        compilers = (os.environ.get("CC", "gcc"), "clang")
        return None if any(map(shutil.which, compilers)) else "C compiler (gcc)"
    return None if shutil.which(os.environ.get("CXX", "g++")) else "C++ compiler (g++)"


def _refuse_what_is_built_in(engine: str, file: OnnxFile) -> None:
    """Refuse files that do more than the module does, since the two would not be compared on the same work.

    Raises:
        InputError: normalisation, softmax, another input format or the like is built into the graph.
    """
    for key, (option, nothing) in _BUILT_IN.items():
        if json.loads(file.metadata.get(key, json.dumps(nothing))) != nothing:
            raise InputError(
                f"was exported with {option}, and {engine} runs the bundle, which has nothing of it built in",
                where=str(file.path),
                hint=f"export again without {option}, or name another --engine",
            )


def _tensor(array: Array) -> "torch.Tensor":
    """A host tensor with an array's values. NumPy has no bfloat16 of its own, so its bits are taken over."""
    import torch

    values = np.ascontiguousarray(array)
    if values.dtype.name == "bfloat16":
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(values)


def _array(tensor: "torch.Tensor", dtype: np.dtype[Any]) -> NDArray[Any]:
    import torch

    host = tensor.detach().to("cpu", copy=True).contiguous()
    if host.dtype == torch.bfloat16:
        return host.view(torch.int16).numpy().view(dtype)
    values: NDArray[Any] = host.numpy()
    return values
