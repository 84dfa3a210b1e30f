"""What the engines compute on while they are timed: several seeded, non-zero batches, used in turn."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prune2deploy.engines.engine import Array, TensorInfo
from prune2deploy.errors import InputError

MAXIMUM_BUFFERS = 4
_MAXIMUM_BYTES = 256 << 20


def input_buffers(
    infos: Sequence[TensorInfo],
    *,
    batch: int,
    seed: int,
    real_inputs: Array | None,
    where: str,
) -> tuple[Mapping[str, Array], ...]:
    """Make up to four batches for a network with these inputs, fewer where they would take over 256 MiB.

    Rows of ``real_inputs`` (N, ...) are used where they fit the network's only input; else standard normal numbers
    (for integer inputs from 1 to 7, any byte for uint8): zeros would let denormals and sparsity shortcuts flatter an
    engine.

    Raises:
        InputError: the network is fixed to another batch size, or another dimension is dynamic.
    """
    shapes = shapes_at(infos, batch=batch, where=where)
    bytes_each = sum(int(np.prod(shapes[info.name])) * np.dtype(info.dtype).itemsize for info in infos)
    count = max(1, min(MAXIMUM_BUFFERS, _MAXIMUM_BYTES // max(1, bytes_each)))
    generator = np.random.default_rng([seed, batch])
    return tuple(
        {info.name: _fill(info, shapes[info.name], generator, real_inputs) for info in infos} for _ in range(count)
    )


def shapes_at(infos: Sequence[TensorInfo], *, batch: int, where: str) -> dict[str, tuple[int, ...]]:
    """The shape of each input at a batch size, by name.

    Raises:
        InputError: the network is fixed to another batch size, or another dimension is dynamic.
    """
    return {info.name: _concrete_shape(info, batch=batch, where=where) for info in infos}


def _concrete_shape(info: TensorInfo, *, batch: int, where: str) -> tuple[int, ...]:
    if not info.shape:
        return ()
    first, rest = info.shape[0], info.shape[1:]
    if first is not None and first != batch:
        raise InputError(
            f"input {info.name} is fixed to batch size {first}, not {batch}",
            where=where,
            hint=f"use --batch {first}, or export with a dynamic batch",
        )
    if any(size is None for size in rest):
        raise InputError(
            f"input {info.name} has a dynamic size besides the batch: {_spell(info.shape)}",
            where=where,
            hint="export it with fixed sizes",
        )
    return (batch, *(size for size in rest if size is not None))


def _fill(
    info: TensorInfo,
    shape: tuple[int, ...],
    generator: np.random.Generator,
    real_inputs: Array | None,
) -> Array:
    dtype = np.dtype(info.dtype)
    if real_inputs is not None and _fits(real_inputs, dtype, shape):
        rows = generator.integers(0, len(real_inputs), size=shape[0])
        return np.ascontiguousarray(real_inputs[rows], dtype=dtype)
    if dtype == np.uint8:
        return generator.integers(0, 256, size=shape, dtype=np.uint8)
    if dtype.kind in "iu":
        return generator.integers(1, 8, size=shape, dtype=dtype.type)
    if dtype.kind == "b":
        return generator.integers(0, 2, size=shape).astype(dtype)
    return generator.standard_normal(shape, dtype=np.float32).astype(dtype, copy=False)


def _fits(real_inputs: Array, dtype: np.dtype[Any], shape: tuple[int, ...]) -> bool:
    """Whether there are real inputs of this shape, and of this type (any float for a float)."""
    same_type = real_inputs.dtype == dtype or (real_inputs.dtype.kind == "f" and dtype.kind == "f")
    return same_type and len(real_inputs) > 0 and real_inputs.shape[1:] == shape[1:]


def _spell(shape: tuple[int | None, ...]) -> str:
    return "x".join("?" if size is None else str(size) for size in shape)
