"""Which engines there are. A new engine is one line here."""

from prune2deploy.engines.engine import Engine
from prune2deploy.engines.onnxruntime.cpu import OrtCpuEngine
from prune2deploy.engines.onnxruntime.cuda import OrtCudaEngine
from prune2deploy.engines.openvino import OpenVINOEngine
from prune2deploy.engines.tensorrt.family import TensorRTEngine, TensorRTRTXEngine
from prune2deploy.engines.torch.engine import TorchEngine
from prune2deploy.errors import EngineError, InputError

AUTO = "auto"

# In the order in which ``--engine auto`` prefers them: GPUs first, then what every machine has; torch, which runs no
# ONNX files, only where nothing else has the precision.
_ENGINES: tuple[Engine, ...] = (
    TensorRTEngine(),
    TensorRTRTXEngine(),
    OrtCudaEngine(),
    OrtCpuEngine(),
    OpenVINOEngine(),
    TorchEngine("cuda-graph"),
    TorchEngine("eager"),
    TorchEngine("compile"),
)


def all_engines() -> tuple[Engine, ...]:
    """Every engine, the preferred first, whether or not it is usable here."""
    return _ENGINES


def engine_named(name: str) -> Engine:
    """The engine of that name; ``auto`` is the best one that runs here.

    Raises:
        InputError: there is none of that name.
        EngineError: ``auto``, and none runs here.
    """
    if name == AUTO:
        return best_engine()
    for engine in _ENGINES:
        if engine.name == name:
            return engine
    known = ", ".join((AUTO, *(engine.name for engine in _ENGINES)))
    raise InputError(f"there is no engine {name!r}", where="--engine", hint=f"choose from {known}")


def best_engine(*precisions: str) -> Engine:
    """The most preferred engine that runs on this machine and takes files of all of ``precisions``.

    Raises:
        EngineError: none does.
    """
    for engine in _ENGINES:
        if engine.precisions.issuperset(precisions) and engine.availability().runs:
            return engine
    wanted = f" {' and '.join(precisions)}" if precisions else ""
    raise EngineError(f"no engine runs{wanted} on this machine", where="--engine", hint="see `p2d doctor`")
