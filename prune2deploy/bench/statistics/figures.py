"""The figures that a variant is judged and described by, out of what its blocks timed. Pure.

What is judged depends on the scenario; "single-stream" and "offline" have the meaning that MLPerf's inference rules
give them (github.com/mlcommons/inference_policies, ``inference_rules.adoc``, "Scenarios"): the 90th percentile of the
latency of one query at a time, and the throughput over samples that are all there at the start.
"""

from collections.abc import Sequence
from statistics import median

import numpy as np

from prune2deploy.bench.samples import QUEUE, WALL, Block, Cell
from prune2deploy.bench.statistics.intervals import MINIMUM_SAMPLES_P90, Percentiles, percentiles
from prune2deploy.bench.subjects import OFFLINE, SINGLE_STREAM
from prune2deploy.errors import InputError


def build_figure_ns(cell: Cell, variant: str, *, copy: int = 0, scenario: str) -> float:
    """What a variant is judged by in one build; less is faster. Unit: ns.

    The median of its runs; of single-stream their 90th percentile, with linear interpolation (not MLPerf's
    early-stopping estimate: that is an upper bound, the nearer to the percentile the more runs there were, and would
    favour whichever variant is faster); of offline the time of all its queues over the number of their runs.

    Raises:
        InputError: no run counts, or for single-stream fewer than 64.
    """
    if scenario == OFFLINE:
        return _time_per_run(cell.blocks_of(variant, copy=copy, kind=QUEUE), variant)
    samples = cell.samples_of(variant, copy=copy)
    if scenario == SINGLE_STREAM:
        if len(samples) < MINIMUM_SAMPLES_P90:
            raise InputError(
                f"{len(samples)} runs of {variant} count in a build, a 90th percentile needs {MINIMUM_SAMPLES_P90}",
                where="--scenario single-stream",
                hint="measure more rounds, or on a quieter machine",
            )
        return float(np.percentile(samples, 90))
    if not samples:
        raise _nothing_counts(variant)
    return float(median(samples))


def latencies_ns(cells: Sequence[Cell], variant: str, *, scenario: str) -> list[int]:
    """What a variant's percentiles are taken of: the time of each run, offline of a run in each queue. Unit: ns."""
    if scenario != OFFLINE:
        return [sample for cell in cells for sample in cell.samples_of(variant)]
    return [round(sample / block.runs) for block in _blocks(cells, variant, QUEUE) for sample in block.samples_ns]


def throughput_per_s(cells: Sequence[Cell], variant: str, *, batch: int, scenario: str) -> float:
    """Inputs per second over a queue that was never empty, in all builds together.

    Without such a queue (engines that hold one run at a time, and single-stream by its meaning) the runs were timed one
    after the other, and the clock's readings between them are left out. Inputs over time, not a median: slow runs take
    their time of a service too.

    Raises:
        InputError: no run counts.
    """
    queued = [] if scenario == SINGLE_STREAM else _blocks(cells, variant, QUEUE)
    return batch * 1e9 / _time_per_run(queued or _blocks(cells, variant, WALL), variant)


def percentiles_of(cells: Sequence[Cell], variant: str, kind: str) -> Percentiles | None:
    """The percentiles of one kind of sample over all builds; None where the engine cannot tell it."""
    samples = [sample for cell in cells for sample in cell.samples_of(variant, kind=kind)]
    return percentiles(samples) if samples else None


def _blocks(cells: Sequence[Cell], variant: str, kind: str) -> list[Block]:
    return [block for cell in cells for block in cell.blocks_of(variant, kind=kind)]


def _time_per_run(blocks: Sequence[Block], variant: str) -> float:
    runs = sum(block.runs * len(block.samples_ns) for block in blocks)
    if runs == 0:
        raise _nothing_counts(variant)
    return sum(sum(block.samples_ns) for block in blocks) / runs


def _nothing_counts(variant: str) -> InputError:
    return InputError(f"no run of {variant} counts", hint="measure again on a quieter machine")
