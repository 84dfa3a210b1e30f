"""Weights out of a ``torch.export`` archive (``.pt2``): a zip of raw tensors and a JSON table.

Nothing is unpickled.
"""

import json
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prune2deploy.checkpoint.pickles import damaged
from prune2deploy.errors import CheckpointError

# Numbers of torch's export schema (``ScalarType``).
_DTYPES = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
}

_FORMAT_RECORD = "archive_format"
_WEIGHTS_TABLE = "data/weights/model_weights_config.json"


def is_export_archive(path: Path) -> bool:
    """Whether a zip file was written by ``torch.export.save``, by a torch of any version."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.partition("/")[2] or name for name in archive.namelist()]
    except zipfile.BadZipFile:
        return False
    return _FORMAT_RECORD in names or "serialized_exported_program.json" in names


def read_export_archive(path: Path) -> dict[str, Tensor]:
    """Parameters and buffers by their names in the module that was exported.

    Raises:
        CheckpointError: the archive is damaged, or of a torch before 2.9, which kept weights otherwise.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            table_name = next((name for name in archive.namelist() if name.endswith(_WEIGHTS_TABLE)), None)
            if table_name is None:
                raise CheckpointError(
                    "is a torch.export archive of an older format",
                    where=str(path),
                    hint="export it again with torch 2.9 or newer, or save the module's state_dict",
                )
            table = json.loads(archive.read(table_name))["config"]
            folder = table_name.rpartition("/")[0]
            return {name: _tensor(archive, folder, entry, path, name) for name, entry in table.items()}
    except (zipfile.BadZipFile, LookupError, TypeError, ValueError, RuntimeError, EOFError) as error:
        raise damaged(path, error) from error


def _tensor(archive: zipfile.ZipFile, folder: str, entry: dict[str, Any], path: Path, name: str) -> Tensor:
    meta = entry["tensor_meta"]
    dtype = _DTYPES.get(meta["dtype"])
    if entry["use_pickle"] or dtype is None:
        raise CheckpointError(
            f"{name} is no plain tensor", where=str(path), hint="save the module's state_dict and pass that file"
        )
    storage = torch.frombuffer(bytearray(archive.read(f"{folder}/{entry['path_name']}")), dtype=dtype)
    sizes, strides = ([item["as_int"] for item in meta[field]] for field in ("sizes", "strides"))
    return storage.as_strided(sizes, strides, meta["storage_offset"]["as_int"]).clone()
