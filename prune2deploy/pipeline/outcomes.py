"""What the pipeline hands back: plain records that the command line prints and the Python API returns."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

INSPECTION_SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantRow:
    """One variant: its cost at batch 1, that cost as a share of dense, and top-1 accuracy in [0, 1] (None untested)."""

    name: str
    flops: int
    flops_fraction: float
    parameters: int
    parameters_fraction: float
    accuracy: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOutcome:
    """A trained model and where it lies. ``bundle`` is what ``p2d prune`` takes next.

    ``cost`` is a document of ``training.cost.TrainingCost``.
    """

    run: Path
    bundle: Path
    model: str
    data: str
    epochs: int
    accuracy: float | None
    flops: int
    parameters: int
    cost: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodOutcome:
    """What a method gave that pruned while it trained.

    ``targets`` and ``achieved`` map names of costs ("flops", "parameters", "memory", "latency") to shares of dense.
    ``latency`` is what the manifest keeps of a latency target, None without one.
    ``costs`` are documents of ``training.cost.TrainingCost`` by variant. ``shortfall`` says that nothing was removed or
    that a target was not reached, None where all is well, and ``hint`` what to do then.
    """

    run: Path
    bundle: Path
    model: str
    data: str
    method: str
    alignment: int
    targets: Mapping[str, float]
    achieved: Mapping[str, float]
    variants: tuple[VariantRow, ...]
    latency: Mapping[str, Any] | None = None
    costs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    shortfall: str | None = None
    hint: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneOutcome:
    """What a pruning gave. ``accuracies`` are those of ``pruned`` by moment, in the order they were taken.

    ``targets`` and ``achieved`` map names of costs ("flops", "parameters", "memory", "latency") to shares of dense.
    ``latency`` is what the manifest keeps of a latency target, None without one. ``family`` has what it keeps of each
    network of a family that was cut to several, by variant; ``targets`` and ``achieved`` are then empty.
    ``costs`` are documents of ``training.cost.TrainingCost``, by variant that was trained. ``shortfall`` says that a
    target was missed by a run that is kept, None where all is well.
    """

    run: Path
    model: str
    method: str
    alignment: int
    targets: Mapping[str, float]
    achieved: Mapping[str, float]
    variants: tuple[VariantRow, ...]
    latency: Mapping[str, Any] | None = None
    family: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    accuracies: Mapping[str, float] = field(default_factory=dict)
    costs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    shortfall: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyOutcome:
    """A family that was made: ``variants`` are dense, pruned and the members, in the order of the factors.

    ``costs`` are documents of ``training.cost.TrainingCost``, by member that was trained.
    """

    run: Path
    model: str
    alignment: int
    variants: tuple[VariantRow, ...]
    costs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRow:
    """One width of the network: how many indices and channels it has, and what binds them.

    ``exact`` is False where a norm is taken over the channels; ``stream`` True where a residual addition joins
    producers; ``pruned_width`` is that of the run's pruned variant, None where there is none.
    """

    name: str
    width: int
    channels: int
    exact: bool
    stream: bool
    pruned_width: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenRow:
    """Why ``axes_total`` tensor dimensions cannot be cut: the reason, the ATen operator and the user's line.

    ``place`` is the module path and line where it happens first, ``source`` the line alone, shortened. ``layers`` are
    those that keep their width, ``named`` the same in few words. ``flops`` (batch 1) and ``flops_fraction``, of dense,
    stay because of it alone.
    """

    reason: str
    operator: str
    place: str
    axes_total: int
    source: str = ""
    layers: tuple[str, ...] = ()
    named: str = ""
    flops: int = 0
    flops_fraction: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WidthRow:
    """A width that a layer reads or makes, in channels of all its groups.

    ``below`` and ``above`` are the nearest aligned widths, equal to ``width`` where it is aligned (or never padded);
    ``below`` is None where it would be zero. ``state``: "prunable", "narrow" (prunable, and too narrow to be aligned),
    "fixed", or "activation" where no weight makes it.
    """

    width: int
    below: int | None
    above: int
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PaddedRow:
    """Layers of equal widths of which an engine computes more than they are.

    ``layers`` are their module paths, ``named`` the same in few words. ``flops`` (batch 1) are their own,
    ``flops_lost`` what padding adds, ``share`` that as a share of all that the engine computes of the variant.
    """

    layers: tuple[str, ...]
    named: str
    operator: str
    groups: int
    input: WidthRow
    output: WidthRow
    flops: int
    flops_lost: int
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantAlignment:
    """What padding costs one variant.

    ``padding_share`` is ``flops_lost`` / (``flops`` + ``flops_lost``): of all that is computed, what is for nothing.
    ``layers_total`` counts the layers that cost FLOPs, ``layers_padded`` those of them that lose some; ``rows`` tell of
    these, the costliest first.
    """

    variant: str
    flops: int
    flops_lost: int
    padding_share: float
    layers_total: int
    layers_padded: int
    rows: tuple[PaddedRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignmentReport:
    """How the widths of each variant suit an engine at a precision; ``engine`` is None for any."""

    engine: str | None
    precision: str
    granule: int
    variants: tuple[VariantAlignment, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectOutcome:
    """What a model is. ``alternatives`` are other architectures with the same keys and shapes.

    ``backend`` is how ``p2d prune`` would cut it: ``module`` or ``graph``. ``alignment`` is there where it was asked
    for, by engine or precision.
    """

    model: str
    input_shape: tuple[int, ...]
    flops: int
    parameters: int
    groups: tuple[GroupRow, ...]
    frozen: tuple[FrozenRow, ...]
    backend: str = "module"
    alternatives: tuple[str, ...] = ()
    variants: tuple[VariantRow, ...] = ()
    alignment: AlignmentReport | None = None
    notes: tuple[str, ...] = ()

    def to_document(self) -> dict[str, Any]:
        """As the JSON object of ``p2d inspect --json``."""
        return {"schema_version": INSPECTION_SCHEMA_VERSION, **asdict(self)}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedFile:
    """One ONNX file that passed the parity gate; ``parity_max_error`` is ‖y − ref‖/‖ref‖ at its worst batch.

    ``computes`` is its precision census in words. ``checks`` are those of ``run.OnnxRecord``.
    """

    variant: str
    precision: str
    file: Path
    bytes_total: int
    parity_max_error: float
    computes: str = ""
    checks: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOutcome:
    """The files of an export, and the folder of their run."""

    run: Path
    files: tuple[ExportedFile, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFile:
    """One engine as stored on disk.

    ``computes`` says which precisions its layers compute in, empty where they do not tell. ``reused``: it was there
    already and was left as it is; ``build_seconds`` are those of the build that made it.
    """

    variant: str
    precision: str
    engine: str
    file: Path
    bytes_total: int
    build_seconds: float
    computes: str = ""
    reused: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOutcome:
    """The files of a build, and the folder of their run."""

    run: Path
    files: tuple[EngineFile, ...]
    notes: tuple[str, ...] = ()


class Table(Protocol):
    """A table ready to be shown: rows of text under ``columns``, those numbered in ``numeric`` aligned right."""

    @property
    def title(self) -> str:
        """A line above the table; may be empty."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The headings."""

    @property
    def rows(self) -> tuple[tuple[str, ...], ...]:
        """As many cells each as there are columns."""

    @property
    def numeric(self) -> frozenset[int]:
        """The columns to align right."""

    @property
    def note(self) -> str:
        """A line below the table; may be empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOutcome:
    """A measurement: the result document of ``docs/cli.md``, its tables, and the exit code that its claims ask for.

    ``verdicts`` are sentences, one a claim. ``file`` is where the document was written, None if it was not.
    """

    document: Mapping[str, Any]
    exit_code: int
    tables: tuple[Table, ...] = ()
    verdicts: tuple[str, ...] = ()
    file: Path | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareOutcome:
    """Two measurements against each other: the document of ``docs/cli.md``, its tables, and one sentence a change."""

    document: Mapping[str, Any]
    exit_code: int
    tables: tuple[Table, ...] = ()
    sentences: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportOutcome:
    """The pages of a report, the one to open first at the front. ``run`` is the folder that they tell of."""

    run: Path
    files: tuple[Path, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOutcome:
    """What the demonstration gave: the pruning, the measurement and the report of one run."""

    pruning: PruneOutcome
    bench: BenchOutcome
    report: ReportOutcome


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorOutcome:
    """What this machine can do. ``document`` is the JSON object of ``p2d doctor --json``.

    ``usable`` is whether at least one engine runs; ``advice`` are imperative sentences, the most useful first.
    """

    document: Mapping[str, Any]
    usable: bool
    advice: tuple[str, ...] = ()
