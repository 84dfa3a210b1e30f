"""``p2d family``."""

import sys
from typing import Annotated

import typer

from prune2deploy.cli import options, values
from prune2deploy.cli.console import print_costs, print_line, print_notes, print_table, working
from prune2deploy.cli.tables import variants_table
from prune2deploy.pipeline.requests import FamilyRequest


def family(
    run: options.RunArgument = None,
    factors: Annotated[
        str,
        typer.Option(
            "--factors",
            metavar="X,X",
            help="What the pruned widths are multiplied by, comma-separated, such as 0.5,0.75,1.5.",
        ),
    ] = "0.5,0.75,1.5",
    resume: options.Resume = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Make a family of networks from one pruning.

    The pruned profile of widths times each factor, trained from scratch; new variants of the same run.
    """
    request = FamilyRequest(
        run=run,
        factors=values.factors("--factors", factors),
        resume=resume,
        command=("p2d", *sys.argv[1:]),
    )
    with working(quiet=quiet, verbose=verbose) as progress:
        from prune2deploy.pipeline.family import run_family

        outcome = run_family(request, progress)
    print_line(f"{outcome.model}, granule {outcome.alignment}")
    print_table(variants_table(outcome.variants))
    print_costs(outcome.costs)
    print_notes(outcome.notes, after=progress)
    print_line(f"run: {outcome.run}")
    print_line("next: p2d export, then p2d bench")
