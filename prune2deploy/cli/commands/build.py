"""``p2d build``."""

from typing import Annotated

import typer

from prune2deploy.cli import options, values
from prune2deploy.cli.console import print_line, print_notes, print_table, working
from prune2deploy.cli.tables import engines_table
from prune2deploy.pipeline.choices import ENGINES, PRECISIONS, known
from prune2deploy.pipeline.requests import BuildRequest

_TENSORRT = "TensorRT"


def build(
    run: options.RunArgument = None,
    engine: options.Engine = "auto",
    precision: options.Precision = "fp32",
    batch: Annotated[
        str,
        typer.Option(
            "--batch",
            metavar="N,LEAST:BEST:MOST",
            rich_help_panel="Engine and measuring",
            help="Batch sizes, comma-separated: each gets kernels of its own; 1:8:32 takes all from 1 to 32, best 8.",
        ),
    ] = "1,32",
    threads: options.Threads = None,
    workspace: Annotated[
        str | None,
        typer.Option(
            "--workspace",
            metavar="SIZE",
            rich_help_panel=_TENSORRT,
            help="Scratch memory that a kernel may take, such as 512MiB or 2GiB. Default: all there is.",
        ),
    ] = None,
    optimization_level: Annotated[
        int | None,
        typer.Option(
            "--optimization-level",
            min=0,
            max=5,
            metavar="0-5",
            rich_help_panel=_TENSORRT,
            help="How long to search for kernels; 3 unless said otherwise. trt-rtx takes it and builds the same.",
        ),
    ] = None,
    compute_capability: Annotated[
        str | None,
        typer.Option(
            "--compute-capability",
            metavar="X.Y,X.Y",
            rich_help_panel=_TENSORRT,
            help="GPU generations to build for, such as 8.6,8.9 (trt-rtx). Default: 8.0 and later.",
        ),
    ] = None,
    hardware_compatible: Annotated[
        bool,
        typer.Option(
            "--hardware-compatible",
            rich_help_panel=_TENSORRT,
            help="An engine for all GPUs from compute capability 8.0 on (trt); it may be slower.",
        ),
    ] = False,
    version_compatible: Annotated[
        bool,
        typer.Option(
            "--version-compatible",
            rich_help_panel=_TENSORRT,
            help="An engine for later versions of TensorRT too, of the same major version (trt).",
        ),
    ] = False,
    strip_weights: Annotated[
        bool,
        typer.Option(
            "--strip-weights",
            rich_help_panel=_TENSORRT,
            help="Leave out the weights, to be filled in from the ONNX file when it is loaded. Needs a GPU.",
        ),
    ] = False,
    no_timing_cache: Annotated[
        bool,
        typer.Option(
            "--no-timing-cache",
            rich_help_panel=_TENSORRT,
            help="Measure all kernels anew, and keep nothing of it in the user's cache folder (trt).",
        ),
    ] = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Build engines from the ONNX files and store them, without timing them.

    TensorRT for RTX builds on machines with no GPU. What is built already is left as it is.
    """
    batches, ranges = values.batches("--batch", batch)
    request = BuildRequest(
        run=run,
        engine=known(engine, ENGINES, where="--engine"),
        precisions=values.names("--precision", precision, PRECISIONS),
        batches=batches,
        ranges=ranges,
        threads=threads,
        workspace_bytes=values.byte_size("--workspace", workspace),
        optimization_level=optimization_level,
        timing_cache=not no_timing_cache,
        hardware_compatible=hardware_compatible,
        version_compatible=version_compatible,
        strip_weights=strip_weights,
        compute_capabilities=values.compute_capabilities("--compute-capability", compute_capability),
    )
    with working(quiet=quiet, verbose=verbose) as progress:
        from prune2deploy.pipeline.build import run_build

        outcome = run_build(request, progress)
    print_table(engines_table(outcome.files))
    print_notes(outcome.notes, after=progress)
    print_line(f"run: {outcome.run}")
