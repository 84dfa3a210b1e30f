"""``p2d report``."""

from pathlib import Path
from typing import Annotated

import typer

from prune2deploy.cli import options
from prune2deploy.cli.console import print_line, working
from prune2deploy.pipeline.requests import ReportRequest


def report(
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN|RESULT",
            help="A run folder, or what `p2d bench a.onnx b.onnx --out FOLDER` wrote: the folder or its result.json. "
            "Default: the latest run, p2d-runs/latest.",
            show_default=False,
        ),
    ] = None,
    out: options.Out = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Write the report of a run or a result: a self-contained HTML page, Markdown, JSON, JUnit XML, CSV of all runs."""
    request = ReportRequest(run=run, out=out)
    with working(quiet=quiet, verbose=verbose) as progress:
        from prune2deploy.pipeline.report import run_report

        outcome = run_report(request, progress)
    for file in outcome.files:
        print_line(str(file))
