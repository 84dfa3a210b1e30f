"""What the engines compute on while they are timed: several seeded, non-zero batches, used in turn."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from prune2deploy.engines.engine import Array, TensorInfo
from prune2deploy.errors import InputError

MAXIMUM_BUFFERS = 4
_MAXIMUM_BYTES = 256 << 20
_NO_SHAPES: Mapping[str, tuple[int, ...]] = MappingProxyType({})


def input_buffers(
    infos: Sequence[TensorInfo],
    *,
    batch: int,
    seed: int,
    real_inputs: Array | None,
    where: str,
    shapes: Mapping[str, tuple[int, ...]] = _NO_SHAPES,
) -> tuple[Mapping[str, Array], ...]:
    """Make up to four batches for a network with these inputs, fewer where they would take over 256 MiB.

    Rows of ``real_inputs`` (N, ...) are used where they fit the network's only input; else standard normal numbers
    (for integer inputs from 1 to 7, any byte for uint8): zeros would let denormals and sparsity shortcuts flatter an
    engine.

    Raises:
        InputError: as ``shapes_at``.
    """
    whole = shapes_at(infos, batch=batch, where=where, shapes=shapes)
    bytes_each = sum(int(np.prod(whole[info.name])) * np.dtype(info.dtype).itemsize for info in infos)
    count = max(1, min(MAXIMUM_BUFFERS, _MAXIMUM_BYTES // max(1, bytes_each)))
    generator = np.random.default_rng([seed, batch])
    return tuple(
        {info.name: _fill(info, whole[info.name], generator, real_inputs) for info in infos} for _ in range(count)
    )


def shapes_at(
    infos: Sequence[TensorInfo], *, batch: int, where: str, shapes: Mapping[str, tuple[int, ...]] = _NO_SHAPES
) -> dict[str, tuple[int, ...]]:
    """The shape of each input at a batch size, by name. Inputs that ``shapes`` names have that shape.

    Inputs whose first size is fixed beside one whose first size is free hold no batch, and keep it.

    Raises:
        InputError: the network is fixed to another batch size or to other sizes than ``shapes`` says, a size besides
            the batch is free and not given, or ``shapes`` names an input that there is not.
    """
    strays = [name for name in shapes if name not in {info.name for info in infos}]
    if strays:
        raise InputError(
            f"has no input {strays[0]!r}",
            where=where,
            hint=f"its inputs are {', '.join(spelled_input(info) for info in infos)}",
        )
    fixed = fixed_batch(infos)
    if not shapes and fixed is not None and fixed != batch:
        raise InputError(
            f"input {_batch_input(infos).name} is fixed to batch size {fixed}, not {batch}",
            where=where,
            hint=f"use --batch {fixed}, or export with a dynamic batch",
        )
    return {
        info.name: _given_shape(info, shapes[info.name], where)
        if info.name in shapes
        else _concrete_shape(info, batch=batch, where=where)
        for info in infos
    }


def fixed_batch(infos: Sequence[TensorInfo]) -> int | None:
    """The batch size that a network is fixed to: the first size of its first input; None where an input's is free."""
    ranked = [info for info in infos if info.shape]
    if not ranked or any(info.shape[0] is None for info in ranked):
        return None
    return ranked[0].shape[0]


def batch_of(infos: Sequence[TensorInfo], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The batch size of given shapes: the first size of the first input that is named and whose first size is free.

    Where all that are named have fixed first sizes: that of the first of them.
    """
    named = [info for info in infos if shapes.get(info.name)]
    leading = [info for info in named if info.shape and info.shape[0] is None] or named
    return shapes[leading[0].name][0] if leading else 1


def spelled_input(info: TensorInfo) -> str:
    """An input as ``--shape`` takes it, with a question mark for each free size: ``input=?x3x224x224``."""
    return f"{info.name}={_spell(info.shape)}"


def _batch_input(infos: Sequence[TensorInfo]) -> TensorInfo:
    return next(info for info in infos if info.shape)


def _given_shape(info: TensorInfo, given: tuple[int, ...], where: str) -> tuple[int, ...]:
    fits = len(given) == len(info.shape) and all(
        size in (None, wanted) for size, wanted in zip(info.shape, given, strict=True)
    )
    if not fits:
        raise InputError(
            f"input {info.name} is {_spell(info.shape)}, not {_spell(given)}",
            where=where,
            hint=f"pass --shape {spelled_input(info)} with a number for each ?",
        )
    return given


def _concrete_shape(info: TensorInfo, *, batch: int, where: str) -> tuple[int, ...]:
    if any(size is None for size in info.shape[1:]):
        raise InputError(
            f"input {info.name} has a free size besides the batch: {_spell(info.shape)}",
            where=where,
            hint=f"pass --shape {spelled_input(info)} with a number for each ?",
        )
    sizes = [size for size in info.shape[1:] if size is not None]
    return (batch if info.shape[0] is None else info.shape[0], *sizes) if info.shape else ()


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
