"""Options of what pruning is to reach, and where that is measured: shared by the commands that prune."""

from typing import Annotated

import typer

from prune2deploy.cli.options import listed
from prune2deploy.pipeline import choices
from prune2deploy.pipeline.targets import DEFAULT_SOLVER_SECONDS

_TARGET = "Target"

Flops = Annotated[
    str | None,
    typer.Option(
        "--flops", metavar="SHARE", rich_help_panel=_TARGET, help="Share of the dense FLOPs that stays, such as 0.33."
    ),
]
Params = Annotated[
    str | None,
    typer.Option(
        "--params",
        metavar="SHARE",
        rich_help_panel=_TARGET,
        help="Share of the dense parameters that stays, such as 0.5. Of several targets, all must hold.",
    ),
]
Latency = Annotated[
    str | None,
    typer.Option(
        "--latency",
        metavar="SHARE|TIME",
        rich_help_panel=_TARGET,
        help="Latency that stays on --engine, as measured: a share of the dense one such as 0.5, or a time: 2.0ms, "
        "800us.",
    ),
]
Memory = Annotated[
    str | None,
    typer.Option(
        "--memory",
        metavar="SHARE",
        rich_help_panel=_TARGET,
        help="Share of the dense memory that stays, of weights and of activations at their fullest, such as 0.5.",
    ),
]
Pareto = Annotated[
    str | None,
    typer.Option(
        "--pareto",
        metavar="SHARE,SHARE",
        rich_help_panel=_TARGET,
        help="A family in one run: a pruned network for each share of the dense latency, such as 0.8,0.65,0.5.",
    ),
]
Ranking = Annotated[
    str | None,
    typer.Option(
        "--ranking",
        metavar="NAME",
        rich_help_panel=_TARGET,
        help=listed("How channels compete", choices.RANKINGS)
        + " Default: of p2d prune with --latency, --pareto or --memory optimal, else global.",
    ),
]
SolverSeconds = Annotated[
    float | None,
    typer.Option(
        "--solver-seconds",
        metavar="S",
        rich_help_panel=_TARGET,
        help="Time that each solution of --ranking optimal may take; what is left to gain is reported. "
        f"Default: {DEFAULT_SOLVER_SECONDS:g}.",
    ),
]
Engine = Annotated[
    str | None,
    typer.Option(
        "--engine",
        metavar="NAME",
        rich_help_panel=_TARGET,
        help=listed("The engine to align for, and whose latency is meant", choices.ENGINES)
        + " Default with --latency: auto.",
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        "--precision",
        metavar="NAME",
        rich_help_panel=_TARGET,
        help=listed("The precision to align for, and that of latency and memory", choices.PRECISIONS)
        + " Default: fp32.",
    ),
]
Batch = Annotated[
    int | None,
    typer.Option(
        "--batch",
        min=1,
        metavar="N",
        rich_help_panel=_TARGET,
        help="Images in one run, for --latency, --pareto and --memory. Default: 1.",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        min=1,
        metavar="N",
        rich_help_panel=_TARGET,
        help="CPU threads inside one operator, for --latency and --pareto. Default: all cores, as p2d bench.",
    ),
]
