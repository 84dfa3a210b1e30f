"""What a finished ONNX file has to pass before it gets its name, each run by ONNX Runtime's CPU provider.

It is the engine that runs everywhere. It computes fp16 files in float32 from half weights, tf32 files in float32, and
has no bfloat16 convolution: of bf16 files a float32 copy is run that rounds every result to bfloat16
(``export.widen``). int8 files run as they are.
"""

import math
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from prune2deploy.engines.accuracy import engine_accuracy
from prune2deploy.engines.agreement import check_agreement
from prune2deploy.engines.engine import BuildOptions, BuiltEngine
from prune2deploy.engines.parity import check_parity
from prune2deploy.engines.registry import engine_named
from prune2deploy.engines.tensorrt.check import check_parses
from prune2deploy.errors import EngineError, InputError, ParityError, StorageError
from prune2deploy.evaluation import EvaluationSet
from prune2deploy.export.widen import write_widened
from prune2deploy.pipeline.requests import ExportRequest
from prune2deploy.progress import Progress
from prune2deploy.run import OnnxRecord, RunFolder

GATE_ENGINE = "ort-cpu"
ACCURACY_IMAGES = 1_000
"""Labelled images that accuracy is measured on at most, so that an export stays quick: a point is ten of them."""

LEAST_AGREEMENT = "least_agreement"
"""The check under which a record keeps the share that its int8 file had to reach."""

_BATCH = 16
# What the gate's engine is to take a file for, where that is not what the file is called.
_RUN_AS = {"tf32": "fp32", "bf16": "fp32"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Passed:
    """What was measured of a file that passed: fields of an ``OnnxRecord``."""

    parity_max_error: float
    checks: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The fp32 file of a variant that passed its gate, and its accuracy where that was measured."""

    path: Path
    accuracy: float | None


class Gates:
    """The gates of one export: its limits, and the evaluation set that files are measured on."""

    def __init__(self, run: RunFolder, request: ExportRequest, evaluation: EvaluationSet, progress: Progress) -> None:
        self._run = run
        self._request = request
        self._evaluation = evaluation
        self._progress = progress

    def check(self, path: Path, variant: str, precision: str, source: Source | None) -> Passed:
        """Measure one file. ``source`` is the variant's fp32 file, None where nothing is compared with it.

        Raises:
            ParityError: it computes something else than the model, int8 agrees too little, or accuracy drops too far.
            EngineError: TensorRT's parser was to read it and does not, or is not installed.
        """
        if self._request.check_engine:
            try:
                check_parses(path)
            except EngineError as error:
                # The file has no place of its own yet, so it is called by what it is to be.
                raise EngineError(error.what, where=f"{variant} at {precision}", hint=error.hint) from error
        with opened(path, precision) as built:
            if precision == "int8" and source is not None:
                passed = self._agreement(built, variant, source)
            else:
                passed = Passed(parity_max_error=check_parity(built, self._evaluation, variant, precision=precision))
            accuracy = self._accuracy(built, variant)
        if accuracy is None:
            if self._request.max_drop is not None:
                self._progress.note(f"{variant}: its accuracy is not known, so nothing is held to --max-drop")
            return passed
        if source is not None:
            require_small_drop(self._request, variant, precision, accuracy=accuracy, fp32_accuracy=source.accuracy)
        return replace(passed, checks={"accuracy": accuracy, **passed.checks})

    def _agreement(self, built: BuiltEngine, variant: str, source: Source) -> Passed:
        # Outputs of weights that were never trained are all alike, and which is largest says nothing.
        least = least_agreement(self._run, self._request) if is_trained(self._run, variant) else 0.0
        with opened(source.path, "fp32") as reference:
            found = check_agreement(
                built,
                reference,
                self._evaluation,
                min_agreement=least,
                where=f"{variant} at int8",
                progress=self._progress,
            )
        checks = {} if found.share is None else {"agreement": found.share, LEAST_AGREEMENT: least}
        if math.isfinite(found.sqnr_db):
            checks["sqnr_db"] = found.sqnr_db
        return Passed(parity_max_error=10 ** (-found.sqnr_db / 20), checks=checks)

    def _accuracy(self, built: BuiltEngine, variant: str) -> float | None:
        labels, reference = self._evaluation.labels, self._evaluation.references[variant]
        if labels is None or reference.ndim != 2 or not is_trained(self._run, variant):
            return None
        limited = replace(
            self._evaluation, inputs=self._evaluation.inputs[:ACCURACY_IMAGES], labels=labels[:ACCURACY_IMAGES]
        )
        return engine_accuracy(built, limited, built.inputs[0].shape[0] or _BATCH, progress=self._progress)


@contextmanager
def opened(path: Path, precision: str) -> Iterator[BuiltEngine]:
    """The gate's engine on a file, or on the float32 copy of a bf16 one."""
    with _as_it_runs(path, precision) as file:
        options = BuildOptions(precision=_RUN_AS.get(precision, precision), threads=torch.get_num_threads())
        built = engine_named(GATE_ENGINE).build(file, options)
        try:
            yield built
        finally:
            built.close()


@contextmanager
def _as_it_runs(path: Path, precision: str) -> Iterator[Path]:
    if precision != "bf16":
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="p2d-gate-") as folder:
        copy = Path(folder) / path.name
        try:
            write_widened(path, copy)
        except OSError as error:
            raise StorageError(
                f"a float32 copy for the gate cannot be written to {folder} ({error.strerror or error})",
                where=str(path),
                hint="free some space there, or name another folder in TMPDIR",
            ) from error
        yield copy


def least_agreement(run: RunFolder, request: ExportRequest) -> float:
    """What int8 files of this export have to reach: what the request says, or what earlier ones were accepted at.

    Files that an export does not name are made again where another engine or other passes ask for it, and what their
    user once accepted holds for them.
    """
    if "int8" in request.precisions and not request.as_before:
        return request.min_agreement
    records = (variant.onnx.get("int8") for variant in run.manifest.variants.values())
    accepted = (record.checks.get(LEAST_AGREEMENT) for record in records if record is not None)
    return min((least for least in accepted if least is not None), default=request.min_agreement)


def is_trained(run: RunFolder, variant: str) -> bool:
    """Whether the weights of a variant mean anything, as far as the run knows."""
    return run.manifest.variants[variant].accuracy is not None or run.manifest.data is None


def require_small_drop(
    request: ExportRequest, variant: str, precision: str, *, accuracy: float, fp32_accuracy: float | None
) -> None:
    """Refuse a file that loses more accuracy against fp32 than ``request.max_drop``, in points.

    Raises:
        ParityError: it does.
    """
    if request.max_drop is None or fp32_accuracy is None:
        return
    drop = 100 * (fp32_accuracy - accuracy)
    if drop > request.max_drop:
        raise ParityError(
            f"{precision} loses {drop:.2f} points of accuracy ({accuracy:.2%}, fp32 {fp32_accuracy:.2%}), and "
            f"--max-drop is {request.max_drop:g}",
            where=variant,
            hint="the file was refused; name another precision, or allow more with --max-drop",
        )


def passes_still(run: RunFolder, request: ExportRequest, variant: str, precision: str) -> bool:
    """Whether what was measured of a stored file satisfies the limits of ``request`` too."""
    records: Mapping[str, OnnxRecord] = run.manifest.variants[variant].onnx
    checks, reference = records[precision].checks, records.get("fp32")
    least = least_agreement(run, request)
    if precision == "int8" and is_trained(run, variant) and checks.get("agreement", 1.0) < least:
        return False
    if request.max_drop is None or precision == "fp32" or not is_trained(run, variant):
        return True
    fp32_accuracy = None if reference is None else reference.checks.get("accuracy")
    if fp32_accuracy is None or "accuracy" not in checks:
        return False
    return 100 * (fp32_accuracy - checks["accuracy"]) <= request.max_drop


def still_agree(run: RunFolder, evaluation: EvaluationSet, files: list[tuple[str, str]]) -> bool:
    """Whether stored files, as (variant, precision), compute what ``evaluation`` says; int8 ones only that they run."""
    try:
        for name, precision in files:
            with opened(run.path / run.manifest.variants[name].onnx[precision].file, precision) as built:
                if precision != "int8":
                    check_parity(built, evaluation, name, precision=precision)
    except (InputError, ParityError):
        return False
    return True


def refuse_limits_without_labels(run: RunFolder, request: ExportRequest) -> None:
    """Refuse ``--max-drop`` where there is nothing to measure accuracy on.

    Raises:
        InputError: the run has no data.
    """
    if request.max_drop is not None and run.manifest.data is None and request.data is None:
        raise InputError(
            "accuracy is not known, because the run was made without data",
            where=f"--max-drop {request.max_drop:g}",
            hint="name labelled images with --data, or leave it out",
        )
