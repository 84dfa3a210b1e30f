"""The engines: what they need, and which bundles they take."""

import json
import os
import shutil
import sysconfig
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from prune2deploy.engines.engine import Availability, BuildOptions, BuildSummary, BuiltEngine
from prune2deploy.engines.onnx_file import OnnxFile
from prune2deploy.engines.preconditions import checked_file, no_stored_engine
from prune2deploy.engines.torch.cuda_run import CudaTorchRun
from prune2deploy.engines.torch.run import TorchRun
from prune2deploy.errors import EngineError, InputError
from prune2deploy.progress import SILENT, Progress

Mode = Literal["eager", "compile", "cuda-graph"]

_NAMES: Mapping[Mode, str] = {"eager": "torch", "compile": "torch-compile", "cuda-graph": "torch-cuda-graph"}
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
        run = CudaTorchRun if torch.cuda.is_available() else TorchRun
        return run(self, file, options, options.bundle)

    def build_file(
        self, onnx_path: Path, engine_path: Path, options: BuildOptions, *, progress: Progress = SILENT
    ) -> BuildSummary:
        """Refuse: the bundle is all that there is to store.

        Raises:
            EngineError: always.
        """
        raise no_stored_engine(self.name, "it runs the bundle itself")


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
