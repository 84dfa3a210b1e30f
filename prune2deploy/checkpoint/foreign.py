"""Reading what the world saves: state dicts under all usual wrappers, safetensors, torch.export archives, modules."""

import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from prune2deploy.checkpoint.exported import is_export_archive, read_export_archive
from prune2deploy.checkpoint.pickles import NeedsTrustError, damaged, unpickle_trusting, unpickle_without_code
from prune2deploy.checkpoint.unwrap import (
    architecture_hint,
    data_hint,
    find_module,
    modern_names,
    pickled_module_class,
    strip_prefixes,
    unwrap,
)
from prune2deploy.errors import CheckpointError

_CHECKED_DTYPES = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
_HEAD_BYTES = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignCheckpoint:
    """What a file of another program holds.

    ``state_dict``: weights by name, on the CPU, detached, all finite; they may be mapped from the file, so copy them
    into a model before the file changes. ``architecture``: a model spec if the file names one, else None.
    ``data``: the data spec of the folder that it was trained on, if it says and the folder exists. ``module``: the
    whole module of a pickled one (read only under trust). ``wrapper``: keys and prefixes taken off, outermost first.
    ``format``: "torch.save", "safetensors", "torch.export" or "pickled module". ``skipped``: classes in the file
    that were not imported.
    """

    state_dict: Mapping[str, Tensor]
    architecture: str | None
    data: str | None
    module: nn.Module | None
    wrapper: tuple[str, ...]
    format: str
    skipped: tuple[str, ...] = ()


def read_checkpoint(path: Path, *, trust_pickle: bool = False) -> ForeignCheckpoint:
    """Read the weights of a checkpoint, running no code that it names.

    ``trust_pickle`` allows one thing more: a file that holds a whole pickled module is unpickled, which imports and
    runs whatever the file says, with all the rights of the user. Files that hold weights are never read that way.

    Raises:
        CheckpointError: the file is missing, empty, damaged, of another kind, has no weights or several sets of
            them, has entries that are no tensors, has weights that are not finite, or needs ``trust_pickle``.
    """
    kind = _kind_of(path)
    if kind == "safetensors":
        checkpoint = _from_safetensors(path)
    elif kind == "torch.export":
        checkpoint = _from_state_dict(read_export_archive(path), kind=kind)
    else:
        checkpoint = _from_pickle(path, trust_pickle=trust_pickle)
    if not checkpoint.state_dict:
        raise CheckpointError("holds no tensors", where=str(path), hint="pass a file that holds a model's state_dict")
    check_finite(checkpoint.state_dict, where=str(path))
    return checkpoint


def check_finite(state_dict: Mapping[str, Tensor], *, where: str) -> None:
    """Refuse weights that are NaN or infinite.

    Raises:
        CheckpointError: some are; the first tensors are named.
    """
    bad = [
        name
        for name, tensor in state_dict.items()
        # A sum is finite only if all terms are, and costs no mask; an overflowing sum is looked at closely.
        if tensor.dtype in _CHECKED_DTYPES
        and not math.isfinite(tensor.sum(dtype=torch.float64).item())
        and not torch.isfinite(tensor).all()
    ]
    if bad:
        listed = ", ".join(bad[:3]) + (", ..." if len(bad) > 3 else "")
        raise CheckpointError(
            f"NaN or infinite values in {len(bad)} of {len(state_dict)} tensors ({listed})",
            where=where,
            hint="use a checkpoint from before training diverged",
        )


def _kind_of(path: Path) -> str:
    where = str(path)
    if path.is_dir():
        if (path / "bundle.json").is_file():
            raise CheckpointError(
                "is a bundle of prune2deploy, not a foreign checkpoint", where=where, hint="load it with p2d.load"
            )
        raise CheckpointError("is a folder", where=where, hint="name the checkpoint file in it")
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except FileNotFoundError as error:
        raise CheckpointError("does not exist", where=where, hint="check the path") from error
    except OSError as error:
        raise CheckpointError(f"cannot be read ({error.strerror})", where=where, hint="check the path") from error
    if not head:
        raise CheckpointError("is empty", where=where, hint="copy or download it again")
    if path.suffix == ".onnx":
        raise CheckpointError("is an ONNX file, which cannot be pruned", where=where, hint="p2d bench takes it")
    if path.suffix == ".safetensors" or head[8:10] == b'{"':
        return "safetensors"
    if head.startswith(b"PK\x03\x04"):
        return _kind_of_zip(path)
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError("is a Git LFS pointer, not the file", where=where, hint="run `git lfs pull`")
    if _is_text(head):
        kind = "a web page" if b"<html" in head.lower() or b"<!doctype" in head.lower() else "a text file"
        raise CheckpointError(f"is {kind}, not a checkpoint", where=where, hint="copy or download it again")
    return "torch.save"


def _kind_of_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as error:
        raise damaged(path, error) from error
    if is_export_archive(path):
        return "torch.export"
    if any(name.endswith("/constants.pkl") for name in names):
        raise CheckpointError(
            "is a TorchScript archive, which cannot be pruned",
            where=str(path),
            hint="save the state_dict of the Python module instead",
        )
    if not any(name.endswith("data.pkl") for name in names):
        raise CheckpointError(
            "is a zip archive without weights", where=str(path), hint="pass a file written by torch.save"
        )
    return "torch.save"


def _from_safetensors(path: Path) -> ForeignCheckpoint:
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise damaged(path, error) from error
    return _from_state_dict(tensors, kind="safetensors")


def _from_state_dict(tensors: Mapping[str, Tensor], *, kind: str) -> ForeignCheckpoint:
    state_dict, prefixes = strip_prefixes(tensors) if tensors else ({}, ())
    return ForeignCheckpoint(
        state_dict=modern_names(state_dict), architecture=None, data=None, module=None, wrapper=prefixes, format=kind
    )


def _from_pickle(path: Path, *, trust_pickle: bool) -> ForeignCheckpoint:
    try:
        unpickled = unpickle_without_code(path)
        content, skipped = unpickled.content, unpickled.skipped
        needs_trust = pickled_module_class(content) is not None
    except NeedsTrustError:
        if not trust_pickle:
            raise
        content, skipped, needs_trust = None, (), True
    if not (needs_trust and trust_pickle):
        return _from_content(content, skipped, path)
    content = unpickle_trusting(path)
    module = find_module(content)
    if module is None:
        return _from_content(content, (), path)
    return ForeignCheckpoint(
        state_dict={name: value.detach() for name, value in module.state_dict().items() if isinstance(value, Tensor)},
        architecture=None,
        data=data_hint(content),
        module=module,
        wrapper=(),
        format="pickled module",
    )


def _from_content(content: Any, skipped: tuple[str, ...], path: Path) -> ForeignCheckpoint:
    unwrapped = unwrap(content, where=str(path))
    return ForeignCheckpoint(
        state_dict=unwrapped.state_dict,
        architecture=architecture_hint(content),
        data=data_hint(content),
        module=None,
        wrapper=unwrapped.wrapper,
        format="torch.save",
        skipped=skipped,
    )


def _is_text(head: bytes) -> bool:
    # The last bytes may be half of a character.
    text = head.decode("utf-8", errors="ignore")
    return len(text.encode()) >= len(head) - 3 and all(
        character.isprintable() or character.isspace() for character in text
    )
