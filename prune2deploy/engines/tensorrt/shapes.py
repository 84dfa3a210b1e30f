"""Optimisation profiles: which batch sizes an engine takes, and which profile takes a given one."""

from collections.abc import Mapping
from dataclasses import dataclass

from prune2deploy.engines.engine import BuildOptions
from prune2deploy.engines.onnx_file import OnnxFile
from prune2deploy.errors import EngineError

Profile = Mapping[str, tuple[tuple[int, ...], ...]]
Range = tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """What an engine takes: single ``batches``, ascending, then ``ranges`` of them (smallest, best, largest).

    ``profiles`` are in that order, each with the smallest, best and largest shape of each input; there are none where
    the file fixes its batch.
    """

    batches: tuple[int, ...]
    ranges: tuple[Range, ...]
    profiles: tuple[Profile, ...]


def shapes_for(file: OnnxFile, options: BuildOptions, name: str) -> Shapes:
    """The profiles of an engine of this file: one for each batch size, so that its kernels are chosen for exactly that
    shape, then one for each range. With ``options.shapes`` there is one profile, of these shapes.

    Raises:
        EngineError: a dimension other than the batch is free and not given, or a fixed batch is not the one asked for.
    """
    for tensor in file.inputs:
        if tensor.name not in options.shapes and (not tensor.shape or None in tensor.shape[1:]):
            raise EngineError(
                f"input {tensor.name!r} has the shape {tensor.shape}; {name} needs all sizes but the batch fixed",
                where=str(file.path),
                hint="export it at a fixed image size, or measure it with `p2d bench --shape`",
            )
    batches, ranges = tuple(sorted(set(options.batches))), tuple(sorted(set(options.tensorrt.ranges)))
    if not any(None in tensor.shape for tensor in file.inputs):
        fixed = file.inputs[0].shape[0] if file.inputs else None
        if (fixed,) != batches or ranges:
            raise EngineError(
                f"the network has a fixed batch of {fixed}, and {spelled(batches, ranges)} is asked for",
                where=str(file.path),
                hint=f"pass --batch {fixed}, or export with a dynamic batch",
            )
        return Shapes(batches=batches, ranges=(), profiles=())
    limits = [(batch,) * 3 for batch in batches] + list(ranges)
    profiles = tuple(
        {
            tensor.name: tuple(options.shapes.get(tensor.name) or _with_batch(tensor.shape, batch) for batch in limit)
            for tensor in file.inputs
        }
        for limit in limits
    )
    return Shapes(batches=batches, ranges=ranges, profiles=profiles)


def profile_number(batch: int, batches: tuple[int, ...], ranges: tuple[Range, ...]) -> int | None:
    """The profile that takes a batch: its own, or else that of the narrowest range around it; None if none does."""
    if batch in batches:
        return batches.index(batch)
    around = [number for number, (least, _, most) in enumerate(ranges) if least <= batch <= most]
    if not around:
        return None
    return len(batches) + min(around, key=lambda number: ranges[number][2] - ranges[number][0])


def spelled(batches: tuple[int, ...], ranges: tuple[Range, ...] = ()) -> str:
    """``1, 32, 1 to 64 (best 16)``."""
    texts = [str(batch) for batch in batches]
    return ", ".join(texts + [f"{least} to {most} (best {best})" for least, best, most in ranges])


def _with_batch(shape: tuple[int | None, ...], batch: int) -> tuple[int, ...]:
    """The shape at a batch size; an input whose first size is fixed keeps it, and holds no batch."""
    first = batch if shape[0] is None else shape[0]
    return (first, *(size for size in shape[1:] if size is not None))
