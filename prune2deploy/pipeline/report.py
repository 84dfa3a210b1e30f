"""``p2d report``: what people and CI systems read of a run."""

from prune2deploy.bench.result import RESULT_FILE
from prune2deploy.pipeline.outcomes import ReportOutcome
from prune2deploy.pipeline.requests import ReportRequest
from prune2deploy.progress import SILENT, Progress
from prune2deploy.report.write import write_report
from prune2deploy.run import RunFolder
from prune2deploy.storage import read_json


def run_report(request: ReportRequest, progress: Progress = SILENT) -> ReportOutcome:
    """Write the page, Markdown, JSON and JUnit XML of a run. Without a measurement they say so.

    Raises:
        InputError: there is no such run, or its result is damaged.
        StorageError: a file cannot be written.
    """
    run = RunFolder.open(request.run)
    result_path = run.bench_path / RESULT_FILE
    result = read_json(result_path, hint="run `p2d bench` again") if result_path.is_file() else None
    if result is None:
        progress.note("nothing was measured yet, so the report has no speeds: run `p2d bench`")
    files = write_report(run, result, out=request.out, progress=progress)
    return ReportOutcome(run=run.path, files=tuple(files))
