"""What a command asks of the pipeline: one record a command, values parsed and checked, nothing heavy imported.

None means that the user left the choice to the pipeline, which makes it and says so.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from prune2deploy.errors import InputError
from prune2deploy.pipeline.choices import DEFAULT_RANKING, DEFAULT_VARIANTS
from prune2deploy.pipeline.targets import (
    DEFAULT_SOLVER_SECONDS,
    check_latency,
    check_measured_at,
    check_pareto,
    ranking_for,
)
from prune2deploy.pipeline.targets import LatencyTarget as LatencyTarget
from prune2deploy.pipeline.targets import Targets as Targets

InputShape = tuple[int, int, int]
Claim = float | Literal["flops"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingChoices:
    """What the user fixed of a training recipe; the rest takes the recipe's defaults.

    ``learning_rate`` is the peak after warm-up; ``batch_size`` counts images on one device.
    """

    epochs: int | None = None
    learning_rate: float | None = None
    batch_size: int | None = None
    optimizer: str | None = None
    schedule: str | None = None
    warmup_epochs: int | None = None
    label_smoothing: float | None = None
    weight_decay: float | None = None
    mixed_precision: str | None = None
    ema_decay: float | None = None
    compile: str | None = None
    micro_batches: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodChoices:
    """How a method that prunes while it trains is to do it.

    ``options`` are fields of the method's own options record, the others take its defaults. ``targets`` None: none.
    ``ranking`` None is ``global``. ``alignment`` None takes what ``engine`` and ``precision`` want.
    ``variants`` are those to make; ``dense`` is always there, and trained only where it is among them. ``batch``,
    ``threads`` and ``solver_seconds`` are as in ``PruneRequest``.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    targets: Targets | None = None
    ranking: str | None = None
    scope: str = "all"
    protect: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    exact_only: bool = False
    alignment: int | None = None
    engine: str | None = None
    precision: str | None = None
    variants: tuple[str, ...] = ("pruned",)
    batch: int = 1
    threads: int | None = None
    solver_seconds: float = DEFAULT_SOLVER_SECONDS

    def __post_init__(self) -> None:
        _check_holds_pruned(self.variants)
        if self.targets is not None:
            self.targets.required()
            check_latency(self.targets.latency is not None, self.precision)
        check_measured_at(self.batch, self.threads, self.solver_seconds)

    @property
    def chosen_ranking(self) -> str:
        """How channels compete."""
        return self.ranking or DEFAULT_RANKING


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRequest:
    """``p2d train``: train ``model`` on ``data`` from scratch, in a new run (or the one that ``resume`` continues).

    ``method`` is one of ``choices.TRAINING_METHODS``, ``pruning`` how it is to prune; ``dense`` does not.
    """

    model: str
    data: str = "digits"
    input_shape: InputShape | None = None
    method: str = "dense"
    pruning: MethodChoices = field(default_factory=MethodChoices)
    training: TrainingChoices = field(default_factory=TrainingChoices)
    seed: int = 0
    resume: bool = False
    out: Path | None = None
    command: tuple[str, ...] = ("p2d", "train")


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneRequest:
    """``p2d prune``: cut ``checkpoint`` to ``targets``, fine-tune it and make the comparison variants.

    ``method`` is one of ``choices.PRUNING_METHODS``. ``alignment`` is the granule of channels, None for what
    ``engine`` and ``precision`` want. ``protect`` and ``only`` are shell patterns for names of layers. ``data`` None
    takes what the checkpoint records. With ``cuts`` or ``every_steps`` the fine-tuning itself cuts, so many times or
    every so many steps. ``flop_penalty`` is what the whole of the dense FLOPs is worth in units of the criterion.
    ``distill``: the dense model is the teacher of every variant that is trained.

    Latency is that of ``engine`` (None: the best that runs here) at ``precision`` (None: fp32), of one run of ``batch``
    images with ``threads`` (None: all cores) inside an operator; memory is at ``batch`` and ``precision``. ``ranking``
    None takes what suits the targets, and ``solver_seconds`` bounds each solution of ``optimal``. Each of ``pareto`` is
    a fraction of the dense latency, descending: one network is cut to each, and ``targets`` hold for all of them.
    """

    checkpoint: Path
    targets: Targets
    model: str | None = None
    data: str | None = None
    input_shape: InputShape | None = None
    method: str | None = None
    ranking: str | None = None
    scope: str = "all"
    protect: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    exact_only: bool = False
    backend: str = "auto"
    attention: str = "heads"
    alignment: int | None = None
    engine: str | None = None
    precision: str | None = None
    variants: tuple[str, ...] = DEFAULT_VARIANTS
    training: TrainingChoices = field(default_factory=TrainingChoices)
    cuts: int | None = None
    every_steps: int | None = None
    flop_penalty: float = 0.0
    distill: bool = False
    batch: int = 1
    threads: int | None = None
    solver_seconds: float = DEFAULT_SOLVER_SECONDS
    pareto: tuple[float, ...] = ()
    seed: int = 0
    resume: bool = False
    out: Path | None = None
    trust_pickle: bool = False
    command: tuple[str, ...] = ("p2d", "prune")

    def __post_init__(self) -> None:
        _check_holds_pruned(self.variants)
        if self.pareto:
            check_pareto(self.pareto, self.targets, self.variants)
            if self.cuts is not None or self.every_steps is not None:
                raise InputError(
                    "cuts one network while it trains, and --pareto makes several",
                    where="--cuts" if self.cuts is not None else "--every-steps",
                    hint="leave it out, or prune to one --latency",
                )
        else:
            self.targets.required()
        check_latency(bool(self.pareto) or self.targets.latency is not None, self.precision)
        check_measured_at(self.batch, self.threads, self.solver_seconds)
        if self.cuts is not None and self.every_steps is not None:
            raise InputError("each say when to cut", where="--cuts and --every-steps", hint="pass the one or the other")

    @property
    def chosen_ranking(self) -> str:
        """How channels compete."""
        return self.ranking or ranking_for(needs_units=bool(self.pareto) or self.targets.needs_units)


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyRequest:
    """``p2d family``: the pruned widths of ``run`` (None: the latest) times each of ``factors``, as its variants."""

    run: Path | None = None
    factors: tuple[float, ...] = (0.5, 0.75, 1.5)
    resume: bool = False
    command: tuple[str, ...] = ("p2d", "family")


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectRequest:
    """``p2d inspect``: ``subject`` is a checkpoint, a model spec or a run folder; whichever exists, in that order.

    ``engine`` or ``precision`` asks for an alignment report; of the two, None is any engine, or fp32.
    """

    subject: str
    model: str | None = None
    input_shape: InputShape | None = None
    scope: str = "all"
    backend: str = "auto"
    attention: str = "heads"
    engine: str | None = None
    precision: str | None = None
    trust_pickle: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyTableRequest:
    """``p2d latency-table``: fill the table of an engine for ``subject``, as in ``InspectRequest``; None only shows it.

    ``engine`` None is the best one that runs here, and for ``clear``, which drops what is kept before, all.
    ``threads`` None are all cores, ``alignment`` None is what the engine wants. ``export`` is a CSV or JSON file.
    """

    subject: str | None = None
    model: str | None = None
    input_shape: InputShape | None = None
    engine: str | None = None
    precision: str = "fp32"
    batch: int = 1
    threads: int | None = None
    alignment: int | None = None
    export: Path | None = None
    clear: bool = False
    trust_pickle: bool = False

    def __post_init__(self) -> None:
        check_latency(self.subject is not None, self.precision)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRequest:
    """``p2d export``: every variant of ``run`` (None: the latest) to ONNX, at each precision.

    ``input_format`` is one of ``choices.INPUT_FORMATS``; ``source_size`` (height, width) is that of the images that
    the file resizes, None for the network's own. ``batch`` None leaves it free. ``io_precision`` is that of inputs and
    outputs of fp16 and bf16 files, "fp32" or "same". ``engine`` is the one that will run the int8 files, None for any.
    ``data`` None calibrates on the run's own. ``max_drop`` is in points of top-1 accuracy against fp32,
    ``min_agreement`` the share of images on which int8 must name the class that fp32 names; with ``as_before`` what the
    int8 files of the run were accepted at.
    """

    run: Path | None = None
    precisions: tuple[str, ...] = ("fp32",)
    normalize: bool = False
    softmax: bool = False
    top_k: int | None = None
    input_format: str = "nchw"
    source_size: tuple[int, int] | None = None
    batch: int | None = None
    external_data: bool = False
    io_precision: str = "fp32"
    engine: str | None = None
    data: str | None = None
    calibration: str = "minmax"
    calibration_images: int = 256
    quantize_ends: bool = True
    max_drop: float | None = None
    min_agreement: float = 0.99
    check_engine: bool = False
    as_before: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRequest:
    """``p2d build``: engine files for the ONNX files of ``run``.

    ``batches`` are the sizes that must run, each with kernels of its own; ``ranges`` (smallest, best, largest) take all
    that lie within. The rest are the fields of ``engines.engine.TensorRTOptions``.
    """

    run: Path | None = None
    engine: str = "auto"
    precisions: tuple[str, ...] = ("fp32",)
    batches: tuple[int, ...] = (1, 32)
    ranges: tuple[tuple[int, int, int], ...] = ()
    threads: int | None = None
    workspace_bytes: int | None = None
    optimization_level: int | None = None
    timing_cache: bool = True
    hardware_compatible: bool = False
    version_compatible: bool = False
    strip_weights: bool = False
    compute_capabilities: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchRequest:
    """``p2d bench``: time the variants of ``run``, or the files of ``onnx_files``, of which the first is the base.

    ``precisions`` None is fp32 for a run, and for each file its own; tf32 has to be asked for.
    ``claim`` is a speed-up over dense to be judged, or "flops" for the one that the FLOPs imply; ``claims`` is a file
    of many claims. ``max_seconds`` bounds the whole measurement. ``builds`` None lets a pilot decide how many bring
    every interval to ``half_width``; a number is measured as it is. ``scenario`` None is the closed loop over
    ``batches``, of which None are 1 and 32, or what the files are fixed to. ``shapes`` are whole shapes of inputs by
    name, for files that leave more than the batch free. ``profile``, ``energy`` and ``memory`` ask for what is measured
    aside. ``baseline`` is an earlier result to compare with; a speed-up that shrank by more than
    ``baseline_tolerance`` is one that became slower.
    """

    run: Path | None = None
    onnx_files: tuple[Path, ...] = ()
    engine: str = "auto"
    precisions: tuple[str, ...] | None = None
    batches: tuple[int, ...] | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    threads: int | None = None
    builds: int | None = None
    half_width: float = 0.02
    max_seconds: float | None = None
    claim: Claim | None = None
    claims: Path | None = None
    scenario: str | None = None
    profile: bool = False
    energy: bool = False
    memory: bool = False
    baseline: Path | None = None
    baseline_tolerance: float = 0.01
    seed: int = 0
    out: Path | None = None
    command: tuple[str, ...] = ("p2d", "bench")

    def __post_init__(self) -> None:
        check_tolerance("--baseline-tolerance", self.baseline_tolerance)
        if self.shapes and not self.onnx_files:
            raise InputError(
                "is for ONNX files that are named, and a run has its own shapes", where="--shape", hint="leave it out"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareRequest:
    """``p2d compare``: the result ``after`` against the result ``before``; each a document or the folder of one.

    ``tolerance`` is the relative change up to which two speed-ups count as the same.
    """

    before: Path
    after: Path
    tolerance: float = 0.01

    def __post_init__(self) -> None:
        check_tolerance("--tolerance", self.tolerance)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportRequest:
    """``p2d report``: the pages of ``run``, written to ``out`` (None: the ``report`` folder in it).

    ``run`` is a run folder, or a result document or its folder; None is the latest run.
    """

    run: Path | None = None
    out: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoRequest:
    """``p2d demo``: the whole chain on the bundled digits."""

    engine: str = "auto"
    threads: int | None = None
    seed: int = 0
    resume: bool = False
    out: Path | None = None
    command: tuple[str, ...] = ("p2d", "demo")


def check_tolerance(option: str, value: float) -> float:
    """``value`` itself, if it is a relative change that can be tolerated: 0 or more, and less than 1.

    Raises:
        InputError: it is not.
    """
    if not 0 <= value < 1:
        raise InputError("is no tolerance", where=f"{option} {value:g}", hint=f"pass a share such as {option} 0.02")
    return value


def _check_holds_pruned(variants: tuple[str, ...]) -> None:
    if "pruned" not in variants:
        raise InputError(
            "leaves out the variant that pruning makes",
            where=f"--variants {','.join(variants)}",
            hint="add pruned to the list",
        )
