"""``p2d export``."""

from typing import Annotated

import typer

from prune2deploy.cli import options, values
from prune2deploy.cli.console import print_line, print_notes, print_table, working
from prune2deploy.cli.options import listed
from prune2deploy.cli.tables import exported_table
from prune2deploy.pipeline.choices import CALIBRATIONS, ENGINES, INPUT_FORMATS, IO_PRECISIONS, PRECISIONS, known
from prune2deploy.pipeline.requests import ExportRequest

_GRAPH = "Graph"
_PRECISION = "Precision"


def export(
    run: options.RunArgument = None,
    precision: options.Precision = "fp32",
    normalize: Annotated[
        bool,
        typer.Option(
            "--normalize",
            rich_help_panel=_GRAPH,
            help="Build the data's normalisation into the graph: inputs are images in [0, 1].",
        ),
    ] = False,
    input_format: Annotated[
        str,
        typer.Option(
            "--input",
            metavar="FORMAT[@HxW]",
            rich_help_panel=_GRAPH,
            help=listed("What the file takes", INPUT_FORMATS)
            + " uint8-nhwc builds the normalisation in, and with @HxW the resizing of images of that size.",
        ),
    ] = "nchw",
    softmax: Annotated[
        bool,
        typer.Option(
            "--softmax", rich_help_panel=_GRAPH, help="End the graph with a softmax: outputs are probabilities."
        ),
    ] = False,
    top_k: Annotated[
        int | None,
        typer.Option(
            "--top-k", min=1, metavar="K", rich_help_panel=_GRAPH, help="Give the K best classes and their scores only."
        ),
    ] = None,
    batch: Annotated[
        str,
        typer.Option(
            "--batch", metavar="dynamic|N", rich_help_panel=_GRAPH, help="Leave the batch size free, or fix it."
        ),
    ] = "dynamic",
    external_data: Annotated[
        bool,
        typer.Option(
            "--external-data",
            rich_help_panel=_GRAPH,
            help="Keep the weights in a file beside the ONNX file (always done over 2 GB).",
        ),
    ] = False,
    io_precision: Annotated[
        str,
        typer.Option(
            "--io-precision",
            metavar="NAME",
            rich_help_panel=_PRECISION,
            help=listed("Inputs and outputs of fp16 and bf16 files", IO_PRECISIONS),
        ),
    ] = "fp32",
    data: options.Data = None,
    calibration: Annotated[
        str,
        typer.Option(
            "--calibration",
            metavar="NAME",
            rich_help_panel=_PRECISION,
            help=listed("How int8 chooses the range of an activation", CALIBRATIONS),
        ),
    ] = "minmax",
    calibration_images: Annotated[
        int,
        typer.Option(
            "--calibration-images",
            min=1,
            metavar="N",
            rich_help_panel=_PRECISION,
            help="Training images that int8 calibrates on.",
        ),
    ] = 256,
    float_ends: Annotated[
        bool,
        typer.Option(
            "--float-ends", rich_help_panel=_PRECISION, help="Leave the first and the last layer of int8 files fp32."
        ),
    ] = False,
    max_drop: Annotated[
        float | None,
        typer.Option(
            "--max-drop",
            metavar="POINTS",
            rich_help_panel=_PRECISION,
            help="Fail with 4 where a precision loses more points of top-1 accuracy against fp32 than this.",
        ),
    ] = None,
    min_agreement: Annotated[
        float,
        typer.Option(
            "--min-agreement",
            min=0,
            max=1,
            metavar="SHARE",
            rich_help_panel=_PRECISION,
            help="Share of images on which int8 must name the class that fp32 names.",
        ),
    ] = 0.99,
    engine: Annotated[
        str | None,
        typer.Option(
            "--engine",
            metavar="NAME",
            rich_help_panel=_PRECISION,
            help=listed("The engine that int8 files are for, since they quantise differently", ENGINES),
        ),
    ] = None,
    check_engine: Annotated[
        bool,
        typer.Option(
            "--check-engine", help="Let TensorRT's parser read every file, which needs no GPU; 5 where it refuses one."
        ),
    ] = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Export every variant to ONNX.

    Each file passes the parity gate against the PyTorch model on real inputs, or is not written.
    """
    form, source_size = values.input_format("--input", input_format, INPUT_FORMATS)
    request = ExportRequest(
        run=run,
        precisions=values.names("--precision", precision, PRECISIONS),
        normalize=normalize,
        softmax=softmax,
        top_k=top_k,
        input_format=form,
        source_size=source_size,
        batch=values.fixed_batch("--batch", batch),
        external_data=external_data,
        io_precision=known(io_precision, IO_PRECISIONS, where="--io-precision"),
        engine=values.optional_name("--engine", engine, ENGINES),
        data=data,
        calibration=known(calibration, CALIBRATIONS, where="--calibration"),
        calibration_images=calibration_images,
        quantize_ends=not float_ends,
        max_drop=values.rate("--max-drop", max_drop),
        min_agreement=min_agreement,
        check_engine=check_engine,
    )
    with working(quiet=quiet, verbose=verbose) as progress:
        from prune2deploy.pipeline.export import run_export

        outcome = run_export(request, progress)
    print_table(exported_table(outcome.files))
    print_notes(outcome.notes, after=progress)
    print_line(f"run: {outcome.run}")
    print_line("next: p2d bench")
