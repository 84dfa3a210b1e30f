"""The packages ``tensorrt`` and ``tensorrt_rtx``: loading them, and hearing what they say."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Any

from prune2deploy.errors import EngineError

INSTALL = {
    "tensorrt_rtx": "pip install 'prune2deploy[trt-rtx]'",
    "tensorrt": "pip install 'prune2deploy[trt]' (its libraries come from NVIDIA's package index)",
}
"""How to install each package."""

_LOGGED_WITHOUT_MEANING = "Thread context has not been set"


def is_installed(module: str) -> bool:
    """Whether the package is there, without loading it, which takes seconds."""
    return find_spec(module) is not None


def loaded_library(module: str, *, where: str) -> Any:
    """The imported package.

    Raises:
        EngineError: it is not installed, or its libraries cannot be loaded.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise EngineError(f"{module} is not installed", where=where, hint=INSTALL.get(module)) from error
    except (ImportError, OSError) as error:
        raise EngineError(f"{module} cannot be loaded ({error})", where=where, hint=INSTALL.get(module)) from error


@contextmanager
def listening(library: Any) -> Iterator[Any]:
    """The library's logger, which prints nothing and keeps errors in its list ``errors``, emptied here.

    There is one for the whole process: the library goes on using the first that it was given, even for objects that
    were given another, and calls it when all of those are gone.
    """
    logger = _logger(library)
    logger.errors.clear()
    yield logger


def last_error(logger: Any, otherwise: str) -> str:
    """The last error that the logger heard."""
    return str(logger.errors[-1]) if logger.errors else otherwise


@cache
def _logger(library: Any) -> Any:
    class CollectingLogger(library.ILogger):  # type: ignore[misc]  # the base is only known at run time
        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            serious = severity in (library.ILogger.ERROR, library.ILogger.INTERNAL_ERROR)
            if serious and _LOGGED_WITHOUT_MEANING not in message:
                self.errors.append(" ".join(message.split()))

    return CollectingLogger()
