"""The ``p2d`` program: its commands, and nothing heavy at import."""

import sys
from typing import Annotated

import typer

from prune2deploy import __version__
from prune2deploy.cli.commands.bench import bench
from prune2deploy.cli.commands.build import build
from prune2deploy.cli.commands.compare import compare
from prune2deploy.cli.commands.demo import demo
from prune2deploy.cli.commands.doctor import doctor
from prune2deploy.cli.commands.export import export
from prune2deploy.cli.commands.family import family
from prune2deploy.cli.commands.inspect import inspect
from prune2deploy.cli.commands.latency_table import latency_table
from prune2deploy.cli.commands.prune import prune
from prune2deploy.cli.commands.report import report
from prune2deploy.cli.commands.train import train
from prune2deploy.cli.exits import GuardedGroup, raise_on_sigterm
from prune2deploy.cli.together import check_command

app = typer.Typer(name="p2d", cls=GuardedGroup, rich_markup_mode="rich", pretty_exceptions_enable=False)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"p2d {__version__}")
        raise typer.Exit


@app.callback(epilog="Exit codes, formats and every option: docs/cli.md")
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Show the version and leave.")
    ] = False,
) -> None:
    """Make vision models structurally smaller, and measure on the engine that serves them how much faster they became.

    Start with p2d demo, or with p2d prune CHECKPOINT --flops 0.33, p2d export, p2d bench, p2d report.
    """
    check_command(context.invoked_subcommand)


_CHAIN = "The chain"
_LOOK = "Look around"

app.command(rich_help_panel=_CHAIN, epilog="Example: p2d train resnet8_wide --data digits --epochs 20")(train)
app.command(rich_help_panel=_CHAIN, epilog="Example: p2d prune resnet50.pth --flops 0.33 --data imagefolder:photos")(
    prune
)
app.command(rich_help_panel=_CHAIN, epilog="Example: p2d family --factors 0.5,0.75,1.5")(family)
app.command(rich_help_panel=_CHAIN, epilog="Example: p2d export")(export)
app.command(rich_help_panel=_CHAIN, epilog="Example: p2d build --engine trt-rtx --batch 1,32")(build)
app.command(rich_help_panel=_CHAIN, epilog="Example: p2d bench --engine ort-cpu --threads 1 --claim flops")(bench)
app.command(rich_help_panel=_CHAIN, epilog="Example: p2d report p2d-runs/latest")(report)
app.command(rich_help_panel=_LOOK, epilog="Example: p2d compare main/result.json p2d-runs/latest")(compare)
app.command(rich_help_panel=_LOOK, epilog="Example: p2d demo")(demo)
app.command(rich_help_panel=_LOOK, epilog="Example: p2d inspect torchvision:resnet50 --input 3x224x224")(inspect)
app.command(
    "latency-table",
    rich_help_panel=_LOOK,
    epilog="Example: p2d latency-table torchvision:resnet50 --engine ort-cpu --threads 1",
)(latency_table)
app.command(rich_help_panel=_LOOK, epilog="Example: p2d doctor --json")(doctor)


def main() -> None:
    """Run the program and leave with its exit code; without arguments, show the help."""
    raise_on_sigterm()
    app(None if sys.argv[1:] else ["--help"], prog_name="p2d")
