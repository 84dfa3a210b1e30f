"""GitHub-flavoured Markdown, for CI summaries and pull requests."""

import html
import re
from collections.abc import Iterator

from prune2deploy.report.content import ReportContent
from prune2deploy.report.table import Table
from prune2deploy.report.tables import report_tables
from prune2deploy.report.verdict import summary_of

_SPECIAL = re.compile(r"([\\`*_\[\]#|~$])")
_FOLDED = (
    "layers",
    "widths",
    "method-widths",
    "method-epi",
    "history-",
    "environment",
    "provenance",
    "files",
    "disturbed",
    "latency-every",
    "latency-member",
)


def markdown_report(content: ReportContent) -> str:
    """The whole report. Long tables are folded away in ``<details>``."""
    summary = summary_of(content)
    lines = [f"# {escape(content.title)}", ""]
    if summary.verdict is not None:
        lines += [f"{escape(summary.headline)}: **{escape(summary.badge)}**", ""]
    else:
        lines += [escape(summary.headline), ""]
    lines += [f"- {escape(sentence)}" for sentence in summary.sentences]
    for table in report_tables(content):
        lines += ["", *_section(table)]
    if content.notes:
        lines += ["", "## Notes", "", *(f"- {escape(note)}" for note in content.notes)]
    return "\n".join(lines) + "\n"


def markdown_table(table: Table) -> str:
    """One table, without its title."""
    rule = ["---:" if column in table.numeric else "---" for column in range(len(table.columns))]
    return "\n".join([_row(table.columns), _row(rule, raw=True), *(_row(row) for row in table.rows)])


def escape(text: str) -> str:
    """Text that Markdown and HTML show as it stands, on one line."""
    one_line = " ".join(text.split())
    safe = one_line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", safe)


def _section(table: Table) -> Iterator[str]:
    folded = table.key.startswith(_FOLDED)
    if folded:
        # A line of HTML: Markdown leaves it alone, so that its escapes would be shown.
        yield from (f"<details><summary>{html.escape(' '.join(table.title.split()))}</summary>", "")
    else:
        yield from (f"## {escape(table.title)}", "")
    yield markdown_table(table)
    if table.note:
        yield from ("", escape(table.note))
    if folded:
        yield from ("", "</details>")


def _row(cells: tuple[str, ...] | list[str], *, raw: bool = False) -> str:
    return f"| {' | '.join(cell if raw else escape(cell) for cell in cells)} |"
