"""Which widths engines run well: multiples of a granule.

Engines compute in tiles; a width of 65 costs as much as one of 80. So widths are chosen among multiples of the
granule with the budget in view, and not floored afterwards. Sources: ``docs/decisions/0004-alignment.md``.
"""

import math

from prune2deploy.graph.channels import Group

DEFAULT_GRANULE = 16
MINIMUM_GRANULES = 4

_WITH_TENSOR_CORES = ("trt", "trt-rtx", "ort-cuda", "torch", "torch-compile", "torch-cuda-graph")
# Tensor cores are fed 16 bytes at a time.
_TENSOR_CORE_GRANULES = {"tf32": 4, "fp16": 8, "bf16": 8}
_GRANULES_OF_PRECISION = {"int8": 32}


def granule_for(engine: str | None = None, precision: str | None = None) -> int:
    """The granule of an engine at a precision, 16 where nothing better is known."""
    if engine in _WITH_TENSOR_CORES and precision in _TENSOR_CORE_GRANULES:
        return _TENSOR_CORE_GRANULES[precision]
    return _GRANULES_OF_PRECISION.get(precision or "", DEFAULT_GRANULE)


def is_narrow(group: Group, granule: int) -> bool:
    """Whether a group is too narrow for multiples of the granule to be a choice: less than four of them when dense."""
    return group.width < MINIMUM_GRANULES * granule


def allowed_counts(group: Group, granule: int) -> tuple[int, ...]:
    """The numbers of channels that a group may keep, ascending, the dense number last.

    A group is aligned if its dense width is at least four granules; narrower ones may keep any number.
    """
    count = len(group.channels)
    step = granule // math.gcd(granule, group.positions)
    if is_narrow(group, granule) or step >= count:
        step = 1
    counts = list(range(step, count + 1, step))
    if counts[-1] != count:
        counts.append(count)
    return tuple(counts)
