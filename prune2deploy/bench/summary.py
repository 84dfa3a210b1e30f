"""From the raw samples of all builds to rows, intervals, controls and verdicts. Pure: no clock, no disk."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from prune2deploy.bench.aside.attribution import with_attributions
from prune2deploy.bench.aside.energy import energy_found
from prune2deploy.bench.aside.profiling import profile_found
from prune2deploy.bench.claims.judging import judge_claims
from prune2deploy.bench.notes import notes_on
from prune2deploy.bench.result import BenchResult, Control, Row, Speedup
from prune2deploy.bench.samples import COPY, DEVICE, BuildSamples
from prune2deploy.bench.statistics.figures import latencies_ns, percentiles_of, throughput_per_s
from prune2deploy.bench.statistics.intervals import (
    CONTROL_CONFIDENCE,
    control_passes,
    distribution,
    percentiles,
    ratio_interval,
)
from prune2deploy.bench.statistics.setting import Setting
from prune2deploy.bench.statistics.stopping import builds_wanted
from prune2deploy.bench.subjects import BenchRequest, Subject


def summarise(request: BenchRequest, builds: Sequence[BuildSamples], *, environment: Mapping[str, Any]) -> BenchResult:
    """Judge what was measured.

    Raises:
        InputError: there is no build, or one lacks a cell of the request.
    """
    rows: list[Row] = []
    controls: list[Control] = []
    for precision in request.precisions:
        for batch in request.batches:
            setting = Setting.of(builds, precision, batch, request.options)
            controls.append(_control(request, setting))
            rows += [_row(request, subject, setting, builds) for subject in request.subjects_at(precision)]
    rows = with_attributions(rows, request.baseline)
    return BenchResult(
        environment=dict(environment),
        protocol=_protocol(request, builds, rows),
        baseline=request.baseline,
        rows=tuple(rows),
        claims=judge_claims(request, rows, controls, builds),
        controls=tuple(controls),
        notes=tuple(notes_on(request, builds, rows, controls)),
        samples=tuple(builds),
    )


def _control(request: BenchRequest, setting: Setting) -> Control:
    first = setting.figures(request.baseline)
    second = setting.figures(request.baseline, copy=1)
    interval = ratio_interval(second, first, confidence=CONTROL_CONFIDENCE)
    return Control(
        engine=request.engine,
        precision=setting.precision,
        batch=setting.batch,
        interval=interval,
        passed=control_passes(interval),
        disturbed=setting.disturbed,
    )


def _row(request: BenchRequest, subject: Subject, setting: Setting, builds: Sequence[BuildSamples]) -> Row:
    pooled = latencies_ns(setting.cells, subject.variant, scenario=setting.scenario)
    speedups = tuple(
        Speedup(against=other, interval=setting.speedup(subject.variant, other, confidence=request.options.confidence))
        for other in request.compared_with(subject)
    )
    against_baseline = next((speedup.interval for speedup in speedups if speedup.against == request.baseline), None)
    flop_yield = None
    if against_baseline is not None and subject.flops_fraction is not None:
        flop_yield = against_baseline.estimate * subject.flops_fraction
    answers = _answers(subject, builds)
    return Row(
        variant=subject.variant,
        engine=request.engine,
        precision=subject.precision,
        batch=setting.batch,
        latency_ns=percentiles(pooled),
        build_medians_ns=setting.figures(subject.variant),
        distribution_ns=distribution(pooled),
        throughput_per_s=throughput_per_s(
            setting.cells, subject.variant, batch=setting.batch, scenario=setting.scenario
        ),
        device_ns=percentiles_of(setting.cells, subject.variant, DEVICE),
        copy_ns=percentiles_of(setting.cells, subject.variant, COPY),
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
        file_bytes=subject.file_bytes,
        memory_bytes=_memory(subject, builds),
        energy_joules=energy_found(builds, subject.variant, subject.precision, setting.batch),
        profile=profile_found(builds, subject.variant, subject.precision, setting.batch),
        correct=answers.count("1") if answers else None,
        evaluated=len(answers) if answers else None,
    )


def _accuracy(subject: Subject, builds: Sequence[BuildSamples]) -> float | None:
    """Accuracy through the engine where a build measured it, else that of the training side."""
    key = f"{subject.variant}/{subject.precision}"
    if not subject.trained:
        return None
    return next((build.accuracies[key] for build in builds if key in build.accuracies), subject.accuracy)


def _answers(subject: Subject, builds: Sequence[BuildSamples]) -> str | None:
    """Which images' labels the engine named, where a build kept it and the weights were trained."""
    key = f"{subject.variant}/{subject.precision}"
    return next((build.answers[key] for build in builds if key in build.answers), None) if subject.trained else None


def _memory(subject: Subject, builds: Sequence[BuildSamples]) -> int | None:
    """The median of the peaks, where memory was measured."""
    key = f"{subject.variant}/{subject.precision}"
    peaks = next((build.memory_bytes[key] for build in builds if key in build.memory_bytes), ())
    return round(median(peaks)) if peaks else None


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


def _protocol(request: BenchRequest, builds: Sequence[BuildSamples], rows: Sequence[Row]) -> dict[str, Any]:
    """How it was measured: what was asked for, and what each build got."""
    options = asdict(request.options)
    widths = [speedup.interval.half_width for row in rows for speedup in row.speedups]
    reached = [width for width in widths if width is not None]
    return {
        **options,
        "builds_asked": options["builds"],
        "rounds_asked": options.pop("rounds"),
        "shapes": {name: list(shape) for name, shape in request.shapes.items()},
        "pilot_builds": None if request.options.half_width is None else min(request.options.builds, len(builds)),
        "builds": len(builds),
        "builds_wanted": builds_wanted(request, builds[: request.options.builds]),
        "half_width_reached": max(reached) if widths and len(reached) == len(widths) else None,
        "rounds": [
            {
                "precision": cell.precision,
                "batch": cell.batch,
                "build": build.build,
                "rounds": cell.rounds,
                "dropped": dict(cell.dropped),
            }
            for build in builds
            for cell in build.cells
        ],
        "seconds": sum(build.seconds for build in builds),
    }
