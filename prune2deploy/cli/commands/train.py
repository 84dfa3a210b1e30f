"""``p2d train``."""

import sys
from typing import Annotated

import typer

from prune2deploy.cli import options, values
from prune2deploy.cli.console import print_line, print_notes, working
from prune2deploy.cli.tables import count, flop_count, percent
from prune2deploy.pipeline.choices import TRAINING_METHODS, known
from prune2deploy.pipeline.requests import TrainRequest


def train(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="What to train: resnet20, torchvision:resnet18, timm:NAME, package.module:factory."
        ),
    ],
    data: options.Data = "digits",
    input_shape: options.Input = None,
    method: Annotated[
        str, typer.Option("--method", metavar="NAME", help=f"How: {', '.join(TRAINING_METHODS)}.")
    ] = "dense",
    epochs: options.Epochs = None,
    lr: options.LearningRate = None,
    batch_size: options.BatchSize = None,
    optimizer: options.Optimizer = None,
    schedule: options.Schedule = None,
    warmup_epochs: options.WarmupEpochs = None,
    label_smoothing: options.LabelSmoothing = None,
    weight_decay: options.WeightDecay = None,
    mixed_precision: options.MixedPrecision = None,
    seed: options.Seed = 0,
    resume: options.Resume = False,
    out: options.Out = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Train a model from scratch.

    Opens a run folder with the trained model as its dense variant, ready for p2d prune.
    """
    request = TrainRequest(
        model=model,
        data=data or "digits",
        input_shape=values.input_shape("--input", input_shape),
        method=known(method, TRAINING_METHODS, where="--method"),
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
        ),
        seed=seed,
        resume=resume,
        out=out,
        command=("p2d", *sys.argv[1:]),
    )
    with working(quiet=quiet, verbose=verbose) as progress:
        from prune2deploy.pipeline.train import run_train

        outcome = run_train(request, progress)
    training = "1 epoch" if outcome.epochs == 1 else f"{outcome.epochs} epochs"
    print_line(
        f"{outcome.model} on {outcome.data}: accuracy {percent(outcome.accuracy)} after {training}, "
        f"{flop_count(outcome.flops)}, {count(outcome.parameters)} parameters"
    )
    print_notes(outcome.notes, after=progress)
    print_line(f"trained model: {outcome.bundle}")
    print_line(f"next: p2d prune {outcome.bundle} --flops 0.33")
