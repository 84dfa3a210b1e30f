"""The terminal: progress and logs on standard error, results and nothing else on standard output."""

import json
import logging
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any

from prune2deploy.cli.progress import BarProgress, LineProgress, TellingProgress
from prune2deploy.cli.tables import plain_lines, rich_table, spell_cost
from prune2deploy.cli.together import company
from prune2deploy.pipeline.outcomes import Table
from prune2deploy.processes import is_main
from prune2deploy.progress import SILENT, Progress

LOGGER = logging.getLogger("prune2deploy")


@contextmanager
def working(*, quiet: bool, verbose: bool) -> Iterator[Progress]:
    """While stages work: a progress to report to, and other libraries kept quiet.

    Whatever a library prints goes to standard error, so that standard output holds results alone. Other
    libraries' log records up to WARNING and their Python warnings are dropped, unless ``verbose``, which also
    shows the project's own log. ``quiet`` shows nothing but errors. Of several processes, which meet here, the main one
    tells what is to be told.
    """
    verbose = verbose and is_main()
    with redirect_stdout(sys.stderr), _logging(verbose=verbose), warnings.catch_warnings():
        if not verbose and not sys.warnoptions:
            warnings.simplefilter("ignore")
        company.join()
        if quiet or not is_main():
            yield SILENT
        elif sys.stderr.isatty():
            with _bars() as progress:
                yield progress
        else:
            yield LineProgress(sys.stderr)


def print_line(line: str = "") -> None:
    """Print one line of a result to standard output."""
    sys.stdout.write(line + "\n")


def print_costs(costs: Mapping[str, Mapping[str, Any]]) -> None:
    """Print what the training of each variant cost, a line each, to standard output."""
    for variant, cost in costs.items():
        print_line(f"training {variant}: {spell_cost(cost)}")


def print_document(document: Mapping[str, Any]) -> None:
    """Print one JSON document to standard output."""
    print_line(json.dumps(document, indent=2, allow_nan=False, default=str))


def print_table(table: Table) -> None:
    """Print a table to standard output: ruled on a terminal, aligned text elsewhere."""
    if sys.stdout.isatty():
        from rich.console import Console

        Console(file=sys.stdout).print(rich_table(table))
    else:
        for line in plain_lines(table):
            print_line(line)


def print_notes(notes: Iterable[str], *, after: Progress) -> None:
    """Print facts that belong to a result; on a terminal, only those that ``after`` has not just shown there."""
    seen = after.told if isinstance(after, TellingProgress) and sys.stdout.isatty() and sys.stderr.isatty() else ()
    for note in notes:
        if note not in seen:
            print_line(f"note: {note}")


@contextmanager
def _bars() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    with RichProgress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}", markup=False),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,
        # Ten times a second, as by default, drawing takes 2% of a CPU from what is being measured.
        refresh_per_second=2,
    ) as bars:
        yield BarProgress(bars)


@contextmanager
def _logging(*, verbose: bool) -> Iterator[None]:
    if not verbose:
        disabled = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(disabled)
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    level = LOGGER.level
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.DEBUG)
    try:
        yield
    except Exception as error:
        LOGGER.debug("what led to the error", exc_info=error)
        raise
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(level)
