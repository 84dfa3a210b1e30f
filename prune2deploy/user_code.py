"""Objects of the user's own modules, by import path (``package.module:factory``)."""

import importlib
import re
import sys
from pathlib import Path

from prune2deploy.errors import InputError

_IMPORT_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def is_import_path(text: str) -> bool:
    """Whether ``text`` has the form ``package.module:object`` or ``package.module:Class.method``."""
    return _IMPORT_PATH.fullmatch(text) is not None


def import_object(path: str, *, error_type: type[InputError]) -> object:
    """Import what ``path`` names; the current folder is searched before the installed packages.

    The current folder stays on ``sys.path``, because worker processes and late imports need it too.

    Raises:
        error_type: the module does not exist or fails while it is imported, or lacks the object.
    """
    module_name, _, attribute_path = path.partition(":")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        found: object = importlib.import_module(module_name)
    except MemoryError:
        raise
    except Exception as error:
        raise _import_failure(module_name, error, folder=folder, error_type=error_type) from error
    for attribute in attribute_path.split("."):
        if not hasattr(found, attribute):
            raise error_type(
                f"module {module_name} has no {attribute_path!r}", where=path, hint="check the name behind the colon"
            )
        found = getattr(found, attribute)
    return found


def _import_failure(module_name: str, error: Exception, *, folder: str, error_type: type[InputError]) -> InputError:
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing and (module_name == missing or module_name.startswith(f"{missing}.")):
        return error_type(
            f"there is no module {module_name!r} in {folder} or among the installed packages",
            where=module_name,
            hint="run p2d in the folder that holds it, or install it",
        )
    return error_type(
        f"fails when imported ({type(error).__name__}: {error})", where=module_name, hint="fix the module and try again"
    )
