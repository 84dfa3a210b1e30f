"""Reading files of ``torch.save`` without running anything that they name.

Training scripts put more than weights into their files: argument namespaces, hyper-parameters, optimizer and logger
objects. ``torch.load(weights_only=True)`` refuses a file that names any class but tensors and plain containers. Here
each such name is first replaced by an empty class of ours, a *stand-in*, which accepts the arguments and state that the
file gives it and does nothing with them. Nothing is imported, and the weights beside it are read as ever.
"""

import pickle
import pickletools
import re
import struct
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prune2deploy.errors import CheckpointError

TRUST_HINT = "if you trust whoever made the file, pass --trust-pickle, which lets it run any code on this machine"

# What torch raises on files that are cut off, changed or not its own.
_DAMAGE = (
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    AssertionError,
    ImportError,
    OverflowError,
    struct.error,
    zipfile.BadZipFile,
)

_PYTHON_2_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}
# Names that every file has, which torch itself resolves.
_PLAIN = frozenset({"collections.OrderedDict", "collections.Counter"})
_TENSOR_MODULES = frozenset({"torch", "torch._utils", "torch._tensor", "torch.storage", "torch.nn.parameter"})

_NEEDS_CONTAINER = re.compile(r"Can only (append|extend|SETITEMS?)\b.*<class '[\w.]*StandIn(\d+)'>")
_BLOCKED = re.compile(r"GLOBAL (\S+) whose module \S+ is blocked")


class NeedsTrustError(CheckpointError):
    """A file that only the full unpickler can read, which runs whatever the file says."""


class StandIn:
    """An object whose class was not imported: the arguments and the state that the file gave it.

    ``qualified_name`` is the class or function that the file names.
    """

    qualified_name = ""

    def __new__(cls, *arguments: Any) -> "StandIn":
        """Keep the arguments."""
        self = object.__new__(cls)
        self.arguments = arguments
        self.state = {}
        return self

    def __init__(self, *_arguments: Any) -> None:
        self.arguments: tuple[Any, ...]
        self.state: Any

    def __setstate__(self, state: Any) -> None:
        """Keep the state."""
        self.state = state


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpickled:
    """What a file holds. ``skipped`` names the classes and functions that were replaced by stand-ins, sorted."""

    content: Any
    skipped: tuple[str, ...]


def unpickle_without_code(path: Path) -> Unpickled:
    """Read a file of ``torch.save``, memory-mapped where its format allows; tensors come on the CPU.

    Raises:
        NeedsTrustError: the file is pickled in a way that cannot be read without running code that it names.
        CheckpointError: the file is damaged, or asks for a command of the operating system to be run.
    """
    mappable = zipfile.is_zipfile(path)
    try:
        names = sorted(_unknown_names_zip(path) if mappable else _names_in_legacy_file(path))
    except pickle.UnpicklingError as error:
        raise _needs_full_unpickler(path, error) from error
    except _DAMAGE as error:
        raise damaged(path, error) from error
    containers: dict[str, type] = {}
    while True:
        stand_ins = [(_stand_in(number, name, containers.get(name)), name) for number, name in enumerate(names)]
        try:
            with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():  # type: ignore[arg-type]
                warnings.simplefilter("ignore")
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=mappable)
            return Unpickled(content=content, skipped=tuple(names))
        except pickle.UnpicklingError as error:
            # Only the unpickler sees that a class is filled like a list or a dict, so it is told and tried again.
            needed = _NEEDS_CONTAINER.search(str(error))
            if needed is None or names[int(needed[2])] in containers:
                raise _needs_full_unpickler(path, error) from error
            containers[names[int(needed[2])]] = dict if needed[1].startswith("SET") else list
        except _DAMAGE as error:
            raise damaged(path, error) from error


def unpickle_trusting(path: Path) -> Any:
    """Read a file by importing and running whatever it names. Only for files that the user vouches for.

    Raises:
        CheckpointError: the file is damaged, or code that it names is missing or fails.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise CheckpointError(
            f"cannot be unpickled ({type(error).__name__}: {_first_line(error)})",
            where=str(path),
            hint="run where the code that defines its classes can be imported",
        ) from error


def damaged(path: Path, error: BaseException) -> CheckpointError:
    """The error for a file that is cut off or changed."""
    return CheckpointError(
        f"is damaged or cut off, or is no checkpoint ({_first_line(error)})",
        where=str(path),
        hint="copy or download it again",
    )


def _stand_in(number: int, name: str, container: type | None) -> type:
    if container is None:
        return type(f"StandIn{number}", (StandIn,), {"qualified_name": name})

    def new(cls: type, *_arguments: Any) -> Any:
        return container()

    return type(f"StandIn{number}", (), {"__new__": new, "qualified_name": name})


def _unknown_names_zip(path: Path) -> list[str]:
    return torch.serialization.get_unsafe_globals_in_checkpoint(path)


def _names_in_legacy_file(path: Path) -> set[str]:
    """Names in a file from before torch 1.6: magic number, protocol, system and content, pickled one after another."""
    names = set()
    with path.open("rb") as file:
        for _ in range(4):
            for opcode, argument, _position in pickletools.genops(file):
                if opcode.name == "GLOBAL" and isinstance(argument, str):
                    module, _, name = argument.partition(" ")
                    names.add(f"{_PYTHON_2_MODULES.get(module, module)}.{name}")
    return {name for name in names if name not in _PLAIN and name.rpartition(".")[0] not in _TENSOR_MODULES}


def _needs_full_unpickler(path: Path, error: pickle.UnpicklingError) -> CheckpointError:
    if blocked := _BLOCKED.search(str(error)):
        return CheckpointError(
            f"asks for {blocked[1]} to be run on loading, which no weights need", where=str(path), hint="do not open it"
        )
    return NeedsTrustError(
        "is damaged, or is a pickle that cannot be read without running code that it names",
        where=str(path),
        hint=f"save model.state_dict() instead, or {TRUST_HINT}",
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
