"""What a claim is about: the files and batch sizes of a measurement, and what must be known of them beforehand."""

from dataclasses import dataclass

from prune2deploy.bench.claims.kinds import ACCURACY, ACCURACY_DROP, ENERGY, KINDS, MEMORY, SPEEDUP, YIELD, Claim
from prune2deploy.bench.subjects import BenchRequest, Subject
from prune2deploy.errors import InputError
from prune2deploy.evaluation import EvaluationSet


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One file that a claim is about, at one batch size (None where it has none), and what it is held against."""

    subject: Subject
    batch: int | None
    against: Subject | None


def targets_of(claim: Claim, request: BenchRequest) -> tuple[Target, ...]:
    """Everything measured that a claim is about, in the order in which it is measured."""
    kind = KINDS[claim.kind]
    batches = tuple(batch for batch in request.batches if claim.batch in (None, batch)) if kind.of_batch else (None,)
    found = []
    for subject in _subjects_of(claim, request):
        against = _against(claim, request, subject) if kind.relative else None
        if not kind.relative or against is not None:
            found += [Target(subject=subject, batch=batch, against=against) for batch in batches]
    return tuple(found)


def require_measured(request: BenchRequest, *, device: str) -> None:
    """Refuse claims that this measurement could say nothing about, before anything is built.

    ``device`` is what the engine runs on, as its ``Availability`` says it.

    Raises:
        InputError: a claim names what is not measured, compares a file with itself, or needs FLOPs, labels, trained
            weights or an energy counter that are not there.
    """
    if request.claim is not None and not any(request.is_claimed(subject.variant) for subject in request.subjects):
        raise InputError(
            f"there is nothing to compare {request.baseline} with",
            where=f"--claim {request.claim}",
            hint="measure a pruned variant or a second file",
        )
    for claim in request.claims:
        _require_names(claim, request)
        targets = targets_of(claim, request)
        if not targets:
            raise InputError(
                "nothing that is measured is claimed",
                where=claim.where,
                hint="name another variant, or measure more than the one that it is compared with",
            )
        _require_facts(claim, request, targets)
        if claim.kind == ENERGY and device.startswith("CPU"):
            raise InputError(
                f"{request.engine} runs on the CPU, whose energy is not counted",
                where=f"{claim.where}, {ENERGY}",
                hint="measure on a GPU, or leave this claim out",
            )


def memory_subjects(request: BenchRequest) -> tuple[Subject, ...]:
    """The subjects whose memory is to be measured: all if that was asked for, else those of which it is claimed."""
    if request.options.memory:
        return request.subjects
    claims = [claim for claim in request.claims if claim.kind == MEMORY]
    claimed = [target.subject for claim in claims for target in targets_of(claim, request)]
    return tuple(subject for subject in request.subjects if subject in claimed)


def _subjects_of(claim: Claim, request: BenchRequest) -> list[Subject]:
    """Those named; without a name those that ``--claim`` asks, and where that is none (one file alone) all."""
    fitting = [subject for subject in request.subjects if claim.precision in (None, subject.precision)]
    if claim.variant is not None:
        return [subject for subject in fitting if subject.variant == claim.variant]
    asked = [subject for subject in fitting if request.is_claimed(subject.variant)]
    return asked or fitting


def _against(claim: Claim, request: BenchRequest, subject: Subject) -> Subject | None:
    """What a subject is held against; None where that is itself, or is not measured."""
    variant, precision = claim.against or request.baseline, claim.against_precision or subject.precision
    for other in request.subjects:
        if (other.variant, other.precision) == (variant, precision) and other is not subject:
            return other
    return None


def _require_names(claim: Claim, request: BenchRequest) -> None:
    variants = tuple(dict.fromkeys(subject.variant for subject in request.subjects))
    precisions = request.precisions
    named: tuple[tuple[str, object, tuple[object, ...]], ...] = (
        ("variant", claim.variant, variants),
        ("against", claim.against, variants),
        ("precision", claim.precision, precisions),
        ("against_precision", claim.against_precision, precisions),
        ("engine", claim.engine, (request.engine,)),
        ("batch", claim.batch, request.batches),
    )
    for key, value, measured in named:
        if value is not None and value not in measured:
            raise InputError(
                f"{value} is not measured in this run",
                where=f"{claim.where}, {key}",
                hint=f"measured are {', '.join(map(str, measured))}",
            )


def _require_facts(claim: Claim, request: BenchRequest, targets: tuple[Target, ...]) -> None:
    if claim.kind == YIELD or claim.bound == "flops":
        _require_flops(claim, request, targets)
    if claim.kind in (ACCURACY, ACCURACY_DROP):
        _require_labels(claim, request)
        for subject in (one for target in targets for one in (target.subject, target.against) if one is not None):
            if not subject.trained:
                raise InputError(
                    f"{subject.variant} is untrained, and there to be timed only",
                    where=f"{claim.where}, {claim.kind}",
                    hint="name a trained variant",
                )


def _require_flops(claim: Claim, request: BenchRequest, targets: tuple[Target, ...]) -> None:
    where = f"{claim.where}, {claim.kind}"
    unknown = next((target.subject for target in targets if not target.subject.flops_fraction), None)
    if unknown is not None:
        raise InputError(f"the FLOPs of {unknown.variant} are not known", where=where, hint=f"claim {SPEEDUP} = 2.0")
    if any(target.against is not None and target.against.variant != request.baseline for target in targets):
        raise InputError(
            f"FLOPs are known relative to {request.baseline}", where=where, hint="leave against out, or state a number"
        )


def _require_labels(claim: Claim, request: BenchRequest) -> None:
    labels = None if request.evaluation is None else EvaluationSet.load(request.evaluation).labels
    if labels is None or len(labels) == 0:
        raise InputError(
            "there are no labelled images to count with",
            where=f"{claim.where}, {claim.kind}",
            hint="measure a run that was exported with labelled data",
        )
