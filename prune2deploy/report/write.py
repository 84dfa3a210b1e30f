"""Writing a run's report: the only place here that touches the disk."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prune2deploy.progress import SILENT, Progress
from prune2deploy.report.content import ReportContent
from prune2deploy.report.document import report_document
from prune2deploy.report.html import html_report
from prune2deploy.report.junit import junit_report
from prune2deploy.report.markdown import markdown_report
from prune2deploy.run import RunFolder
from prune2deploy.storage import write_json, write_text

HTML_FILE = "report.html"
MARKDOWN_FILE = "report.md"
JSON_FILE = "report.json"
JUNIT_FILE = "junit.xml"


def write_report(
    run: RunFolder, result: Mapping[str, Any] | None, *, out: Path | None = None, progress: Progress = SILENT
) -> list[Path]:
    """Write the page, the Markdown, the JSON and the JUnit XML of a run; return their paths, the page first.

    ``result`` is the result document of a benchmark, None where nothing was measured. ``out`` is the folder to write
    to, by default the run's own.

    Raises:
        InputError: the result document is damaged or of another schema version.
        StorageError: a file cannot be written.
    """
    folder = run.report_path if out is None else out
    content = ReportContent.from_documents(run.manifest, result)
    with progress.task("Report", total=4) as task:
        page, markdown = html_report(content), markdown_report(content)
        task.advance()
        write_text(folder / HTML_FILE, page)
        task.advance()
        write_text(folder / MARKDOWN_FILE, markdown)
        write_json(folder / JSON_FILE, report_document(content))
        task.advance()
        write_text(folder / JUNIT_FILE, junit_report(content))
        task.advance()
    return [folder / name for name in (HTML_FILE, MARKDOWN_FILE, JSON_FILE, JUNIT_FILE)]
