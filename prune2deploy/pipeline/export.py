"""``p2d export``: every variant of a run to ONNX, each behind the parity gate."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from prune2deploy import __version__
from prune2deploy.checkpoint.bundle import LoadedBundle, load_bundle
from prune2deploy.data.load import load_data
from prune2deploy.data.splits import Normalization
from prune2deploy.engines.engine import BuildOptions
from prune2deploy.engines.onnx_file import read_onnx_file
from prune2deploy.engines.parity import check_parity
from prune2deploy.engines.registry import engine_named
from prune2deploy.errors import InputError, ParityError
from prune2deploy.evaluation import EvaluationSet
from prune2deploy.export.evaluation_set import make_evaluation_set
from prune2deploy.export.graph_passes import GraphPasses
from prune2deploy.export.onnx_from_model import export_onnx
from prune2deploy.pipeline.outcomes import ExportedFile, ExportOutcome
from prune2deploy.pipeline.passes import passes_for
from prune2deploy.pipeline.requests import ExportRequest
from prune2deploy.progress import SILENT, Progress
from prune2deploy.run import OnnxRecord, RunFolder

GATE_ENGINE = "ort-cpu"


def run_export(request: ExportRequest, progress: Progress = SILENT) -> ExportOutcome:
    """Export all variants of a run, and write ``evaluation.npz`` beside them; what is current already stays.

    Raises:
        ModelError: a model cannot be exported; the operator or line is named.
        ParityError: a file does not compute what its model computes; it was not written.
        StorageError: a file cannot be written.
    """
    run = RunFolder.open(request.run)
    names = list(run.manifest.variants)
    if not names:
        raise InputError("the run holds no variant yet", where=str(run.path), hint="finish it with --resume")
    bundles = {name: load_bundle(run.bundle_path(name)) for name in names}
    first = bundles[names[0]].manifest
    passes = passes_for(request, first.normalization, run.path)
    # Files of one run share one evaluation set, so those of other precisions follow where the passes change.
    jobs = [(name, precision) for precision in _precisions(run, request.precisions) for name in names]
    current = [
        (name, precision) for name, precision in jobs if _is_current(run, name, precision, bundles[name], passes)
    ]
    evaluation = _stored_evaluation(run, jobs) if current == jobs else None
    if evaluation is not None:
        progress.note("every file is exported already, and still agrees with its model")
        return ExportOutcome(run=run.path, files=tuple(_file_of(run, *job) for job in jobs))
    evaluation = _evaluation_set(run, bundles, passes, progress)
    for name, precision in jobs:
        _export_one(run, name, precision, bundles[name], passes, evaluation, progress)
    evaluation.save(run.evaluation_path)
    return ExportOutcome(run=run.path, files=tuple(_file_of(run, *job) for job in jobs))


def _precisions(run: RunFolder, asked: tuple[str, ...]) -> tuple[str, ...]:
    """What was asked for, and what was exported before."""
    before = (precision for variant in run.manifest.variants.values() for precision in variant.onnx)
    return tuple(dict.fromkeys((*asked, *before)))


def _is_current(run: RunFolder, name: str, precision: str, bundle: LoadedBundle, passes: GraphPasses) -> bool:
    """Whether the file is there as it was written, by this version, from these weights and with these passes."""
    record = run.manifest.variants[name].onnx.get(precision)
    if record is None or not (run.path / record.file).is_file():
        return False
    try:
        file = read_onnx_file(run.path / record.file)
    except InputError:
        return False
    wanted = _metadata(name, precision, bundle, passes)
    return file.sha256 == record.sha256 and wanted.items() <= file.metadata.items()


def _stored_evaluation(run: RunFolder, jobs: list[tuple[str, str]]) -> EvaluationSet | None:
    """The evaluation set beside the files, if they agree with it; None where it has to be made anew."""
    try:
        evaluation = EvaluationSet.load(run.evaluation_path)
        for name, precision in jobs:
            _parity(run.path / run.manifest.variants[name].onnx[precision].file, evaluation, name, precision)
    except (InputError, ParityError):
        return None
    return evaluation


def _parity(path: Path, evaluation: EvaluationSet, name: str, precision: str) -> float:
    built = engine_named(GATE_ENGINE).build(path, BuildOptions(precision=precision))
    try:
        return check_parity(built, evaluation, name, precision=precision)
    finally:
        built.close()


def _file_of(run: RunFolder, name: str, precision: str) -> ExportedFile:
    record = run.manifest.variants[name].onnx[precision]
    return ExportedFile(
        variant=name,
        precision=precision,
        file=run.path / record.file,
        bytes_total=record.bytes_total,
        parity_max_error=record.parity_max_error,
    )


def _export_one(
    run: RunFolder,
    name: str,
    precision: str,
    bundle: LoadedBundle,
    passes: GraphPasses,
    evaluation: EvaluationSet,
    progress: Progress,
) -> None:
    exported = export_onnx(
        bundle.model,
        run.onnx_path(name, precision),
        input_shape=bundle.manifest.input_shape,
        passes=passes,
        metadata=_metadata(name, precision, bundle, passes),
        gate=lambda path: _parity(path, evaluation, name, precision),
        progress=progress,
    )
    if exported.unfolded_batch_norms:
        progress.note(f"{name}: {len(exported.unfolded_batch_norms)} batch norms could not be folded into convolutions")
    record = OnnxRecord(
        file=str(exported.path.relative_to(run.path)),
        sha256=exported.sha256,
        bytes_total=exported.bytes_total,
        parity_max_error=exported.parity_max_error or 0.0,
    )
    variant = run.manifest.variants[name]
    run.save_variant(replace(variant, onnx={**variant.onnx, precision: record}))


def _metadata(name: str, precision: str, bundle: LoadedBundle, passes: GraphPasses) -> Mapping[str, str]:
    return {
        "p2d_version": __version__,
        "variant": name,
        "precision": precision,
        "model": bundle.manifest.model,
        "weights_sha256": bundle.manifest.weights_sha256,
        "plan_sha256": _plan_digest(bundle),
        "normalize": json.dumps(passes.normalize),
        "softmax": json.dumps(passes.softmax),
        "class_names": json.dumps(bundle.manifest.class_names),
    }


def _plan_digest(bundle: LoadedBundle) -> str:
    """What was cut, in one digest; empty for a dense model."""
    plan = bundle.manifest.plan
    return "" if plan is None else hashlib.sha256(json.dumps(plan.to_document(), sort_keys=True).encode()).hexdigest()


def _evaluation_set(
    run: RunFolder, bundles: Mapping[str, LoadedBundle], passes: GraphPasses, progress: Progress
) -> EvaluationSet:
    manifest = run.manifest
    dataset = None
    if manifest.data is not None:
        first = next(iter(bundles.values())).manifest
        channels, height, width = manifest.input_shape
        constants = first.normalization
        dataset = load_data(
            manifest.data,
            input_shape=(channels, height, width),
            normalization=None if constants is None else Normalization(mean=constants[0], std=constants[1]),
            progress=progress,
        ).evaluation
    return make_evaluation_set(
        {name: bundle.model for name, bundle in bundles.items()},
        dataset,
        input_shape=manifest.input_shape,
        seed=manifest.seed,
        passes=passes,
        progress=progress,
    )
