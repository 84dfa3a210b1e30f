"""One line out of the pages that torch's exporters raise: the operator, or the line of the user's code."""

import re
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch

_OPERATOR = re.compile(r"op='(?P<space>\w+)\.(?P<operator>[\w.]+)'")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_HERE = Path(__file__).parent
_TORCH = Path(torch.__file__).parent
_LIBRARY = Path(sysconfig.get_path("stdlib"))


def reason_of(error: BaseException) -> str:
    """What made an export fail, in one line.

    The operator that has no ONNX form, where the error names one; otherwise the error's own first line, with
    the deepest line of code outside torch that led to it.
    """
    for link in _chain(error):
        if found := _OPERATOR.search(str(link)):
            return f"operator {found['space']}.{found['operator']} has no ONNX form"
    root = list(_chain(error))[-1]
    text = _COLOUR.sub("", str(root)).strip()
    first = text.splitlines()[0].strip() if text else type(root).__name__
    place = _place(error)
    return f"{first} (at {place})" if place else first


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and its causes, the first cause last."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _place(error: BaseException) -> str | None:
    """The deepest line outside torch, the standard library and this folder, as ``file.py:12 in forward: code``."""
    for link in reversed(list(_chain(error))):
        for frame in reversed(traceback.extract_tb(link.__traceback__)):
            if _is_foreign(Path(frame.filename)):
                code = f": {frame.line}" if frame.line else ""
                return f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}{code}"
    return None


def _is_foreign(file: Path) -> bool:
    if not file.is_file() or file.is_relative_to(_TORCH) or file.is_relative_to(_HERE):
        return False
    inside_library = file.is_relative_to(_LIBRARY)
    return not inside_library or "site-packages" in file.relative_to(_LIBRARY).parts
