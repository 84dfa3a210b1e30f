"""Writing a report: the only place here that touches the disk."""

from pathlib import Path

from prune2deploy.progress import SILENT, Progress
from prune2deploy.report.content import ReportContent
from prune2deploy.report.document import report_document
from prune2deploy.report.html import html_report
from prune2deploy.report.junit import junit_report
from prune2deploy.report.markdown import markdown_report
from prune2deploy.report.samples_csv import write_samples_csv
from prune2deploy.storage import write_json, write_text

HTML_FILE = "report.html"
MARKDOWN_FILE = "report.md"
JSON_FILE = "report.json"
JUNIT_FILE = "junit.xml"
CSV_FILE = "samples.csv.gz"


def write_report(content: ReportContent, folder: Path, *, progress: Progress = SILENT) -> list[Path]:
    """Write the page, Markdown, JSON, JUnit XML and, where there are raw samples, CSV; return the paths, page first.

    Raises:
        StorageError: a file cannot be written.
    """
    with progress.task("Report", total=5) as task:
        page, markdown, junit = html_report(content), markdown_report(content), junit_report(content)
        task.advance()
        write_text(folder / HTML_FILE, page)
        task.advance()
        write_text(folder / MARKDOWN_FILE, markdown)
        write_json(folder / JSON_FILE, report_document(content))
        task.advance()
        write_text(folder / JUNIT_FILE, junit)
        task.advance()
        written = [folder / name for name in (HTML_FILE, MARKDOWN_FILE, JSON_FILE, JUNIT_FILE)]
        if content.result is not None and content.result.samples:
            write_samples_csv(folder / CSV_FILE, content.result.samples)
            written.append(folder / CSV_FILE)
        else:
            # One of an earlier report would tell of other runs than this page.
            (folder / CSV_FILE).unlink(missing_ok=True)
        task.advance()
    return written
