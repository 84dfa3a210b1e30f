"""``p2d report``."""

from prune2deploy.cli import options
from prune2deploy.cli.console import print_line, working
from prune2deploy.pipeline.requests import ReportRequest


def report(
    run: options.RunArgument = None,
    out: options.Out = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Write the report of a run: one self-contained HTML page, Markdown, JSON and JUnit XML."""
    request = ReportRequest(run=run, out=out)
    with working(quiet=quiet, verbose=verbose) as progress:
        from prune2deploy.pipeline.report import run_report

        outcome = run_report(request, progress)
    for file in outcome.files:
        print_line(str(file))
