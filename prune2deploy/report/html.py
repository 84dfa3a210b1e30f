"""One self-contained HTML page: nothing is fetched, no script runs, the raw data is inside."""

import base64
import json
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from prune2deploy import __version__
from prune2deploy.report.canvas import Plot
from prune2deploy.report.content import ReportContent
from prune2deploy.report.document import report_document
from prune2deploy.report.figures import spell_bytes, spell_moment
from prune2deploy.report.plots import measuring_plots, report_plots
from prune2deploy.report.table import Table
from prune2deploy.report.tables import report_tables
from prune2deploy.report.verdict import summary_of

# In base64 a third more: a page of a few megabytes still opens at once, and can be mailed.
EMBEDDED_SAMPLES_BYTES = 3_000_000

_TEMPLATE = "report.html.j2"
_OPEN_TABLES = (
    "speed",
    "claims",
    "across",
    "controls",
    "variants",
    "latency-family",
    "latency-target",
    "latency-groups",
    "latency-branches",
    "latency-flops",
    "latency-rounds",
    "costs",
    "method",
    "method-rounds",
    "method-reconfigurations",
    "resources",
    "engines",
    "protocol",
    "files",
    "frozen",
)


def html_report(content: ReportContent) -> str:
    """Draw the page."""
    environment = Environment(
        loader=PackageLoader("prune2deploy.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    tables = report_tables(content)
    archive = content.archive
    embedded = archive if archive is not None and len(archive) <= EMBEDDED_SAMPLES_BYTES else None
    return environment.get_template(_TEMPLATE).render(
        kicker=_kicker(content),
        title=content.title,
        summary=summary_of(content),
        plots=[_for_template(plot) for plot in report_plots(content)],
        measuring_plots=[_for_template(plot) for plot in measuring_plots(content)],
        open_tables=[table for table in tables if _is_open(table)],
        folded_tables=[table for table in tables if not _is_open(table)],
        notes=content.notes,
        data=Markup(json_for_script(report_document(content))),
        samples=None if embedded is None else base64.b64encode(embedded).decode("ascii"),
        left_beside="" if archive is None or embedded is not None else spell_bytes(len(archive)),
        version=__version__,
        # What a browser may do with this page: show it. A hostile name that slipped through could load nothing.
        policy="default-src 'none'; style-src 'unsafe-inline'; img-src data:",
    )


def _is_open(table: Table) -> bool:
    """Whether a table is shown at once; there is one of the losses for each setting."""
    return table.key in _OPEN_TABLES or table.key.startswith("where")


def json_for_script(document: dict[str, Any]) -> str:
    """JSON that can stand in a ``<script>`` element: no character in it can end the element or start a tag."""
    text = json.dumps(document, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _kicker(content: ReportContent) -> str:
    """What and when, over the headline."""
    manifest = content.manifest
    measured = None if content.result is None else content.result.environment.get("measured_at")
    when = "" if measured is None else f"measured {spell_moment(measured)}"
    if manifest is None:
        return ", ".join(part for part in (content.title, when) if part)
    data = f" on {manifest.data}" if manifest.data else ""
    return f"{manifest.model}{data}, {when or spell_moment(manifest.created)}"


def _for_template(plot: Plot) -> dict[str, Any]:
    return {"title": plot.title, "description": plot.description, "key": plot.key, "svg": Markup(plot.svg)}
