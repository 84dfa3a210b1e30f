"""``p2d prune``."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from prune2deploy.cli import options, target_options, values
from prune2deploy.cli.console import print_costs, print_line, print_notes, print_table, working
from prune2deploy.cli.tables import percent, spell_latency_target, variants_table
from prune2deploy.errors import TargetError
from prune2deploy.pipeline.choices import (
    ATTENTION,
    BACKENDS,
    DEFAULT_VARIANTS,
    ENGINES,
    OPTIMAL_RANKING,
    PARETO_VARIANTS,
    PRECISIONS,
    PRUNING_METHODS,
    RANKINGS,
    SCOPES,
    VARIANTS,
    known,
)
from prune2deploy.pipeline.outcomes import PruneOutcome
from prune2deploy.pipeline.requests import PruneRequest
from prune2deploy.pipeline.targets import ranking_for
from prune2deploy.progress import Progress


def prune(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="CKPT", help="A checkpoint: .pth, .pt, .ckpt, .safetensors, or a model folder of a run."
        ),
    ],
    flops: target_options.Flops = None,
    params: target_options.Params = None,
    latency: target_options.Latency = None,
    memory: target_options.Memory = None,
    pareto: target_options.Pareto = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            "--criterion",
            metavar="NAME",
            rich_help_panel="Target",
            help=f"What makes a channel matter: {', '.join(PRUNING_METHODS)}. Default: the best for what is given.",
        ),
    ] = None,
    ranking: target_options.Ranking = None,
    scope: options.Scope = "all",
    protect: options.Protect = None,
    only: options.Only = None,
    exact_only: options.ExactOnly = False,
    backend: options.Backend = "auto",
    attention: options.Attention = "heads",
    align: options.Align = "auto",
    engine: target_options.Engine = None,
    precision: target_options.Precision = None,
    batch: target_options.Batch = None,
    threads: target_options.Threads = None,
    solver_seconds: target_options.SolverSeconds = None,
    variants: Annotated[
        str | None,
        typer.Option(
            "--variants",
            metavar="NAMES",
            rich_help_panel="Target",
            help=f"What to make, comma-separated: {', '.join(VARIANTS)}. Default: {','.join(DEFAULT_VARIANTS)}; with "
            f"--pareto {','.join(PARETO_VARIANTS)}.",
        ),
    ] = None,
    model: options.Model = None,
    data: options.Data = None,
    input_shape: options.Input = None,
    trust_pickle: options.TrustPickle = False,
    epochs: options.Epochs = None,
    lr: options.LearningRate = None,
    batch_size: options.BatchSize = None,
    optimizer: options.Optimizer = None,
    schedule: options.Schedule = None,
    warmup_epochs: options.WarmupEpochs = None,
    label_smoothing: options.LabelSmoothing = None,
    weight_decay: options.WeightDecay = None,
    mixed_precision: options.MixedPrecision = None,
    cuts: options.Cuts = None,
    every_steps: options.EverySteps = None,
    flop_penalty: options.FlopPenalty = None,
    distill: options.Distill = False,
    ema: options.Ema = None,
    compile_with: options.Compile = None,
    micro_batches: options.MicroBatches = None,
    seed: options.Seed = 0,
    resume: options.Resume = False,
    out: options.Out = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Prune a checkpoint to a target, fine-tune it, and make the variants to compare it with.

    Channels really leave, and every cut is proven: the pruned model computes what the dense one does without them.
    """
    targets = values.targets(flops=flops, params=params, memory=memory, latency_text=latency)
    family = values.pareto("--pareto", pareto)
    ranked = values.optional_name("--ranking", ranking, RANKINGS)
    solved = (ranked or ranking_for(needs_units=bool(family) or targets.needs_units)) == OPTIMAL_RANKING
    request = PruneRequest(
        checkpoint=checkpoint,
        targets=targets if family else targets.required(),
        model=model,
        data=data,
        input_shape=values.input_shape("--input", input_shape),
        method=values.optional_name("--method", method, PRUNING_METHODS),
        ranking=ranked,
        scope=known(scope, SCOPES, where="--scope"),
        protect=values.patterns("--protect", protect),
        only=values.patterns("--only", only),
        exact_only=exact_only,
        backend=known(backend, BACKENDS, where="--backend"),
        attention=known(attention, ATTENTION, where="--attention"),
        alignment=values.alignment("--align", align),
        engine=values.optional_name("--engine", engine, ENGINES),
        precision=values.optional_name("--precision", precision, PRECISIONS),
        variants=_variants(variants, family=bool(family)),
        training=values.training_choices(
            epochs=epochs,
            lr=lr,
            batch_size=batch_size,
            optimizer=optimizer,
            schedule=schedule,
            warmup_epochs=warmup_epochs,
            label_smoothing=label_smoothing,
            weight_decay=weight_decay,
            mixed_precision=mixed_precision,
            ema=ema,
            compile_with=compile_with,
            micro_batches=micro_batches,
        ),
        cuts=cuts,
        every_steps=every_steps,
        flop_penalty=values.rate("--flop-penalty", flop_penalty) or 0.0,
        distill=distill,
        pareto=family,
        seed=seed,
        resume=resume,
        out=out,
        trust_pickle=trust_pickle,
        command=("p2d", *sys.argv[1:]),
        **values.measured_with(
            targets, pareto=family, solved=solved, batch=batch, threads=threads, solver_seconds=solver_seconds
        ),
    )
    with working(quiet=quiet, verbose=verbose) as progress:
        from prune2deploy.pipeline.prune import run_prune

        outcome = run_prune(request, progress)
    show_pruning(outcome, progress)
    if outcome.shortfall is not None:
        raise TargetError(outcome.shortfall, where=str(outcome.run), hint="ask for a little less, or cut at once")
    print_line("next: p2d export, then p2d bench")


def _variants(text: str | None, *, family: bool) -> tuple[str, ...]:
    if text is None:
        return PARETO_VARIANTS if family else DEFAULT_VARIANTS
    return values.names("--variants", text, VARIANTS)


def show_pruning(outcome: PruneOutcome, progress: Progress) -> None:
    """Print what a pruning gave."""
    print_line(f"{outcome.model}, {outcome.method}, granule {outcome.alignment}{_shares(outcome)}")
    if outcome.latency is not None:
        print_line(spell_latency_target("pruned", outcome.latency))
    for variant, member in outcome.family.items():
        print_line(spell_latency_target(variant, member["latency"]))
    print_table(variants_table(outcome.variants))
    if outcome.accuracies:
        moments = (f"{moment.replace('_', ' ')} {percent(value)}" for moment, value in outcome.accuracies.items())
        print_line(f"accuracy of pruned: {', '.join(moments)}")
    print_costs(outcome.costs)
    print_notes(outcome.notes, after=progress)
    print_line(f"run: {outcome.run}")


def _shares(outcome: PruneOutcome) -> str:
    """What stays of the costs that were targets; of a family and of a latency is told apart."""
    if outcome.family:
        return ""
    shares = [
        f"{outcome.achieved[name]:.3f} of the {_WORDS[name]} stay (target {target:g})"
        for name, target in outcome.targets.items()
        if name != "latency" or outcome.latency is None
    ]
    return f": {', '.join(shares)}" if shares else ""


_WORDS = {"flops": "FLOPs", "parameters": "parameters", "memory": "memory", "latency": "latency"}
