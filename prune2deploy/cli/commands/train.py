"""``p2d train``."""

import sys
from typing import Annotated

import typer

from prune2deploy.cli import method_options, options, target_options, values
from prune2deploy.cli.console import print_costs, print_line, print_notes, print_table, working
from prune2deploy.cli.tables import count, flop_count, percent, spell_cost, spell_latency_target, variants_table
from prune2deploy.errors import InputError, TargetError
from prune2deploy.pipeline.choices import (
    ENGINES,
    METHODS_WITH_TARGET,
    OPTIMAL_RANKING,
    PRECISIONS,
    RANKINGS,
    SCOPES,
    TRAINING_METHODS,
    VARIANTS,
    known,
)
from prune2deploy.pipeline.method_options import options_of
from prune2deploy.pipeline.outcomes import MethodOutcome, TrainOutcome
from prune2deploy.pipeline.requests import MethodChoices, TrainRequest
from prune2deploy.progress import Progress


def train(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="What to train: resnet20, torchvision:resnet18, timm:NAME, package.module:factory."
        ),
    ],
    method: method_options.Method = "dense",
    variants: method_options.Variants = None,
    criterion: method_options.Criterion = None,
    per: method_options.Per = None,
    score_images: method_options.ScoreImages = None,
    threshold: method_options.Threshold = None,
    window: method_options.Window = None,
    fallback_epoch: method_options.FallbackEpoch = None,
    prune_epoch: method_options.PruneEpoch = None,
    penalty_ratio: method_options.PenaltyRatio = None,
    interval: method_options.Interval = None,
    dead_below: method_options.DeadBelow = None,
    dynamic_batch: method_options.DynamicBatch = None,
    largest_batch: method_options.LargestBatch = None,
    keep: method_options.Keep = None,
    plateau_window: method_options.PlateauWindow = None,
    plateau_epsilon: method_options.PlateauEpsilon = None,
    minimum_epochs: method_options.MinimumEpochs = None,
    max_rounds: method_options.MaxRounds = None,
    accuracy_drop: method_options.AccuracyDrop = None,
    every: method_options.Every = None,
    flops: target_options.Flops = None,
    params: target_options.Params = None,
    latency: target_options.Latency = None,
    memory: target_options.Memory = None,
    ranking: target_options.Ranking = None,
    scope: options.Scope = "all",
    protect: options.Protect = None,
    only: options.Only = None,
    exact_only: options.ExactOnly = False,
    align: options.Align = "auto",
    engine: target_options.Engine = None,
    precision: target_options.Precision = None,
    batch: target_options.Batch = None,
    threads: target_options.Threads = None,
    solver_seconds: target_options.SolverSeconds = None,
    data: options.Data = "digits",
    input_shape: options.Input = None,
    epochs: options.Epochs = None,
    lr: options.LearningRate = None,
    batch_size: options.BatchSize = None,
    optimizer: options.Optimizer = None,
    schedule: options.Schedule = None,
    warmup_epochs: options.WarmupEpochs = None,
    label_smoothing: options.LabelSmoothing = None,
    weight_decay: options.WeightDecay = None,
    mixed_precision: options.MixedPrecision = None,
    ema: options.Ema = None,
    compile_with: options.Compile = None,
    micro_batches: options.MicroBatches = None,
    seed: options.Seed = 0,
    resume: options.Resume = False,
    out: options.Out = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Train a model from scratch, densely or under a method that prunes it on the way.

    Opens a run folder with the trained model as its dense variant, ready for p2d prune; with a method, as its pruned
    variant, ready for p2d export and p2d bench.
    """
    known(method, TRAINING_METHODS, where="--method")
    given = {
        "--criterion": criterion,
        "--per": per,
        "--score-images": score_images,
        "--threshold": threshold,
        "--window": window,
        "--fallback-epoch": fallback_epoch,
        "--prune-epoch": prune_epoch,
        "--penalty-ratio": penalty_ratio,
        "--interval": interval,
        "--dead-below": dead_below,
        "--dynamic-batch": dynamic_batch,
        "--largest-batch": largest_batch,
        "--keep": keep,
        "--plateau-window": plateau_window,
        "--plateau-epsilon": plateau_epsilon,
        "--minimum-epochs": minimum_epochs,
        "--max-rounds": max_rounds,
        "--accuracy-drop": accuracy_drop,
        "--every": every,
    }
    taken = options_of(method, given)
    aimed = values.targets(flops=flops, params=params, memory=memory, latency_text=latency)
    targets = aimed.required() if method in METHODS_WITH_TARGET else aimed if aimed.is_set else None
    ranked = values.optional_name("--ranking", ranking, RANKINGS)
    pruning = MethodChoices(
        options=taken,
        targets=targets,
        ranking=ranked,
        scope=known(scope, SCOPES, where="--scope"),
        protect=values.patterns("--protect", protect),
        only=values.patterns("--only", only),
        exact_only=exact_only,
        alignment=values.alignment("--align", align),
        engine=values.optional_name("--engine", engine, ENGINES),
        precision=values.optional_name("--precision", precision, PRECISIONS),
        variants=("pruned",) if variants is None else values.names("--variants", variants, VARIANTS),
        **values.measured_with(
            targets, solved=ranked == OPTIMAL_RANKING, batch=batch, threads=threads, solver_seconds=solver_seconds
        ),
    )
    if method == "dense" and (pruning != MethodChoices() or variants is not None):
        raise InputError(
            "options of pruning were given, but --method dense removes nothing",
            hint="name a method, for instance --method 3sp --flops 0.5, or prune the trained model with `p2d prune`",
        )
    request = TrainRequest(
        model=model,
        data=data or "digits",
        input_shape=values.input_shape("--input", input_shape),
        method=method,
        pruning=pruning,
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
        seed=seed,
        resume=resume,
        out=out,
        command=("p2d", *sys.argv[1:]),
    )
    with working(quiet=quiet, verbose=verbose) as progress:
        from prune2deploy.pipeline.train import run_train

        outcome = run_train(request, progress)
    if isinstance(outcome, MethodOutcome):
        _show_method(outcome, progress)
    else:
        _show_dense(outcome, progress)


def _show_dense(outcome: TrainOutcome, progress: Progress) -> None:
    training = "1 epoch" if outcome.epochs == 1 else f"{outcome.epochs} epochs"
    print_line(
        f"{outcome.model} on {outcome.data}: accuracy {percent(outcome.accuracy)} after {training}, "
        f"{flop_count(outcome.flops)}, {count(outcome.parameters)} parameters"
    )
    print_line(f"training: {spell_cost(outcome.cost)}")
    print_notes(outcome.notes, after=progress)
    print_line(f"trained model: {outcome.bundle}")
    print_line(f"next: p2d prune {outcome.bundle} --flops 0.33")


def _show_method(outcome: MethodOutcome, progress: Progress) -> None:
    """Print what a method gave.

    Raises:
        TargetError: it removed nothing, or did not reach the target that was set; the run is kept.
    """
    print_line(f"{outcome.model} on {outcome.data}, {outcome.method}, granule {outcome.alignment}")
    if outcome.latency is not None:
        print_line(spell_latency_target("pruned", outcome.latency))
    print_table(variants_table(outcome.variants))
    print_costs(outcome.costs)
    print_notes(outcome.notes, after=progress)
    print_line(f"run: {outcome.run}")
    if outcome.shortfall is not None:
        raise TargetError(outcome.shortfall, where=str(outcome.run), hint=outcome.hint)
    print_line("next: p2d export, then p2d bench")
