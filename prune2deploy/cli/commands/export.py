"""``p2d export``."""

from typing import Annotated

import typer

from prune2deploy.cli import options, values
from prune2deploy.cli.console import print_line, print_notes, print_table, working
from prune2deploy.cli.tables import exported_table
from prune2deploy.pipeline.choices import PRECISIONS
from prune2deploy.pipeline.requests import ExportRequest


def export(
    run: options.RunArgument = None,
    precision: options.Precision = "fp32",
    normalize: Annotated[
        bool,
        typer.Option("--normalize", help="Build the data's normalisation into the graph: inputs are images in [0, 1]."),
    ] = False,
    softmax: Annotated[
        bool, typer.Option("--softmax", help="End the graph with a softmax: outputs are probabilities.")
    ] = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Export every variant to ONNX.

    Each file passes the parity gate against the PyTorch model on real inputs, or is not written.
    """
    request = ExportRequest(
        run=run,
        precisions=values.names("--precision", precision, PRECISIONS),
        normalize=normalize,
        softmax=softmax,
    )
    with working(quiet=quiet, verbose=verbose) as progress:
        from prune2deploy.pipeline.export import run_export

        outcome = run_export(request, progress)
    print_table(exported_table(outcome.files))
    print_notes(outcome.notes, after=progress)
    print_line(f"run: {outcome.run}")
    print_line("next: p2d bench")
