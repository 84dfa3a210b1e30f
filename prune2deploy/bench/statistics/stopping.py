"""How many builds there are: what a pilot asks for, and what the time allows. Pure: the clock is read elsewhere."""

import math
from collections.abc import Iterator, Sequence

from prune2deploy.bench.samples import BuildSamples
from prune2deploy.bench.statistics.figures import build_figure_ns
from prune2deploy.bench.statistics.intervals import builds_needed
from prune2deploy.bench.subjects import BenchRequest


def builds_wanted(request: BenchRequest, pilot: Sequence[BuildSamples]) -> int:
    """How many builds in all bring every speed-up's interval to the half-width asked for, ``max_builds`` at most.

    Without a half-width: those of the pilot. A pair of which fewer than two builds count asks for no more.
    """
    options = request.options
    if options.half_width is None:
        return len(pilot)
    needed = [
        builds_needed(slower, faster, half_width=options.half_width, confidence=options.confidence)
        for slower, faster in compared_figures(request, pilot)
        if len(slower) >= 2
    ]
    return min(max([len(pilot), *needed]), max(options.max_builds, len(pilot)))


def compared_figures(
    request: BenchRequest, builds: Sequence[BuildSamples]
) -> Iterator[tuple[list[float], list[float]]]:
    """For each speed-up that will be told: the figures of the other variant and of the variant, one a build."""
    scenario = request.options.scenario
    for precision in request.precisions:
        for batch in request.batches:
            cells = [cell for build in builds if (cell := build.cell(precision, batch)).counts]
            for subject in request.subjects_at(precision):
                figures = [build_figure_ns(cell, subject.variant, scenario=scenario) for cell in cells]
                for other in request.compared_with(subject):
                    yield [build_figure_ns(cell, other, scenario=scenario) for cell in cells], figures


def affordable_builds(*, done: int, wanted: int, remaining_seconds: float, seconds_each: float) -> int:
    """How many builds there will be in all, if each further one takes at least ``seconds_each``."""
    if seconds_each <= 0:
        return wanted
    return min(wanted, done + max(0, math.floor(remaining_seconds / seconds_each)))
