"""From rows and raw samples to verdicts: for each kind of claim the figure, its interval and what may be missing."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from prune2deploy.bench.aside.energy import energies_found
from prune2deploy.bench.claims.kinds import (
    ACCURACY,
    ACCURACY_DROP,
    ENERGY,
    KINDS,
    LATENCY,
    MEMORY,
    SIZE,
    SIZE_FRACTION,
    SPEEDUP,
    THROUGHPUT,
    YIELD,
    Claim,
)
from prune2deploy.bench.claims.targets import Target, targets_of
from prune2deploy.bench.claims.verdicts import JudgedClaim, Verdict, judge, reason_for
from prune2deploy.bench.result import Control, Row
from prune2deploy.bench.samples import BuildSamples
from prune2deploy.bench.statistics.figures import latencies_ns, throughput_per_s
from prune2deploy.bench.statistics.intervals import MINIMUM_SAMPLES_P90, MINIMUM_SAMPLES_P99, Interval, ratio_interval
from prune2deploy.bench.statistics.proportions import difference_interval, share_interval
from prune2deploy.bench.statistics.setting import Setting
from prune2deploy.bench.subjects import BenchRequest, Subject

_RUNS_FOR_PERCENTILE = {50: 1, 90: MINIMUM_SAMPLES_P90, 99: MINIMUM_SAMPLES_P99}
_TOO_FEW_BUILDS = "too few builds were measured for an interval"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """A figure with its interval, in the unit of its kind. ``missing`` says why there is no interval, or no figure."""

    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    missing: str | None = None
    exact: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What all builds of a request measured."""

    request: BenchRequest
    rows: Sequence[Row]
    controls: Sequence[Control]
    builds: Sequence[BuildSamples]

    @property
    def confidence(self) -> float:
        """That of all intervals."""
        return self.request.options.confidence

    def setting(self, target: Target) -> Setting:
        """The cells of a target's precision and batch size."""
        return Setting.of(self.builds, target.subject.precision, self._batch(target), self.request.options)

    def row(self, target: Target) -> Row:
        """The row of a target: of claims without a batch size the first."""
        wanted = (target.subject.variant, target.subject.precision, self._batch(target))
        return next(row for row in self.rows if (row.variant, row.precision, row.batch) == wanted)

    def control(self, target: Target) -> Control:
        """The A/A control of a target's precision and batch size."""
        wanted = (target.subject.precision, self._batch(target))
        return next(control for control in self.controls if (control.precision, control.batch) == wanted)

    def answers(self, subject: Subject) -> str | None:
        """One character an image, in their order: 1 where the engine named its label. None where none were kept."""
        key = f"{subject.variant}/{subject.precision}"
        return next((build.answers[key] for build in self.builds if key in build.answers), None)

    def memory_bytes(self, subject: Subject) -> tuple[int, ...]:
        """The peaks of its processes; empty where memory was not measured."""
        key = f"{subject.variant}/{subject.precision}"
        return next((build.memory_bytes[key] for build in self.builds if key in build.memory_bytes), ())

    def _batch(self, target: Target) -> int:
        return target.batch if target.batch is not None else self.request.batches[0]


def judge_claims(
    request: BenchRequest, rows: Sequence[Row], controls: Sequence[Control], builds: Sequence[BuildSamples]
) -> tuple[JudgedClaim, ...]:
    """Judge what was claimed with ``--claim`` and then with ``--claims``.

    Where nothing was claimed, the speed-up that the FLOPs imply is judged all the same, and changes no exit code.
    """
    measured = Measured(request=request, rows=rows, controls=controls, builds=builds)
    judged = list(_single_claim(measured))
    for claim in request.claims:
        judged += [_judged(claim, target, measured, asked=True) for target in targets_of(claim, request)]
    return tuple(judged)


def _single_claim(measured: Measured) -> Iterator[JudgedClaim]:
    request = measured.request
    if request.claim is None and request.claims:
        return
    claim = Claim(kind=SPEEDUP, bound="flops" if request.claim is None else request.claim, where="--claim")
    for target in targets_of(claim, request):
        if not request.is_claimed(target.subject.variant):
            continue
        if claim.bound != "flops" or target.subject.flops_fraction:
            yield _judged(claim, target, measured, asked=request.claim is not None)


def _judged(claim: Claim, target: Target, measured: Measured, *, asked: bool) -> JudgedClaim:
    kind = KINDS[claim.kind]
    bound = 1 / (target.subject.flops_fraction or 1.0) if claim.bound == "flops" else float(claim.bound)
    evidence = _EVIDENCE[claim.kind](claim, target, measured)
    control = measured.control(target) if kind.timed else None
    verdict = judge(bound, evidence, control_passed=None if control is None else control.valid, at_least=kind.at_least)
    return JudgedClaim(
        claim=bound,
        variant=target.subject.variant,
        engine=measured.request.engine,
        precision=target.subject.precision,
        batch=target.batch,
        verdict=verdict,
        against=None if target.against is None else target.against.variant,
        asked=asked,
        estimate=evidence.estimate,
        low=evidence.low,
        high=evidence.high,
        kind=kind.key,
        unit=kind.unit,
        at_least=kind.at_least,
        percentile=claim.percentile if kind.key == LATENCY else None,
        against_precision=None if target.against is None else target.against.precision,
        confidence=None if evidence.exact or evidence.low is None else measured.confidence,
        name=claim.name,
        reason=_reason(verdict, evidence, control, at_least=kind.at_least),
    )


def _reason(verdict: Verdict, evidence: Evidence, control: Control | None, *, at_least: bool) -> str:
    if verdict is Verdict.INVALID and control is not None and control.disturbed is not None:
        return f"{control.disturbed}, so this measurement proves nothing"
    if verdict is Verdict.UNDECIDED and evidence.missing is not None:
        return evidence.missing
    return reason_for(verdict, at_least=at_least, exact=evidence.exact)


def mean_evidence(figures: Sequence[float], *, confidence: float, pilot: int | None = None, missing: str) -> Evidence:
    """The geometric mean of one figure a repetition, with the t interval of their logarithms.

    ``missing`` says what is wrong with fewer than three. Shape: (repetitions,).
    """
    if not figures:
        return Evidence(missing=missing)
    interval = ratio_interval(figures, [1.0] * len(figures), confidence=confidence, pilot=pilot)
    return _of_interval(interval, missing=missing)


def _of_interval(interval: Interval, *, factor: float = 1.0, missing: str = _TOO_FEW_BUILDS) -> Evidence:
    if interval.low is None or interval.high is None:
        return Evidence(estimate=interval.estimate * factor, missing=missing)
    return Evidence(estimate=interval.estimate * factor, low=interval.low * factor, high=interval.high * factor)


def _speedup(claim: Claim, target: Target, measured: Measured) -> Evidence:
    if target.against is None:
        return Evidence(missing="there is nothing to compare with")
    interval = measured.setting(target).speedup(
        target.subject.variant, target.against.variant, confidence=measured.confidence
    )
    return _of_interval(interval)


def _yield(claim: Claim, target: Target, measured: Measured) -> Evidence:
    interval = measured.row(target).speedup_against(measured.request.baseline)
    if interval is None or target.subject.flops_fraction is None:
        return Evidence(missing="it is the ratio of a speed-up to FLOPs removed, and one of them is not known")
    return _of_interval(interval, factor=target.subject.flops_fraction)


def _latency(claim: Claim, target: Target, measured: Measured) -> Evidence:
    setting, percentile = measured.setting(target), claim.percentile
    runs = [latencies_ns([cell], target.subject.variant, scenario=setting.scenario) for cell in setting.cells]
    needed = _RUNS_FOR_PERCENTILE[percentile]
    fewest = min(map(len, runs), default=0)
    if fewest < needed:
        pooled = [run for build in runs for run in build]
        return Evidence(
            estimate=float(np.percentile(pooled, percentile)) / 1e6 if len(pooled) >= needed else None,
            missing=f"percentile {percentile} needs {needed} runs in every build, and one has only {fewest}",
        )
    figures = [float(median(build) if percentile == 50 else np.percentile(build, percentile)) / 1e6 for build in runs]
    return mean_evidence(figures, confidence=measured.confidence, pilot=setting.pilot, missing=_TOO_FEW_BUILDS)


def _throughput(claim: Claim, target: Target, measured: Measured) -> Evidence:
    setting = measured.setting(target)
    figures = [
        throughput_per_s([cell], target.subject.variant, batch=setting.batch, scenario=setting.scenario)
        for cell in setting.cells
    ]
    return mean_evidence(figures, confidence=measured.confidence, pilot=setting.pilot, missing=_TOO_FEW_BUILDS)


def _accuracy(claim: Claim, target: Target, measured: Measured) -> Evidence:
    answers = measured.answers(target.subject)
    if not answers:
        return Evidence(missing="no accuracy was measured through the engine")
    right = answers.count("1")
    low, high = share_interval(right, len(answers), confidence=measured.confidence)
    return Evidence(estimate=right / len(answers), low=low, high=high)


def _accuracy_drop(claim: Claim, target: Target, measured: Measured) -> Evidence:
    answers = measured.answers(target.subject)
    others = None if target.against is None else measured.answers(target.against)
    if not answers or not others or len(answers) != len(others):
        return Evidence(missing="no accuracy was measured through the engine on the same images")
    lost = sum(pair == ("1", "0") for pair in zip(others, answers, strict=True))
    won = sum(pair == ("0", "1") for pair in zip(others, answers, strict=True))
    low, high = difference_interval(lost, won, len(answers), confidence=measured.confidence)
    return Evidence(estimate=100 * (lost - won) / len(answers), low=100 * low, high=100 * high)


def _size(claim: Claim, target: Target, measured: Measured) -> Evidence:
    return _exactly(None if target.subject.file_bytes is None else target.subject.file_bytes / 1e6)


def _size_fraction(claim: Claim, target: Target, measured: Measured) -> Evidence:
    size = target.subject.file_bytes
    other = None if target.against is None else target.against.file_bytes
    return _exactly(size / other if size is not None and other else None)


def _exactly(figure: float | None) -> Evidence:
    if figure is None:
        return Evidence(missing="the size of a file is not known")
    return Evidence(estimate=figure, low=figure, high=figure, exact=True)


def _memory(claim: Claim, target: Target, measured: Measured) -> Evidence:
    figures = [count / 1e6 for count in measured.memory_bytes(target.subject)]
    missing = "its memory was not measured" if not figures else "too few processes were measured for an interval"
    return mean_evidence(figures, confidence=measured.confidence, missing=missing)


def _energy(claim: Claim, target: Target, measured: Measured) -> Evidence:
    row = measured.row(target)
    joules = energies_found(measured.builds, row.variant, row.precision, row.batch)
    missing = "no energy was counted" if not joules else "energy was measured in too few builds for an interval"
    return mean_evidence([joule * 1e3 for joule in joules], confidence=measured.confidence, missing=missing)


_EVIDENCE: Mapping[str, Callable[[Claim, Target, Measured], Evidence]] = {
    SPEEDUP: _speedup,
    LATENCY: _latency,
    THROUGHPUT: _throughput,
    YIELD: _yield,
    ACCURACY: _accuracy,
    ACCURACY_DROP: _accuracy_drop,
    SIZE: _size,
    SIZE_FRACTION: _size_fraction,
    MEMORY: _memory,
    ENERGY: _energy,
}
