"""``p2d report``: what people and CI systems read of a run, or of a measurement that belongs to none."""

from dataclasses import replace
from pathlib import Path

from prune2deploy.bench.result import RESULT_FILE, SAMPLES_FILE, read_result, read_samples
from prune2deploy.errors import InputError
from prune2deploy.pipeline.outcomes import ReportOutcome
from prune2deploy.pipeline.requests import ReportRequest
from prune2deploy.progress import SILENT, Progress
from prune2deploy.report.content import ReportContent
from prune2deploy.report.write import write_report
from prune2deploy.run import MANIFEST, RunFolder, RunManifest

_REPORT_FOLDER = "report"


def run_report(request: ReportRequest, progress: Progress = SILENT) -> ReportOutcome:
    """Write the page, Markdown, JSON, JUnit XML and CSV of a run, or of a result by itself.

    Without a measurement those of a run say so.

    Raises:
        InputError: there is no such run or result, or it is damaged.
        StorageError: a file cannot be written.
    """
    alone = None if request.run is None else _result_alone(request.run)
    if alone is not None:
        content = _content(None, alone, progress)
        folder = request.out or alone.parent / _REPORT_FOLDER
        return ReportOutcome(run=alone.parent, files=tuple(write_report(content, folder, progress=progress)))
    run = RunFolder.open(request.run)
    result = run.bench_path / RESULT_FILE
    if result.is_file():
        content = _content(run.manifest, result, progress)
    else:
        progress.note("nothing was measured yet, so the report has no speeds: run `p2d bench`")
        content = ReportContent(manifest=run.manifest, result=None)
    files = write_report(content, request.out or run.report_path, progress=progress)
    return ReportOutcome(run=run.path, files=tuple(files))


def _result_alone(path: Path) -> Path | None:
    """The result document that a path names, which is no run folder; None where it is one."""
    if path.is_file():
        return path
    if (path / MANIFEST).is_file():
        return None
    if (path / RESULT_FILE).is_file():
        return path / RESULT_FILE
    raise InputError(
        f"holds no run ({MANIFEST}) and no result ({RESULT_FILE})" if path.is_dir() else "does not exist",
        where=str(path),
        hint="name a run folder, or the folder or result.json that `p2d bench a.onnx b.onnx --out FOLDER` wrote",
    )


def _content(manifest: RunManifest | None, result: Path, progress: Progress) -> ReportContent:
    """What is to be reported. Samples count only beside a document that has kept its name: they go by names alone."""
    found = read_result(result)
    samples = result.with_name(SAMPLES_FILE)
    if result.name != RESULT_FILE or not samples.is_file():
        progress.note("the raw samples are not beside the result, so the report has none")
        return ReportContent(manifest=manifest, result=found)
    builds = read_samples(samples)
    return ReportContent(manifest=manifest, result=replace(found, samples=builds), archive=samples.read_bytes())
