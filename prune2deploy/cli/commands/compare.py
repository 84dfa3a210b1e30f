"""``p2d compare``."""

from pathlib import Path
from typing import Annotated

import typer

from prune2deploy.cli import options
from prune2deploy.cli.console import print_document, print_line, print_table, working
from prune2deploy.pipeline.requests import CompareRequest


def compare(
    before: Annotated[
        Path, typer.Argument(metavar="BEFORE", help="A result of p2d bench: result.json, its folder, or a run folder.")
    ],
    after: Annotated[Path, typer.Argument(metavar="AFTER", help="The other one, measured on the same machine class.")],
    tolerance: Annotated[
        float,
        typer.Option(
            "--tolerance", metavar="SHARE", help="Relative change up to which two speed-ups count as the same."
        ),
    ] = 0.01,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Compare two measurements of one machine class, as speed-ups against each one's own dense model.

    Leaves with 0 whatever changed, with 12 where one is INVALID. To fail where a speed-up shrank: p2d bench --baseline.
    """
    request = CompareRequest(before=before, after=after, tolerance=tolerance)
    with working(quiet=quiet, verbose=verbose) as progress:
        from prune2deploy.pipeline.compare import run_compare

        outcome = run_compare(request, progress)
    if json:
        print_document(outcome.document)
    else:
        for table in outcome.tables:
            print_table(table)
            print_line()
        for sentence in outcome.sentences:
            print_line(sentence)
    raise typer.Exit(outcome.exit_code)
