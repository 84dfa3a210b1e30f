"""From the raw samples of all builds to rows, intervals, controls and verdicts. Pure: no clock, no disk."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from prune2deploy.bench.claims import JudgedClaim, judge
from prune2deploy.bench.compare import (
    CONTROL_CONFIDENCE,
    control_passes,
    distribution,
    percentiles,
    ratio_interval,
)
from prune2deploy.bench.result import BenchResult, Control, Row, Speedup
from prune2deploy.bench.samples import BuildSamples, Cell
from prune2deploy.bench.subjects import (
    MINIMUM_BUILDS_FOR_AN_INTERVAL,
    REDUCED,
    BenchRequest,
    Subject,
)
from prune2deploy.engines.census import Census

Estimator = Callable[[Sequence[int]], float]


def summarise(
    request: BenchRequest,
    builds: Sequence[BuildSamples],
    *,
    environment: Mapping[str, Any],
    estimator: Estimator = median,
) -> BenchResult:
    """Judge what was measured. ``estimator`` turns the samples of one build into its figure (default: the median).

    Raises:
        InputError: there is no build, or one lacks a cell of the request.
    """
    rows: list[Row] = []
    controls: list[Control] = []
    for precision in request.precisions:
        for batch in request.batches:
            cells = [build.cell(precision, batch) for build in builds]
            controls.append(_control(request, cells, estimator))
            rows += [_row(request, subject, cells, builds, estimator) for subject in request.subjects_at(precision)]
    return BenchResult(
        environment=dict(environment),
        protocol=_protocol(request, builds),
        baseline=request.baseline,
        rows=tuple(rows),
        claims=tuple(_claims(request, rows, controls)),
        controls=tuple(controls),
        notes=tuple(_notes(request, builds, controls)),
        samples=tuple(builds),
    )


def _figures(cells: Sequence[Cell], variant: str, estimator: Estimator, *, copy: int = 0) -> list[float]:
    return [float(estimator(cell.samples_of(variant, copy=copy))) for cell in cells]


def _control(request: BenchRequest, cells: Sequence[Cell], estimator: Estimator) -> Control:
    first = _figures(cells, request.baseline, estimator)
    second = _figures(cells, request.baseline, estimator, copy=1)
    interval = ratio_interval(second, first, confidence=CONTROL_CONFIDENCE)
    return Control(
        engine=request.engine,
        precision=cells[0].precision,
        batch=cells[0].batch,
        interval=interval,
        passed=control_passes(interval),
    )


def _row(
    request: BenchRequest,
    subject: Subject,
    cells: Sequence[Cell],
    builds: Sequence[BuildSamples],
    estimator: Estimator,
) -> Row:
    batch = cells[0].batch
    pooled = [sample for cell in cells for sample in cell.samples_of(subject.variant)]
    latency = percentiles(pooled)
    figures = _figures(cells, subject.variant, estimator)
    speedups = tuple(
        Speedup(
            against=other,
            interval=ratio_interval(_figures(cells, other, estimator), figures, confidence=request.options.confidence),
        )
        for other in _compared_with(request, subject)
    )
    against_baseline = next((speedup.interval for speedup in speedups if speedup.against == request.baseline), None)
    flop_yield = None
    if against_baseline is not None and subject.flops_fraction is not None:
        flop_yield = against_baseline.estimate * subject.flops_fraction
    return Row(
        variant=subject.variant,
        engine=request.engine,
        precision=subject.precision,
        batch=batch,
        latency_ns=latency,
        build_medians_ns=tuple(figures),
        distribution_ns=distribution(pooled),
        throughput_per_s=batch / (latency.p50 * 1e-9),
        speedups=speedups,
        flops_fraction=subject.flops_fraction,
        parameters_fraction=subject.parameters_fraction,
        flop_yield=flop_yield,
        accuracy=_accuracy(subject, builds),
        parity_max_error=max(_facts(subject, builds, "parity_max_error"), default=None),
        agreement=min(_facts(subject, builds, "agreement"), default=None),
        census=_census(subject, builds),
        file=subject.onnx_path.name,
        sha256=subject.sha256,
    )


def _compared_with(request: BenchRequest, subject: Subject) -> Iterator[str]:
    variants = [other.variant for other in request.subjects_at(subject.precision)]
    if subject.variant == request.baseline:
        return
    yield request.baseline
    if REDUCED in variants and subject.variant != REDUCED and request.baseline != REDUCED:
        yield REDUCED


def _accuracy(subject: Subject, builds: Sequence[BuildSamples]) -> float | None:
    """Accuracy through the engine where a build measured it, else that of the training side."""
    key = f"{subject.variant}/{subject.precision}"
    if not subject.trained:
        return None
    return next((build.accuracies[key] for build in builds if key in build.accuracies), subject.accuracy)


def _census(subject: Subject, builds: Sequence[BuildSamples]) -> Mapping[str, Any] | None:
    """What the first engine of a subject that could tell says that it computes in."""
    for build in builds:
        for fact in build.engines:
            if (fact["variant"], fact["precision"]) == (subject.variant, subject.precision):
                document: Mapping[str, Any] | None = fact.get("details", {}).get("census")
                if document is not None:
                    return document
    return None


def _facts(subject: Subject, builds: Sequence[BuildSamples], name: str) -> list[float]:
    """One fact of all engines that were built for a subject, where it is known."""
    return [
        float(fact[name])
        for build in builds
        for fact in build.engines
        if (fact["variant"], fact["precision"]) == (subject.variant, subject.precision) and fact.get(name) is not None
    ]


def _claims(request: BenchRequest, rows: Sequence[Row], controls: Sequence[Control]) -> Iterator[JudgedClaim]:
    passed = {(control.precision, control.batch): control.passed for control in controls}
    for row in rows:
        interval = row.speedup_against(request.baseline)
        if interval is None or not request.is_claimed(row.variant):
            continue
        claim = _claimed_speedup(request, row)
        if claim is None:
            continue
        yield JudgedClaim(
            claim=claim,
            variant=row.variant,
            engine=row.engine,
            precision=row.precision,
            batch=row.batch,
            verdict=judge(claim, interval, control_passed=passed[row.precision, row.batch]),
            against=request.baseline,
            asked=request.claim is not None,
            estimate=interval.estimate,
            low=interval.low,
            high=interval.high,
        )


def _claimed_speedup(request: BenchRequest, row: Row) -> float | None:
    if isinstance(request.claim, float | int):
        return float(request.claim)
    return 1 / row.flops_fraction if row.flops_fraction else None


def _protocol(request: BenchRequest, builds: Sequence[BuildSamples]) -> dict[str, Any]:
    """How it was measured: what was asked for, and what each build got."""
    options = asdict(request.options)
    asked = {"builds_asked": options.pop("builds"), "rounds_asked": options.pop("rounds")}
    return {
        **options,
        **asked,
        "builds": len(builds),
        "rounds": [
            {"precision": cell.precision, "batch": cell.batch, "build": build.build, "rounds": len(cell.signals) - 1}
            for build in builds
            for cell in build.cells
        ],
        "seconds": sum(build.seconds for build in builds),
    }


def _notes(request: BenchRequest, builds: Sequence[BuildSamples], controls: Sequence[Control]) -> Iterator[str]:
    asked, measured = request.options.builds, len(builds)
    if measured < asked:
        note = f"only {measured} of {asked} builds fitted into {request.options.max_seconds:g} s"
        if measured < MINIMUM_BUILDS_FOR_AN_INTERVAL:
            note += ": no interval can be given and no claim decided"
        slowest = max(build.minimum_seconds for build in builds)
        yield f"{note}; --max-seconds {slowest * asked * 1.2:.0f} would do for all"
    elif measured < MINIMUM_BUILDS_FOR_AN_INTERVAL:
        yield f"fewer than 3 builds ({measured}) give no interval and decide no claim; ask for at least 3"
    yield from _mixed_precisions(request, builds)
    yield from _unsteady(builds)
    for control in controls:
        if control.passed is False:
            yield (
                f"the A/A control failed at {control.precision}, batch {control.batch}: two copies of "
                f"{request.baseline} differ by {abs(control.interval.estimate - 1):.1%}; its verdicts are INVALID, "
                "measure again on a quieter machine"
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
