"""What is to be measured, and how: the values that a benchmark is asked for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from prune2deploy.bench.claims.kinds import Claim
from prune2deploy.errors import InputError

DENSE = "dense"
REDUCED = "reduced"
PRUNED = "pruned"

MINIMUM_BUILDS_FOR_AN_INTERVAL = 3

BATCHES, SINGLE_STREAM, OFFLINE = "batches", "single-stream", "offline"
SCENARIOS = {
    BATCHES: "closed loop over the batch sizes, judged by medians",
    SINGLE_STREAM: "one input at a time, judged by the 90th percentile (MLPerf)",
    OFFLINE: "all inputs at once, judged by throughput (MLPerf)",
}
DEFAULT_BATCHES = {BATCHES: (1, 32), SINGLE_STREAM: (1,), OFFLINE: (32,)}


def require_batches(scenario: str, batches: tuple[int, ...]) -> None:
    """Refuse batch sizes that a scenario does not have.

    Raises:
        InputError: more than one input for single-stream.
    """
    if scenario == SINGLE_STREAM and batches != (1,):
        raise InputError(
            f"single-stream sends one input at a time, not {max(batches)}",
            where="--batch",
            hint="leave it out, or measure without --scenario",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One ONNX file to time.

    ``bundle`` is what it was exported from, None where that is not known: the torch engines run that. ``agreement`` is
    how often an int8 file named the class that fp32 names when it was exported, in [0, 1].
    ``flops_fraction`` and ``parameters_fraction`` are relative to the dense model, None where unknown (a bare ONNX
    file). ``accuracy`` is that of the training side; an accuracy measured through the engine takes its place,
    unless the weights were never ``trained``: then it is None, whatever they happen to get right. ``file_bytes`` is the
    file with its external data.
    """

    variant: str
    precision: str
    onnx_path: Path
    sha256: str
    flops_fraction: float | None = None
    parameters_fraction: float | None = None
    accuracy: float | None = None
    trained: bool = True
    bundle: Path | None = None
    agreement: float | None = None
    file_bytes: int | None = None

    def to_document(self) -> dict[str, Any]:
        """As a JSON object, for the worker."""
        return {
            "variant": self.variant,
            "precision": self.precision,
            "onnx_path": str(self.onnx_path),
            "sha256": self.sha256,
            "flops_fraction": self.flops_fraction,
            "parameters_fraction": self.parameters_fraction,
            "accuracy": self.accuracy,
            "trained": self.trained,
            "bundle": None if self.bundle is None else str(self.bundle),
            "agreement": self.agreement,
            "file_bytes": self.file_bytes,
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "Subject":
        """From the JSON object that ``to_document`` made."""
        bundle = document["bundle"]
        return cls(
            **{
                **document,
                "onnx_path": Path(document["onnx_path"]),
                "bundle": None if bundle is None else Path(bundle),
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """How long and how carefully to measure.

    ``builds`` fresh processes are measured one after the other; in each, up to ``rounds`` rounds run every variant
    for one block of about ``block_seconds``. With a ``half_width`` (0.02 is 2%) those builds are a pilot, which decides
    how many there must be, ``max_builds`` at most, for the interval of every speed-up to be that narrow.
    ``max_seconds`` bounds the whole measurement: first rounds are given up, then builds. ``threads`` are CPU threads
    inside one operator, pinned to as many CPUs. ``scenario`` is one of ``SCENARIOS``. ``profile``, ``energy`` and
    ``memory`` ask for what is measured aside, never inside a timed round. ``granules`` are the widths that the engine
    likes multiples of, by precision: what a profile calls misaligned.
    """

    threads: int = 1
    builds: int = 5
    rounds: int = 12
    block_seconds: float = 0.05
    max_seconds: float | None = None
    seed: int = 0
    confidence: float = 0.95
    half_width: float | None = None
    max_builds: int = 100
    scenario: str = BATCHES
    profile: bool = False
    energy: bool = False
    memory: bool = False
    granules: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("threads", "builds", "rounds"):
            if getattr(self, name) < 1:
                raise InputError(f"must be at least 1, not {getattr(self, name)}", where=f"--{name}")
        if self.block_seconds <= 0:
            raise InputError(f"must be above 0, not {self.block_seconds:g}", where="block_seconds")
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise InputError(f"must be above 0, not {self.max_seconds:g}", where="--max-seconds")
        if not 0 < self.confidence < 1:
            raise InputError(f"must lie between 0 and 1, not {self.confidence:g}", where="confidence")
        if self.half_width is not None and not 0 < self.half_width < 1:
            raise InputError(f"must lie between 0 and 1, not {self.half_width:g}", where="--half-width")
        if self.scenario not in SCENARIOS:
            raise InputError(
                f"{self.scenario!r} is no scenario", where="--scenario", hint=f"choose from {', '.join(SCENARIOS)}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchRequest:
    """A whole benchmark on one engine.

    ``claim`` is a speed-up against the baseline that every pruned row must reach, ``"flops"`` for the one that its
    FLOPs imply, None for none (the implied one is then judged all the same, without consequence). ``claims`` are those
    of a ``claims.toml``; ``claimed.require_measured`` holds them against the rest. ``evaluation`` is an
    ``evaluation.npz`` for parity, accuracy and real inputs. ``shapes`` are the whole shapes of inputs by name, batch
    included, where the files leave more than the batch free; there is then one batch size.
    """

    subjects: tuple[Subject, ...]
    engine: str
    batches: tuple[int, ...] = (1,)
    evaluation: Path | None = None
    claim: float | Literal["flops"] | None = None
    claims: tuple[Claim, ...] = ()
    options: BenchOptions = field(default_factory=BenchOptions)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.subjects:
            raise InputError("there is nothing to measure", hint="name a run folder or ONNX files")
        keys = [(subject.variant, subject.precision) for subject in self.subjects]
        if len(set(keys)) != len(keys):
            raise InputError("two files carry the same variant and precision", hint="give them distinct names")
        if not self.batches or min(self.batches) < 1 or len(set(self.batches)) != len(self.batches):
            raise InputError("batch sizes must be distinct and at least 1", where="--batch")
        require_batches(self.options.scenario, self.batches)
        if self.shapes and len(self.batches) > 1:
            raise InputError("a shape has one batch size", where="--shape", hint="measure one shape at a time")
        if isinstance(self.claim, float | int) and not self.claim > 0:
            raise InputError(f"a speed-up must be above 0, not {self.claim:g}", where="--claim")
        if self.claim == "flops" and not any(
            self.is_claimed(subject.variant) and subject.flops_fraction for subject in self.subjects
        ):
            raise InputError(
                "the FLOPs of these files are not known", where="--claim flops", hint="state a number, as --claim 2.5"
            )
        for precision in self.precisions:
            if self.baseline not in {subject.variant for subject in self.subjects_at(precision)}:
                raise InputError(
                    f"there is no {self.baseline} file of {precision} to compare with",
                    where=f"--precision {precision}",
                    hint="files are compared within a precision: measure those of each by themselves",
                )

    @property
    def precisions(self) -> tuple[str, ...]:
        """Precisions in order of first appearance."""
        return tuple(dict.fromkeys(subject.precision for subject in self.subjects))

    @property
    def baseline(self) -> str:
        """The variant that all others are compared with, and that is timed twice: ``dense``, else the first."""
        variants = [subject.variant for subject in self.subjects]
        return DENSE if DENSE in variants else variants[0]

    def subjects_at(self, precision: str) -> tuple[Subject, ...]:
        """The subjects of one precision, which are timed together."""
        return tuple(subject for subject in self.subjects if subject.precision == precision)

    def compared_with(self, subject: Subject) -> tuple[str, ...]:
        """The variants that a subject's speed is compared with: the baseline, and ``reduced`` where there is one."""
        if subject.variant == self.baseline:
            return ()
        others = [self.baseline]
        if subject.variant != REDUCED != self.baseline:
            others += [other.variant for other in self.subjects_at(subject.precision) if other.variant == REDUCED]
        return tuple(others)

    def is_claimed(self, variant: str) -> bool:
        """Whether claims are about this variant: ``pruned``, or in its absence all but the baseline and ``reduced``."""
        if any(subject.variant == PRUNED for subject in self.subjects):
            return variant == PRUNED
        return variant not in (self.baseline, REDUCED)
