"""``p2d latency-table``."""

import datetime
from pathlib import Path
from typing import Annotated

import typer

from prune2deploy.cli import options, values
from prune2deploy.cli.console import print_document, print_line, print_notes, print_table, working
from prune2deploy.cli.tables import TextTable, share
from prune2deploy.pipeline.choices import ENGINES, PRECISIONS, known
from prune2deploy.pipeline.latency.rows import HoldingRow, LatencyTableOutcome, ModelTable
from prune2deploy.pipeline.requests import LatencyTableRequest
from prune2deploy.progress import Progress

_MOST_DEVICE = 40


def latency_table(
    subject: Annotated[
        str | None,
        typer.Argument(
            metavar="CKPT|MODEL|RUN",
            help="A checkpoint, a model such as resnet20, or a run folder to fill the table for. Default: show it.",
            show_default=False,
        ),
    ] = None,
    model: options.Model = None,
    input_shape: options.Input = None,
    engine: Annotated[
        str | None,
        typer.Option(
            "--engine",
            metavar="NAME",
            rich_help_panel="Engine and measuring",
            help=options.listed("The engine to measure, or whose measurements --clear drops", ENGINES)
            + " Default: the best that runs here, and for --clear all.",
        ),
    ] = None,
    precision: Annotated[
        str,
        typer.Option(
            "--precision",
            metavar="NAME",
            rich_help_panel="Engine and measuring",
            help=options.listed("The precision to measure at", PRECISIONS),
        ),
    ] = "fp32",
    batch: Annotated[
        int,
        typer.Option("--batch", min=1, metavar="N", rich_help_panel="Engine and measuring", help="Images in one run."),
    ] = 1,
    threads: options.Threads = None,
    alignment: options.Align = "auto",
    export: Annotated[
        Path | None,
        typer.Option(
            "--export",
            metavar="FILE",
            rich_help_panel="Table",
            help="Write all measurements to this .csv or .json file.",
        ),
    ] = None,
    clear: Annotated[
        bool, typer.Option("--clear", rich_help_panel="Table", help="Drop what is kept, before anything is measured.")
    ] = False,
    trust_pickle: options.TrustPickle = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Show, fill and export the measured latencies of an engine, which prune --latency goes by.

    Without a model: what is kept. With one: measures each of its layers at a few widths where that is not kept yet.
    Stopped and started again, it goes on where it was.
    """
    request = LatencyTableRequest(
        subject=subject,
        model=model,
        input_shape=values.input_shape("--input", input_shape),
        engine=None if engine is None else known(engine, ENGINES, where="--engine"),
        precision=known(precision, PRECISIONS, where="--precision"),
        batch=batch,
        threads=threads,
        alignment=values.alignment("--align", alignment),
        export=export,
        clear=clear,
        trust_pickle=trust_pickle,
    )
    with working(quiet=quiet, verbose=verbose) as progress:
        from prune2deploy.pipeline.latency.table import run_latency_table

        outcome = run_latency_table(request, progress)
    if json:
        print_document(outcome.to_document())
    else:
        _show(outcome, progress)


def _show(outcome: LatencyTableOutcome, progress: Progress) -> None:
    if outcome.cleared is not None:
        print_line(f"dropped {outcome.cleared} measurements")
    if outcome.table is not None:
        _show_model(outcome.table)
    elif outcome.holdings:
        print_table(_holdings_table(outcome.holdings))
    else:
        print_line("nothing is measured yet; for instance: p2d latency-table torchvision:resnet50 --engine ort-cpu")
    if outcome.exported is not None:
        total = sum(holding.points for holding in outcome.holdings)
        print_line(f"exported: {total} measurements to {outcome.exported}")
    print_line(f"kept in: {outcome.file}")
    print_notes(outcome.notes, after=progress)


def _show_model(table: ModelTable) -> None:
    shape = "x".join(str(size) for size in table.input_shape)
    threads = "1 thread" if table.threads == 1 else f"{table.threads} threads"
    print_line(
        f"{table.model}, input {shape}, on {table.engine} at {table.precision}, batch {table.batch}, {threads}, "
        f"granule {table.granule}"
    )
    print_table(_units_table(table))
    print_line(
        f"{_milliseconds(table.total_ns)} ms in {len(table.units)} units; {table.measured} points measured in "
        f"{table.seconds:.0f} s, {table.reused} kept from before, spread {share(table.spread)}"
    )
    if table.unpriced:
        names = ", ".join(f"{name} ({times})" for name, times in table.unpriced.items())
        print_line(f"in no unit, so not counted: {names}")


def _units_table(table: ModelTable) -> TextTable:
    rows = tuple(
        (
            row.unit,
            str(row.times),
            _widths(row.widths),
            _milliseconds(row.latency_ns),
            _widths(row.half_widths),
            _milliseconds(row.half_ns),
            _milliseconds(row.total_ns),
            share(row.share),
            str(row.points),
            share(row.spread),
        )
        for row in sorted(table.units, key=lambda row: -row.total_ns)
    )
    return TextTable(
        columns=("unit", "times", "widths", "ms", "about half", "ms", "all, ms", "of all", "points", "spread"),
        rows=rows,
        numeric=frozenset({1, 3, 5, 6, 7, 8, 9}),
        note="widths: the largest of what comes in and what goes out; all: every place at its own widths",
    )


def _holdings_table(holdings: tuple[HoldingRow, ...]) -> TextTable:
    now = datetime.datetime.now(tz=datetime.UTC)
    rows = tuple(
        (
            row.engine,
            row.version,
            row.device if len(row.device) <= _MOST_DEVICE else row.device[: _MOST_DEVICE - 1] + "…",
            row.precision,
            str(row.threads),
            str(row.batch),
            str(row.units),
            str(row.points),
            _age(now - datetime.datetime.fromisoformat(row.last_at)) + ("" if row.current else ", not used here"),
        )
        for row in holdings
    )
    columns = ("engine", "version", "device", "precision", "threads", "batch", "units", "points", "last added")
    note = (
        "" if all(row.current for row in holdings) else "not used here: of another version, device or way of measuring"
    )
    return TextTable(columns=columns, rows=rows, numeric=frozenset({4, 5, 6, 7}), note=note)


def _widths(widths: tuple[int, ...]) -> str:
    return " to ".join(map(str, widths)) or "-"


def _milliseconds(nanoseconds: float) -> str:
    return f"{nanoseconds / 1e6:.3f}"


def _age(since: datetime.timedelta) -> str:
    minutes = max(int(since.total_seconds() // 60), 0)
    if minutes < 120:
        return f"{minutes} min ago"
    return f"{minutes // 60} h ago" if minutes < 48 * 60 else f"{minutes // (24 * 60)} days ago"
