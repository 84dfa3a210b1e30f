"""Every expected failure, as one tree.

    P2DError                      (never raised itself)
    ├── InputError          2     a file, a spec, a value or an option is wrong; nothing changed on disk
    │   ├── CheckpointError 2     a checkpoint cannot be read, or holds another architecture
    │   ├── ModelError      2     a model spec cannot be built, traced or exported
    │   └── DataError       2     a data set cannot be read, or does not fit the model
    ├── TargetError         3     no plan meets the target, or nothing would be pruned
    ├── ProofError          4     the pruned network is not the gated dense one; it was not saved
    │   └── ParityError     4     an engine or ONNX file does not compute what the model computes
    ├── EngineError         5     an engine, device or package is not usable here
    └── StorageError        6     a file cannot be written; earlier results are intact

The number is the exit code of the command line (``docs/cli.md``). Only ``cli`` turns an error into a
message and a code. Errors of other libraries are translated where they are called, with ``raise ... from``.
"""

from typing import ClassVar


class P2DError(Exception):
    """An expected failure: one line that says what is wrong, where, and what to do next."""

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, where: str | None = None, hint: str | None = None) -> None:
        """Compose the line ``where: what; hint``.

        ``where`` is a path, option or layer name; ``hint`` is an imperative ("pass --model ...").
        """
        line = f"{where}: {what}" if where else what
        if hint:
            line = f"{line}; {hint}"
        super().__init__(line)
        self.what = what
        self.where = where
        self.hint = hint


class InputError(P2DError):
    """A file, a spec, a value or an option is wrong. Nothing was changed on disk."""

    exit_code = 2


class CheckpointError(InputError):
    """A checkpoint cannot be read, or does not hold the architecture it should."""


class ModelError(InputError):
    """A model cannot be built from its spec, traced or exported."""


class DataError(InputError):
    """A data set cannot be read, or does not fit the model."""


class TargetError(P2DError):
    """The target cannot be met as stated, or nothing would be pruned; the message says what can be reached."""

    exit_code = 3


class ProofError(P2DError):
    """A cut failed its proof: the pruned network would be wrong, so it was refused and not saved."""

    exit_code = 4


class ParityError(ProofError):
    """An exported file or engine does not compute what the model computes."""


class EngineError(P2DError):
    """An engine, device or package asked for is not usable here; the message says what to do."""

    exit_code = 5


class StorageError(P2DError):
    """The disk is full or a file cannot be written. Earlier results are intact."""

    exit_code = 6
