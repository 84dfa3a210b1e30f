"""``p2d bench``."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from prune2deploy.cli import options, values
from prune2deploy.cli.console import print_document, print_line, print_notes, print_table, working
from prune2deploy.cli.options import listed
from prune2deploy.pipeline.choices import ENGINES, PRECISIONS, SCENARIOS, known
from prune2deploy.pipeline.outcomes import BenchOutcome
from prune2deploy.pipeline.requests import BenchRequest
from prune2deploy.progress import Progress

_PANEL = "Engine and measuring"


def bench(
    subjects: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN|ONNX",
            help="A run folder, or ONNX files, of which the first is the base. Default: the latest run.",
            show_default=False,
        ),
    ] = None,
    engine: options.Engine = "auto",
    precision: Annotated[
        str | None,
        typer.Option(
            "--precision",
            metavar="NAMES",
            rich_help_panel=_PANEL,
            help=listed("Precisions, comma-separated", PRECISIONS)
            + " Default: fp32 for a run, for each ONNX file its own.",
            show_default=False,
        ),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            "--batch",
            metavar="N,N",
            rich_help_panel=_PANEL,
            help="Batch sizes, comma-separated. Default: what the ONNX files or --shape say, else 1,32 "
            "(single-stream: 1, offline: 32).",
            show_default=False,
        ),
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            "--shape",
            metavar="NAME=1x3x224x224",
            rich_help_panel=_PANEL,
            help="Whole shape of an input of the ONNX files, batch included; once for each input that leaves more than "
            "its batch free.",
            show_default=False,
        ),
    ] = None,
    threads: options.Threads = None,
    builds: Annotated[
        int | None,
        typer.Option(
            "--builds",
            min=1,
            metavar="N",
            rich_help_panel=_PANEL,
            help="Engine builds, each in a fresh process; an interval needs at least three. Default: a pilot of five "
            "decides.",
            show_default=False,
        ),
    ] = None,
    half_width: Annotated[
        float,
        typer.Option(
            "--half-width",
            metavar="SHARE",
            rich_help_panel=_PANEL,
            help="How narrow the interval of every speed-up shall be: 0.02 is 2% to either side. Not with --builds.",
        ),
    ] = 0.02,
    max_seconds: Annotated[
        float | None,
        typer.Option("--max-seconds", metavar="S", rich_help_panel=_PANEL, help="Time that the measurement may take."),
    ] = None,
    scenario: Annotated[
        str | None,
        typer.Option(
            "--scenario",
            metavar="NAME",
            rich_help_panel=_PANEL,
            help=listed("Measure as MLPerf does", SCENARIOS)
            + " Default: medians of a closed loop over the batch sizes.",
            show_default=False,
        ),
    ] = None,
    profile: Annotated[
        bool,
        typer.Option("--profile", rich_help_panel=_PANEL, help="Also tell which layers the time goes to."),
    ] = False,
    energy: Annotated[
        bool,
        typer.Option("--energy", rich_help_panel=_PANEL, help="Also measure energy, where the GPU counts it."),
    ] = False,
    memory: Annotated[
        bool,
        typer.Option("--memory", rich_help_panel=_PANEL, help="Also measure the peak memory of each variant."),
    ] = False,
    claim: Annotated[
        str | None,
        typer.Option(
            "--claim",
            metavar="X|flops",
            rich_help_panel=_PANEL,
            help="Judge a speed-up over dense: a factor such as 3.0, or flops for the one that the FLOPs imply. "
            "Sets the exit code: 0 confirmed, 10 refuted, 11 undecided, 12 invalid measurement.",
        ),
    ] = None,
    claims: Annotated[
        Path | None,
        typer.Option(
            "--claims",
            metavar="FILE",
            rich_help_panel=_PANEL,
            help="Judge every claim of a TOML file: speed-up, latency, throughput, accuracy, size, memory, energy.",
        ),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            "--baseline",
            metavar="FILE",
            rich_help_panel=_PANEL,
            help="An earlier result of this machine class: leave with 13 where a speed-up shrank.",
        ),
    ] = None,
    baseline_tolerance: Annotated[
        float,
        typer.Option(
            "--baseline-tolerance",
            metavar="SHARE",
            rich_help_panel=_PANEL,
            help="How much a speed-up may shrink against the --baseline.",
        ),
    ] = 0.01,
    seed: options.Seed = 0,
    out: options.Out = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Time all variants against each other, and judge how much faster pruning made the model.

    Variants run interleaved, over several engine builds in fresh processes; every speed-up comes with an interval.
    """
    run, onnx_files = values.run_or_files(subjects)
    request = BenchRequest(
        run=run,
        onnx_files=onnx_files,
        engine=known(engine, ENGINES, where="--engine"),
        precisions=None if precision is None else values.names("--precision", precision, PRECISIONS),
        batches=None if batch is None else values.counts("--batch", batch),
        shapes=values.shapes("--shape", shape),
        threads=threads,
        builds=builds,
        half_width=values.share_of_one("--half-width", half_width),
        scenario=None if scenario is None else known(scenario, SCENARIOS, where="--scenario"),
        profile=profile,
        energy=energy,
        memory=memory,
        max_seconds=values.rate("--max-seconds", max_seconds, zero=False),
        claim=values.claim("--claim", claim),
        claims=claims,
        baseline=baseline,
        baseline_tolerance=baseline_tolerance,
        seed=seed,
        out=out,
        command=("p2d", *sys.argv[1:]),
    )
    with working(quiet=quiet, verbose=verbose) as progress:
        from prune2deploy.pipeline.bench import run_bench_command

        outcome = run_bench_command(request, progress)
    if json:
        print_document(outcome.document)
    else:
        show_measurement(outcome, progress)
    raise typer.Exit(outcome.exit_code)


def show_measurement(outcome: BenchOutcome, progress: Progress) -> None:
    """Print what a measurement gave: tables, verdicts, remarks."""
    for table in outcome.tables:
        print_table(table)
        print_line()
    for verdict in outcome.verdicts:
        print_line(verdict)
    print_notes(outcome.notes, after=progress)
    if outcome.file is not None:
        print_line(f"result: {outcome.file}")
