"""One self-contained HTML page: nothing is fetched, no script runs, the raw data is inside."""

import json
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from prune2deploy import __version__
from prune2deploy.report.content import ReportContent
from prune2deploy.report.document import report_document
from prune2deploy.report.figures import spell_moment
from prune2deploy.report.markdown import all_notes
from prune2deploy.report.plots import report_plots
from prune2deploy.report.tables import report_tables
from prune2deploy.report.verdict import summary_of

_TEMPLATE = "report.html.j2"
_OPEN_TABLES = (
    "speed",
    "claims",
    "controls",
    "variants",
    "costs",
    "method",
    "method-rounds",
    "method-reconfigurations",
    "engines",
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
    return environment.get_template(_TEMPLATE).render(
        manifest=content.manifest,
        created=spell_moment(content.manifest.created),
        summary=summary_of(content),
        plots=[
            {"title": plot.title, "description": plot.description, "key": plot.key, "svg": Markup(plot.svg)}
            for plot in report_plots(content)
        ],
        open_tables=[table for table in tables if table.key in _OPEN_TABLES],
        folded_tables=[table for table in tables if table.key not in _OPEN_TABLES],
        notes=all_notes(content),
        data=Markup(json_for_script(report_document(content))),
        version=__version__,
        # What a browser may do with this page: show it. A hostile name that slipped through could load nothing.
        policy="default-src 'none'; style-src 'unsafe-inline'; img-src data:",
    )


def json_for_script(document: dict[str, Any]) -> str:
    """JSON that can stand in a ``<script>`` element: no character in it can end the element or start a tag."""
    text = json.dumps(document, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
