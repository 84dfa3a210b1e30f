"""``p2d export``: every variant of a run to ONNX at each precision, each behind its gates."""

import hashlib
import importlib.metadata
import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from prune2deploy import __version__
from prune2deploy.checkpoint.bundle import LoadedBundle, load_bundle
from prune2deploy.data.load import load_data
from prune2deploy.data.splits import Normalization
from prune2deploy.engines.census import file_census
from prune2deploy.engines.onnx_file import read_onnx_file
from prune2deploy.engines.tensorrt.check import check_parses, installed_parser
from prune2deploy.errors import EngineError, InputError, P2DError, ParityError
from prune2deploy.evaluation import EvaluationSet
from prune2deploy.export.evaluation_set import make_evaluation_set
from prune2deploy.export.external_data import data_path
from prune2deploy.export.int8.from_onnx import export_int8
from prune2deploy.export.onnx_from_model import ExportedFile as WrittenFile
from prune2deploy.export.onnx_from_model import export_onnx
from prune2deploy.export.passes.graph import GraphPasses
from prune2deploy.pipeline.calibration import calibration_images
from prune2deploy.pipeline.choices import PRECISIONS
from prune2deploy.pipeline.file_settings import FileSettings, settings_for
from prune2deploy.pipeline.gates import (
    Gates,
    Passed,
    Source,
    passes_still,
    refuse_limits_without_labels,
    still_agree,
)
from prune2deploy.pipeline.outcomes import ExportedFile, ExportOutcome
from prune2deploy.pipeline.passes import passes_for
from prune2deploy.pipeline.places import settled_data
from prune2deploy.pipeline.requests import ExportRequest
from prune2deploy.progress import SILENT, Progress
from prune2deploy.run import OnnxRecord, RunFolder

Job = tuple[str, str]
"""A variant and a precision: one file."""

_BASE = "fp32"
_FOR_TENSORRT = (
    "int8 files are quantised as TensorRT wants them; on a CPU ONNX Runtime runs most of them slower than fp32: for it "
    "export with --engine ort-cpu"
)


def run_export(request: ExportRequest, progress: Progress = SILENT) -> ExportOutcome:
    """Export all variants of a run, and write ``evaluation.npz`` beside them; what is current already stays.

    A file that fails its gate is not written; the others are, and then the first failure is raised.

    Raises:
        InputError: an option asks for what the run cannot give: int8 or ``max_drop`` without data, say.
        ModelError: a model cannot be exported; the operator or line is named.
        ParityError: a file does not compute what its model computes, or too much is lost with its precision.
        EngineError: TensorRT's parser was to read the files, and refuses one or is not installed.
        StorageError: a file cannot be written.
    """
    run = RunFolder.open(request.run)
    names = list(run.manifest.variants)
    if not names:
        raise InputError("the run holds no variant yet", where=str(run.path), hint="finish it with --resume")
    refuse_limits_without_labels(run, request)
    if request.check_engine:
        installed_parser()
    bundles = {name: load_bundle(run.bundle_path(name)) for name in names}
    passes = passes_for(request, bundles[names[0]].manifest.normalization, run.path)
    precisions = _precisions(run, request.precisions)
    settings = {precision: settings_for(run, request, precision, passes) for precision in precisions}
    jobs = [(name, precision) for precision in precisions for name in names]
    metadata = {job: _metadata(job, bundles[job[0]], settings[job[1]]) for job in jobs}
    current = [job for job in jobs if _is_current(run, job, metadata[job]) and passes_still(run, request, *job)]
    # All files of a run share one evaluation set, so without one that suits them none is current.
    evaluation = _stored_evaluation(run, names, current)
    missing = [job for job in jobs if evaluation is None or job not in current]
    if request.check_engine:
        for name, precision in (job for job in jobs if job not in missing):
            check_parses(run.path / run.manifest.variants[name].onnx[precision].file)
    if not missing:
        progress.note("every file is exported already, and still agrees with its model")
        return _outcome(run, jobs)
    images = None
    if any(precision == "int8" for _, precision in missing):
        asked = replace(request, calibration_images=settings["int8"].calibration_images)
        images = calibration_images(run, asked, passes, progress)
        if "int8" in request.precisions and request.engine is None:
            progress.note(_FOR_TENSORRT)
    stored = evaluation
    evaluation = stored or _evaluation_set(run, request, bundles, passes, progress)
    gates = Gates(run, request, evaluation, progress)
    with tempfile.TemporaryDirectory(prefix="p2d-export-") as scratch:
        exporting = _Exporting(
            run, request, bundles=bundles, settings=settings, metadata=metadata, missing=missing, gates=gates,
            images=images, scratch=Path(scratch), progress=progress,
        )  # fmt: skip
        failures = exporting.run_all()
    if evaluation is not stored:
        evaluation.save(run.evaluation_path)
    for failure in failures[1:]:
        progress.note(str(failure))
    if failures:
        raise failures[0]
    return _outcome(run, jobs)


class _Exporting:
    """One pass over the files that are missing."""

    def __init__(
        self,
        run: RunFolder,
        request: ExportRequest,
        *,
        bundles: Mapping[str, LoadedBundle],
        settings: Mapping[str, FileSettings],
        metadata: Mapping[Job, Mapping[str, str]],
        missing: list[Job],
        gates: Gates,
        images: NDArray[Any] | None,
        scratch: Path,
        progress: Progress,
    ) -> None:
        self._run, self._request = run, request
        self._bundles, self._settings, self._metadata = bundles, settings, metadata
        self._missing, self._gates, self._images = missing, gates, images
        self._scratch, self._progress = scratch, progress
        self._sources: dict[str, Source] = {}

    def run_all(self) -> list[P2DError]:
        """Export what is missing, fp32 first; returns what was refused, in this order."""
        failures: list[P2DError] = []
        without_base: set[str] = set()
        for name, precision in self._missing:
            if name in without_base and self._needs_source(precision):
                continue
            try:
                self._export(name, precision)
            except (ParityError, EngineError) as error:
                failures.append(error)
                self._forget_outdated(name, precision)
                if precision == _BASE:
                    without_base.add(name)
        return failures

    def _export(self, name: str, precision: str) -> None:
        path = self._run.onnx_path(name, precision)
        source = self._source(name) if self._needs_source(precision) else None
        written, passed = self._written(path, name, precision, source)
        if written.unfolded_batch_norms:
            self._progress.note(
                f"{name}: {len(written.unfolded_batch_norms)} batch norms could not be folded into convolutions"
            )
        if written.float32_layers:
            self._progress.note(
                f"{name}: {len(written.float32_layers)} layers of the {precision} file compute in float32, as the "
                f"model's code asks ({written.float32_layers[0]})"
            )
        record = OnnxRecord(
            file=str(path.relative_to(self._run.path)),
            sha256=written.sha256,
            bytes_total=written.bytes_total,
            parity_max_error=passed.parity_max_error,
            checks=passed.checks,
        )
        variant = self._run.manifest.variants[name]
        self._run.save_variant(replace(variant, onnx={**variant.onnx, precision: record}))

    def _written(self, path: Path, name: str, precision: str, source: Source | None) -> tuple[WrittenFile, Passed]:
        """Write one file behind its gate."""
        passed: list[Passed] = []

        def gate(file: Path) -> float:
            passed.append(self._gates.check(file, name, precision, source))
            return passed[-1].parity_max_error

        settings, metadata = self._settings.get(precision), self._metadata.get((name, precision), {})
        if precision == "int8" and source is not None and settings is not None and self._images is not None:
            written = export_int8(
                source.path,
                path,
                self._images,
                settings.quantization,
                external_data=settings.external_data,
                metadata=metadata,
                gate=gate,
                progress=self._progress,
            )
        else:
            bundle = self._bundles[name]
            written = export_onnx(
                bundle.model,
                path,
                input_shape=bundle.manifest.input_shape,
                precision=precision,
                io_precision=settings.io_precision if settings is not None else "fp32",
                passes=self._passes,
                external_data=settings.external_data if settings is not None else False,
                metadata=metadata,
                gate=gate,
                progress=self._progress,
            )
        return written, passed[-1]

    @property
    def _passes(self) -> GraphPasses:
        return next(iter(self._settings.values())).passes

    def _needs_source(self, precision: str) -> bool:
        """Whether a file is made from the fp32 one, or compared with it."""
        return precision == "int8" or (precision != _BASE and self._request.max_drop is not None)

    def _source(self, name: str) -> Source:
        """The fp32 file of a variant: the run's own, or one for this export alone."""
        if _BASE in self._settings:
            record = self._run.manifest.variants[name].onnx[_BASE]
            return Source(path=self._run.path / record.file, accuracy=record.checks.get("accuracy"))
        if name not in self._sources:
            path = self._scratch / f"{name}.onnx"
            _, passed = self._written(path, name, _BASE, None)
            self._sources[name] = Source(path=path, accuracy=passed.checks.get("accuracy"))
        return self._sources[name]

    def _forget_outdated(self, name: str, precision: str) -> None:
        """Remove an earlier file that the evaluation set does not suit any more, since no other takes its place."""
        variant = self._run.manifest.variants[name]
        record = variant.onnx.get(precision)
        if record is None:
            return
        path = self._run.path / record.file
        try:
            told = read_onnx_file(path).metadata
        except InputError:
            told = {}
        if self._passes.to_metadata().items() <= told.items():
            return
        kept = {other: file for other, file in variant.onnx.items() if other != precision}
        self._run.save_variant(replace(variant, onnx=kept))
        path.unlink(missing_ok=True)
        data_path(path).unlink(missing_ok=True)


def _precisions(run: RunFolder, asked: tuple[str, ...]) -> tuple[str, ...]:
    """What was asked for and what was exported before, fp32 first."""
    before = {precision for variant in run.manifest.variants.values() for precision in variant.onnx}
    return tuple(precision for precision in PRECISIONS if precision in before.union(asked))


def _is_current(run: RunFolder, job: Job, wanted: Mapping[str, str]) -> bool:
    """Whether the file is there as it was written, by these versions, from these weights and with these settings."""
    name, precision = job
    record = run.manifest.variants[name].onnx.get(precision)
    if record is None or not (run.path / record.file).is_file():
        return False
    try:
        file = read_onnx_file(run.path / record.file)
    except InputError:
        return False
    return file.sha256 == record.sha256 and wanted.items() <= file.metadata.items()


def _stored_evaluation(run: RunFolder, names: list[str], current: list[Job]) -> EvaluationSet | None:
    """The evaluation set beside the current files, if they agree with it; None where it has to be made anew."""
    if not current:
        return None
    try:
        evaluation = EvaluationSet.load(run.evaluation_path)
    except InputError:
        return None
    known = set(names) <= set(evaluation.references)
    return evaluation if known and still_agree(run, evaluation, current) else None


def _outcome(run: RunFolder, jobs: list[Job]) -> ExportOutcome:
    return ExportOutcome(run=run.path, files=tuple(_file_of(run, *job) for job in jobs))


def _file_of(run: RunFolder, name: str, precision: str) -> ExportedFile:
    record = run.manifest.variants[name].onnx[precision]
    return ExportedFile(
        variant=name,
        precision=precision,
        file=run.path / record.file,
        bytes_total=record.bytes_total,
        parity_max_error=record.parity_max_error,
        computes=file_census(run.path / record.file).in_words(),
        checks=record.checks,
    )


def _metadata(job: Job, bundle: LoadedBundle, settings: FileSettings) -> Mapping[str, str]:
    name, precision = job
    packages = ("onnx", "torch")
    versions = {package: importlib.metadata.version(package) for package in packages}
    return {
        "p2d_version": __version__,
        "versions": json.dumps(versions),
        "variant": name,
        "precision": precision,
        "model": bundle.manifest.model,
        "weights_sha256": bundle.manifest.weights_sha256,
        "plan_sha256": _plan_digest(bundle),
        **settings.to_metadata(),
        "class_names": json.dumps(bundle.manifest.class_names),
    }


def _plan_digest(bundle: LoadedBundle) -> str:
    """What was cut, in one digest; empty for a dense model."""
    plan = bundle.manifest.plan
    return "" if plan is None else hashlib.sha256(json.dumps(plan.to_document(), sort_keys=True).encode()).hexdigest()


def _evaluation_set(
    run: RunFolder,
    request: ExportRequest,
    bundles: Mapping[str, LoadedBundle],
    passes: GraphPasses,
    progress: Progress,
) -> EvaluationSet:
    """On the run's own data; on what ``--data`` names where the run was made without."""
    manifest = run.manifest
    named = manifest.data or (settled_data(request.data) if request.data else None)
    splits = None
    if named is not None:
        first = next(iter(bundles.values())).manifest
        channels, height, width = manifest.input_shape
        constants = first.normalization
        splits = load_data(
            named,
            input_shape=(channels, height, width),
            normalization=None if constants is None else Normalization(mean=constants[0], std=constants[1]),
            progress=progress,
        )
    made = make_evaluation_set(
        {name: bundle.model for name, bundle in bundles.items()},
        None if splits is None else splits.evaluation,
        input_shape=manifest.input_shape,
        seed=manifest.seed,
        passes=passes,
        progress=progress,
    )
    class_count = next(iter(bundles.values())).manifest.class_count
    # Labels of other classes than the network's say nothing of its accuracy; its images are real all the same.
    foreign = manifest.data is None and splits is not None and class_count not in (None, len(splits.class_names))
    return replace(made, labels=None) if foreign else made
