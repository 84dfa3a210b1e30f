"""Whether TensorRT would take an ONNX file: its parser alone, without building anything."""

from pathlib import Path
from typing import Any

from prune2deploy.engines.onnx_file import read_onnx_file
from prune2deploy.engines.tensorrt.library import INSTALL, is_installed, listening, loaded_library
from prune2deploy.engines.tensorrt.network import parsed_network
from prune2deploy.errors import EngineError

# TensorRT for RTX first: its parser works on machines that have no GPU.
_PARSERS = {"tensorrt_rtx": "trt-rtx", "tensorrt": "trt"}


def check_parses(path: Path, library: Any = None) -> None:
    """Let NVIDIA's parser read one ONNX file, external weights included.

    ``library`` is the imported package to ask; None takes the one that is installed, TensorRT for RTX before TensorRT.

    Raises:
        EngineError: neither is installed or can start here, or the parser lacks an operator (named with its node).
        InputError: the file is missing, no ONNX network, or cannot be read by the parser.
    """
    read_onnx_file(path)
    if library is None:
        library = installed_parser()
    with listening(library) as logger:
        parsed_network(library, f"the parser of {_PARSERS.get(library.__name__, library.__name__)}", path, logger)


def installed_parser() -> Any:
    """The imported package whose parser ``check_parses`` asks.

    Raises:
        EngineError: none is installed, or it cannot start here.
    """
    for module, engine in _PARSERS.items():
        if is_installed(module):
            return loaded_library(module, where=engine)
    raise EngineError(
        "neither tensorrt_rtx nor tensorrt is installed, so there is no parser to ask",
        where="--check-engine",
        hint=INSTALL["tensorrt_rtx"],
    )
