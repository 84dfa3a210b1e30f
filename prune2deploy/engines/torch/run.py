"""A module on its device, called on bound tensors."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from prune2deploy.engines.census import Census
from prune2deploy.engines.engine import Array, BuildOptions, TensorInfo
from prune2deploy.engines.onnx_file import OnnxFile
from prune2deploy.engines.preconditions import checked_arrays, closed
from prune2deploy.engines.torch.tensors import array_from_tensor, tensor_from_array
from prune2deploy.errors import EngineError, InputError

if TYPE_CHECKING:
    import torch

    from prune2deploy.engines.torch.engine import TorchEngine

# Each variant, copy and batch size of a benchmark is one more compilation of the same code.
_MOST_COMPILATIONS = 256
_RUNS_BEFORE_CAPTURE = 3


class TorchRun:
    """A module on its device, called on bound tensors."""

    def __init__(self, engine: "TorchEngine", file: OnnxFile, options: BuildOptions, bundle: Path) -> None:
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
        given = [tensor_from_array(array) for array in checked_arrays(self.inputs, arrays, self._file.path)]
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
            info.name: array_from_tensor(tensor, np.dtype(info.dtype))
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
