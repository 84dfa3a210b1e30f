"""``report.json``: the run, the measurements and what was concluded, for programs."""

from dataclasses import asdict
from typing import Any

from prune2deploy.report.content import ReportContent
from prune2deploy.report.verdict import summary_of

SCHEMA_VERSION = 1


def report_document(content: ReportContent) -> dict[str, Any]:
    """Everything the report says, as a JSON object. ``run`` is null without a run, ``result`` before a benchmark."""
    summary = summary_of(content)
    return {
        "schema_version": SCHEMA_VERSION,
        "summary": {**asdict(summary), "verdict": None if summary.verdict is None else summary.verdict.value},
        "run": None if content.manifest is None else content.manifest.to_document(),
        "result": None if content.result is None else content.result.to_document(),
    }
