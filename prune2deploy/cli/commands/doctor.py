"""``p2d doctor``."""

import typer

from prune2deploy.cli import options
from prune2deploy.cli.console import print_document, print_line, print_table, working
from prune2deploy.cli.tables import doctor_tables
from prune2deploy.errors import EngineError


def doctor(
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Show which engines, devices and versions are usable here, and what to install for the rest.

    Leaves with 0 where an engine runs, else with 5, so that it serves as a health check.
    """
    with working(quiet=quiet, verbose=verbose) as progress:
        from prune2deploy.pipeline.doctor import run_doctor

        outcome = run_doctor(progress)
    if json:
        print_document(outcome.document)
    else:
        for table in doctor_tables(outcome.document):
            print_table(table)
            print_line()
        for advice in outcome.advice:
            print_line(f"- {advice}")
    if not outcome.usable:
        raise typer.Exit(EngineError.exit_code)
