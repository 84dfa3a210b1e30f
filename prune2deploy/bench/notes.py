"""What a reader of a measurement should know beside its figures, each fact in one sentence."""

from collections.abc import Iterator, Sequence

from prune2deploy.bench.aside.energy import notes_on_energy
from prune2deploy.bench.aside.profiling import notes_on_profiles
from prune2deploy.bench.result import Control, Row
from prune2deploy.bench.samples import BuildSamples
from prune2deploy.bench.statistics.stopping import builds_wanted
from prune2deploy.bench.subjects import MINIMUM_BUILDS_FOR_AN_INTERVAL, BenchRequest
from prune2deploy.engines.census import Census


def notes_on(
    request: BenchRequest, builds: Sequence[BuildSamples], rows: Sequence[Row], controls: Sequence[Control]
) -> Iterator[str]:
    """Say what was given up, what was mixed, disturbed or unsteady, and which controls failed."""
    yield from _builds_given_up(request, builds)
    yield from _width_missed(request, builds, rows)
    yield from _mixed_precisions(request, builds)
    yield from _not_finite(builds)
    yield from _disturbed(builds)
    yield from _unsteady(builds)
    yield from notes_on_profiles(builds)
    if request.options.energy:
        yield from notes_on_energy(builds)
    for control in controls:
        setting = f"{control.precision}, batch {control.batch}"
        if control.disturbed is not None:
            yield (
                f"{control.disturbed} at {setting}: its verdicts are INVALID, measure again when the machine has "
                "less else to do"
            )
        elif control.passed is False:
            yield (
                f"the A/A control failed at {setting}: two copies of {request.baseline} differ by "
                f"{abs(control.interval.estimate - 1):.1%}; its verdicts are INVALID, measure again on a quieter "
                "machine"
            )


def _builds_given_up(request: BenchRequest, builds: Sequence[BuildSamples]) -> Iterator[str]:
    asked, measured = request.options.builds, len(builds)
    if measured < asked:
        note = f"only {measured} of {asked} builds fitted into {request.options.max_seconds:g} s"
        if measured < MINIMUM_BUILDS_FOR_AN_INTERVAL:
            note += ": no interval can be given and no claim decided"
        slowest = max(build.minimum_seconds for build in builds)
        yield f"{note}; --max-seconds {slowest * asked * 1.2:.0f} would do for all"
    elif measured < MINIMUM_BUILDS_FOR_AN_INTERVAL:
        yield f"fewer than 3 builds ({measured}) give no interval and decide no claim; ask for at least 3"


def _width_missed(request: BenchRequest, builds: Sequence[BuildSamples], rows: Sequence[Row]) -> Iterator[str]:
    """Where intervals stayed wider than was asked for: how many builds it would have taken."""
    options = request.options
    if options.half_width is None or len(builds) < options.builds:
        return
    widest = max(
        (width for row in rows for s in row.speedups if (width := s.interval.half_width) is not None), default=0
    )
    wanted = builds_wanted(request, builds[: options.builds])
    if widest <= options.half_width:
        return
    if wanted > len(builds):
        seconds = sum(build.seconds for build in builds) / len(builds) * wanted
        most = " or more" if wanted == options.max_builds else ""
        yield (
            f"the widest interval reaches {widest:.1%} to either side, not {options.half_width:.1%}: by the pilot that "
            f"would take {wanted}{most} builds, about --max-seconds {seconds * 1.2:.0f}"
        )
    else:
        yield (
            f"the widest interval reaches {widest:.1%} to either side, not {options.half_width:.1%}: builds differed "
            "more after the pilot than in it, the machine is noisy"
        )


def _not_finite(builds: Sequence[BuildSamples]) -> Iterator[str]:
    """Engines whose outputs are no numbers on random inputs, where no reference says what they should be."""
    for build in builds:
        for fact in build.engines:
            if names := fact.get("not_finite"):
                yield (
                    f"{fact['variant']} gives infinity or what is no number ({', '.join(names)}) on random inputs: "
                    "its file may be damaged, and its speed not that of real numbers"
                )


def _disturbed(builds: Sequence[BuildSamples]) -> Iterator[str]:
    rounds = sum(cell.rounds for build in builds for cell in build.cells)
    reasons = [reason for build in builds for cell in build.cells for reason in cell.dropped.values()]
    if reasons:
        yield (
            f"{len(reasons)} of {rounds} rounds were disturbed and dropped, for all variants alike; "
            f"the last one because it {reasons[-1]}"
        )


def _mixed_precisions(request: BenchRequest, builds: Sequence[BuildSamples]) -> Iterator[str]:
    """Of engines that compute partly in another precision than they are called by, how much of each."""
    for fact in builds[0].engines if builds else ():
        document = fact.get("details", {}).get("census")
        if document is None:
            continue
        census = Census.from_document(document)
        if len(census.layers) > 1:
            yield (
                f"{fact['variant']} at {fact['precision']} on {request.engine} computes in several precisions: "
                f"{census.in_words()}"
            )


def _unsteady(builds: Sequence[BuildSamples]) -> Iterator[str]:
    counts: dict[tuple[str, str, int], int] = {}
    for build in builds:
        for cell in build.cells:
            for slot in cell.warmup:
                if not slot["steady"]:
                    key = (str(slot["variant"]), cell.precision, cell.batch)
                    counts[key] = counts.get(key, 0) + 1
    if counts:
        worst = max(counts, key=lambda key: counts[key])
        yield (
            f"{sum(counts.values())} warm-ups ended before two blocks agreed within 2% (most often "
            f"{worst[0]} at {worst[1]}, batch {worst[2]}): the machine is noisy"
        )
