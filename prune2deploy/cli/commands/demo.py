"""``p2d demo``."""

import sys

from prune2deploy.cli import options
from prune2deploy.cli.commands.bench import show_measurement
from prune2deploy.cli.commands.prune import show_pruning
from prune2deploy.cli.console import print_line, working
from prune2deploy.pipeline.choices import ENGINES, known
from prune2deploy.pipeline.requests import DemoRequest


def demo(
    engine: options.Engine = "auto",
    threads: options.Threads = None,
    seed: options.Seed = 0,
    resume: options.Resume = False,
    out: options.Out = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Run the whole chain on the bundled digits, in a few minutes and with no download.

    Trains, prunes to 0.33 of the FLOPs, fine-tunes, trains the reduced variant, exports, benchmarks and reports.
    """
    request = DemoRequest(
        engine=known(engine, ENGINES, where="--engine"),
        threads=threads,
        seed=seed,
        resume=resume,
        out=out,
        command=("p2d", *sys.argv[1:]),
    )
    with working(quiet=quiet, verbose=verbose) as progress:
        from prune2deploy.pipeline.demo import run_demo

        outcome = run_demo(request, progress)
    show_pruning(outcome.pruning, progress)
    print_line()
    show_measurement(outcome.bench, progress)
    for file in outcome.report.files:
        print_line(f"report: {file}")
