"""ONNX files that belong to no run: what they are called, which shapes they are measured at, and what they cost."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnx import TensorProto

from prune2deploy.bench.subjects import BATCHES, DEFAULT_BATCHES, Subject
from prune2deploy.bench.timed.inputs import batch_of, fixed_batch, shapes_at, spelled_input
from prune2deploy.engines.engine import TensorInfo
from prune2deploy.engines.onnx_file import (
    OnnxFile,
    load_onnx_proto,
    read_onnx_file,
    require_precision,
    stored_precision,
)
from prune2deploy.engines.onnx_flops import layer_costs
from prune2deploy.errors import InputError

# Sizes, axes and indices, which shape values and are none of the network's parameters.
_NO_PARAMETERS = (TensorProto.INT64, TensorProto.BOOL, TensorProto.STRING)


@dataclass(frozen=True, slots=True, kw_only=True)
class BareFiles:
    """Files to measure, of which the first is the base, with the batch sizes and whole input shapes to measure at.

    ``notes`` say what could not be told of them.
    """

    subjects: tuple[Subject, ...]
    batches: tuple[int, ...]
    shapes: Mapping[str, tuple[int, ...]]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cost:
    flops: int | None
    parameters: int
    reason: str | None = None


def bare_files(
    paths: tuple[Path, ...],
    *,
    precisions: tuple[str, ...] | None,
    batches: tuple[int, ...] | None,
    shapes: Mapping[str, tuple[int, ...]],
    default_batches: tuple[int, ...] = DEFAULT_BATCHES[BATCHES],
) -> BareFiles:
    """Read the files, each at its own precision unless one is asked for, which must then be theirs.

    ``batches`` None is what the files are fixed to, else ``default_batches``; ``shapes`` say the batch themselves.
    FLOPs and parameters are told as shares of the first file's.

    Raises:
        InputError: a file is missing, no ONNX file, named twice or of another precision; the files take different
            inputs, or not these batches or shapes.
    """
    if precisions is not None and len(precisions) > 1:
        raise InputError(
            "files are measured at one precision each",
            where=f"--precision {','.join(precisions)}",
            hint="leave it out: every file states its own",
        )
    files = [read_onnx_file(path) for path in paths]
    asked = [precisions[0] if precisions else stored_precision(file) or "fp32" for file in files]
    for file, precision in zip(files, asked, strict=True):
        require_precision(file, precision)
    # Files of different precisions may take inputs of different types; they are not compared with each other.
    alike = [file for file, precision in zip(files, asked, strict=True) if precision == asked[0]]
    for file in alike:
        _require_same_names(files[0], file)
    settled = _settled_batches(files, batches, shapes, default_batches)
    for file in files:
        for batch in settled:
            shapes_at(file.inputs, batch=batch, where=str(file.path), shapes=shapes)
        if file in alike:
            _require_same_shapes(files[0], file, batch=settled[0], shapes=shapes)
    costs = [_cost(file, settled[0], shapes) for file in files]
    first = costs[0]
    subjects = tuple(
        Subject(
            variant=name,
            precision=precision,
            onnx_path=file.path,
            sha256=file.sha256,
            file_bytes=file.bytes_total,
            flops_fraction=_share(cost.flops, first.flops),
            parameters_fraction=_share(cost.parameters, first.parameters),
        )
        for name, file, precision, cost in zip(_names(paths), files, asked, costs, strict=True)
    )
    notes = tuple(dict.fromkeys(f"FLOPs are not known: {cost.reason}" for cost in costs if cost.reason))
    return BareFiles(subjects=subjects, batches=settled, shapes=dict(shapes), notes=notes)


def _names(paths: tuple[Path, ...]) -> list[str]:
    """The files' names without folder and suffix where these tell them apart, else as they were given."""
    stems = [path.stem for path in paths]
    names = stems if len(set(stems)) == len(stems) else [str(path) for path in paths]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError("is named twice", where=twice, hint="name each file once; the first is the base")
    return names


def _settled_batches(
    files: Sequence[OnnxFile],
    batches: tuple[int, ...] | None,
    shapes: Mapping[str, tuple[int, ...]],
    default_batches: tuple[int, ...],
) -> tuple[int, ...]:
    if shapes:
        batch = batch_of(files[0].inputs, shapes)
        if batches is not None and batches != (batch,):
            raise InputError(
                f"contradicts --shape, whose batch is {batch}",
                where=f"--batch {','.join(map(str, batches))}",
                hint="leave it out",
            )
        return (batch,)
    if batches is not None:
        return batches
    fixed = {size: file.path for file in files if (size := fixed_batch(file.inputs)) is not None}
    if len(fixed) > 1:
        (one, path), (other, other_path) = list(fixed.items())[:2]
        raise InputError(
            f"is fixed to batch size {other}, and {path} to {one}",
            where=str(other_path),
            hint="export them with the same batch size, or a dynamic one",
        )
    return tuple(fixed) or default_batches


def _require_same_names(first: OnnxFile, file: OnnxFile) -> None:
    if {info.name for info in first.inputs} != {info.name for info in file.inputs}:
        raise InputError(
            f"takes {_listed(file.inputs)}, and {first.path} takes {_listed(first.inputs)}",
            where=str(file.path),
            hint="files that are compared take the same inputs, of the same names",
        )


def _require_same_shapes(first: OnnxFile, file: OnnxFile, *, batch: int, shapes: Mapping[str, tuple[int, ...]]) -> None:
    wanted = _typed_shapes(first, batch, shapes)
    for name, told in _typed_shapes(file, batch, shapes).items():
        if told != wanted[name]:
            raise InputError(
                f"input {name} is {told}, and that of {first.path} is {wanted[name]}",
                where=str(file.path),
                hint="files that are compared take the same inputs",
            )


def _typed_shapes(file: OnnxFile, batch: int, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    whole = shapes_at(file.inputs, batch=batch, where=str(file.path), shapes=shapes)
    return {info.name: f"{'x'.join(map(str, whole[info.name])) or 'a scalar'} {info.dtype}" for info in file.inputs}


def _listed(infos: Sequence[TensorInfo]) -> str:
    return ", ".join(spelled_input(info) for info in infos) or "no inputs"


def _cost(file: OnnxFile, batch: int, shapes: Mapping[str, tuple[int, ...]]) -> _Cost:
    stored = load_onnx_proto(file.path).graph.initializer
    parameters = sum(math.prod(tensor.dims) for tensor in stored if tensor.data_type not in _NO_PARAMETERS)
    try:
        flops = sum(layer.flops for layer in layer_costs(file.path, batch, shapes=shapes))
    except InputError as error:
        return _Cost(flops=None, parameters=parameters, reason=str(error))
    return _Cost(flops=flops, parameters=parameters)


def _share(part: int | None, whole: int | None) -> float | None:
    return part / whole if part and whole else None
