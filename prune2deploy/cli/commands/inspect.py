"""``p2d inspect``."""

from typing import Annotated

import typer

from prune2deploy.cli import options, values
from prune2deploy.cli.console import print_document, print_line, print_notes, print_table, working
from prune2deploy.cli.tables import (
    alignment_table,
    count,
    flop_count,
    frozen_table,
    groups_table,
    share,
    spell_alignment,
    variants_table,
)
from prune2deploy.pipeline.choices import ATTENTION, BACKENDS, ENGINES, PRECISIONS, SCOPES, known
from prune2deploy.pipeline.outcomes import InspectOutcome
from prune2deploy.pipeline.requests import InspectRequest
from prune2deploy.progress import Progress


def inspect(
    subject: Annotated[
        str, typer.Argument(metavar="CKPT|MODEL|RUN", help="A checkpoint, a model such as resnet20, or a run folder.")
    ],
    model: options.Model = None,
    input_shape: options.Input = None,
    scope: options.Scope = "all",
    backend: options.Backend = "auto",
    attention: options.Attention = "heads",
    engine: Annotated[
        str | None,
        typer.Option(
            "--engine",
            metavar="NAME",
            rich_help_panel="Alignment",
            help=options.listed("Show what this engine pads", ENGINES) + " auto is any.",
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            "--precision",
            metavar="NAME",
            rich_help_panel="Alignment",
            help=options.listed("Show what is padded at this precision", PRECISIONS) + " Default: fp32.",
        ),
    ] = None,
    trust_pickle: options.TrustPickle = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Show what a model is and what can leave it: widths, FLOPs, parameters, what is frozen and why.

    With --engine or --precision, also which widths that engine pads, and what it costs.
    """
    request = InspectRequest(
        subject=subject,
        model=model,
        input_shape=values.input_shape("--input", input_shape),
        scope=known(scope, SCOPES, where="--scope"),
        backend=known(backend, BACKENDS, where="--backend"),
        attention=known(attention, ATTENTION, where="--attention"),
        engine=None if engine is None else known(engine, ENGINES, where="--engine"),
        precision=None if precision is None else known(precision, PRECISIONS, where="--precision"),
        trust_pickle=trust_pickle,
    )
    with working(quiet=quiet, verbose=verbose) as progress:
        from prune2deploy.pipeline.inspect import run_inspect

        outcome = run_inspect(request, progress)
    if json:
        print_document(outcome.to_document())
    else:
        _show(outcome, progress)


def _show(outcome: InspectOutcome, progress: Progress) -> None:
    shape = "x".join(str(size) for size in outcome.input_shape)
    print_line(f"{outcome.model}, input {shape}")
    if outcome.alternatives:
        print_line(f"also fits: {', '.join(outcome.alternatives)}")
    print_line(f"{flop_count(outcome.flops)}, {count(outcome.parameters)} parameters, {len(outcome.groups)} widths")
    print_line(f"backend: {outcome.backend} ({BACKENDS[outcome.backend]})")
    print_table(groups_table(outcome.groups))
    if outcome.frozen:
        held = sum(row.flops_fraction for row in outcome.frozen)
        print_line(f"{share(held)} of the FLOPs are in layers that keep their width")
        print_table(frozen_table(outcome.frozen))
    if outcome.variants:
        print_table(variants_table(outcome.variants))
    if outcome.alignment is not None:
        for variant in outcome.alignment.variants:
            print_line(spell_alignment(outcome.alignment, variant))
            if variant.rows:
                print_table(alignment_table(variant))
    print_notes(outcome.notes, after=progress)
