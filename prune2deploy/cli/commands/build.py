"""``p2d build``."""

from prune2deploy.cli import options, values
from prune2deploy.cli.console import print_line, print_notes, print_table, working
from prune2deploy.cli.tables import engines_table
from prune2deploy.pipeline.choices import ENGINES, PRECISIONS, known
from prune2deploy.pipeline.requests import BuildRequest


def build(
    run: options.RunArgument = None,
    engine: options.Engine = "auto",
    precision: options.Precision = "fp32",
    batch: options.Batch = "1,32",
    threads: options.Threads = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Build engines from the ONNX files and store them, without timing them.

    TensorRT for RTX builds on machines with no GPU.
    """
    request = BuildRequest(
        run=run,
        engine=known(engine, ENGINES, where="--engine"),
        precisions=values.names("--precision", precision, PRECISIONS),
        batches=values.counts("--batch", batch),
        threads=threads,
    )
    with working(quiet=quiet, verbose=verbose) as progress:
        from prune2deploy.pipeline.build import run_build

        outcome = run_build(request, progress)
    print_table(engines_table(outcome.files))
    print_notes(outcome.notes, after=progress)
    print_line(f"run: {outcome.run}")
