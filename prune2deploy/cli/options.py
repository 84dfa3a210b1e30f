"""Options that several commands share, each declared once with the words of its help.

Lists and specs stay text here and become values in ``cli.values``, so that a bad one is refused in our words.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from prune2deploy.pipeline import choices

_MODEL = "Model and data"
_TARGET = "Target"
_TRAINING = "Training"
_MEASURING = "Engine and measuring"
_RUN = "Run"


def listed(words: str, names: Mapping[str, str]) -> str:
    """The sentence of a help text that lists what may be named."""
    return f"{words}: {', '.join(names)}."


RunArgument = Annotated[
    Path | None,
    typer.Argument(metavar="RUN", help="A run folder. Default: the latest run, p2d-runs/latest.", show_default=False),
]

# Model and data
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="SPEC",
        rich_help_panel=_MODEL,
        help="Architecture, where the checkpoint does not say: resnet20, torchvision:resnet50, timm:resnet50, "
        "package.module:factory; arguments as timm:resnet50?num_classes=10. Default: identified from the checkpoint.",
    ),
]
Input = Annotated[
    str | None,
    typer.Option(
        "--input",
        metavar="CxHxW",
        rich_help_panel=_MODEL,
        help="Input shape, such as 3x224x224. Default: the model's own configuration.",
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="SPEC",
        rich_help_panel=_MODEL,
        help="digits, textures, cifar10:DIR, cifar100:DIR, imagefolder:DIR, hf:NAME_OR_DIR or package.module:factory.",
    ),
]
TrustPickle = Annotated[
    bool,
    typer.Option(
        "--trust-pickle",
        rich_help_panel=_MODEL,
        help="Unpickle a whole pickled module. This runs whatever code the file holds: only for files you made.",
    ),
]

# Target
Scope = Annotated[
    str,
    typer.Option(
        "--scope",
        metavar="NAME",
        rich_help_panel=_TARGET,
        help="What may be cut: all, or inside-blocks (residual streams keep their widths).",
    ),
]
Protect = Annotated[
    str | None,
    typer.Option(
        "--protect",
        metavar="PATTERNS",
        rich_help_panel=_TARGET,
        help="Layers that keep their width, comma-separated, with * for any part of a name: head,blocks.0.*",
    ),
]
Only = Annotated[
    str | None,
    typer.Option(
        "--only",
        metavar="PATTERNS",
        rich_help_panel=_TARGET,
        help="The only layers that may be cut, comma-separated, with * for any part of a name.",
    ),
]
ExactOnly = Annotated[
    bool,
    typer.Option(
        "--exact-only",
        rich_help_panel=_TARGET,
        help="Leave channels alone over which a norm takes its statistics: cutting them is not exact.",
    ),
]
Backend = Annotated[
    str,
    typer.Option("--backend", metavar="NAME", rich_help_panel=_TARGET, help=listed("How to cut", choices.BACKENDS)),
]
Attention = Annotated[
    str,
    typer.Option(
        "--attention",
        metavar="NAME",
        rich_help_panel=_TARGET,
        help=listed("What leaves attentions", choices.ATTENTION),
    ),
]
Align = Annotated[
    str,
    typer.Option(
        "--align",
        metavar="auto|N|1",
        rich_help_panel=_TARGET,
        help="Granule of channels that fast kernels want: auto (16 unless --engine and --precision say otherwise), "
        "a number, or 1 for none.",
    ),
]

# Training
Epochs = Annotated[
    int | None, typer.Option("--epochs", min=0, metavar="N", rich_help_panel=_TRAINING, help="Epochs to train.")
]
LearningRate = Annotated[
    float | None,
    typer.Option("--lr", metavar="RATE", rich_help_panel=_TRAINING, help="Peak learning rate."),
]
BatchSize = Annotated[
    int | None,
    typer.Option("--batch-size", min=1, metavar="N", rich_help_panel=_TRAINING, help="Images in a training batch."),
]
Optimizer = Annotated[
    str | None,
    typer.Option("--optimizer", metavar="NAME", rich_help_panel=_TRAINING, help=listed("One of", choices.OPTIMIZERS)),
]
Schedule = Annotated[
    str | None,
    typer.Option(
        "--schedule",
        metavar="NAME",
        rich_help_panel=_TRAINING,
        help=listed("How the learning rate falls", choices.SCHEDULES),
    ),
]
WarmupEpochs = Annotated[
    int | None,
    typer.Option(
        "--warmup-epochs",
        min=0,
        metavar="N",
        rich_help_panel=_TRAINING,
        help="Epochs over which the learning rate rises to its peak.",
    ),
]
LabelSmoothing = Annotated[
    float | None,
    typer.Option(
        "--label-smoothing",
        metavar="SHARE",
        rich_help_panel=_TRAINING,
        help="Probability spread over the other classes, such as 0.1.",
    ),
]
WeightDecay = Annotated[
    float | None,
    typer.Option("--weight-decay", metavar="RATE", rich_help_panel=_TRAINING, help="Weight decay, such as 5e-4."),
]
MixedPrecision = Annotated[
    str | None,
    typer.Option(
        "--mixed-precision",
        metavar="NAME",
        rich_help_panel=_TRAINING,
        help=listed("Arithmetic of training", choices.MIXED_PRECISIONS),
    ),
]
Ema = Annotated[
    float | None,
    typer.Option(
        "--ema",
        metavar="DECAY",
        rich_help_panel=_TRAINING,
        help="Keep the moving average of the weights, with this decay a step, such as 0.999.",
    ),
]
Compile = Annotated[
    str | None,
    typer.Option(
        "--compile",
        metavar="BACKEND",
        rich_help_panel=_TRAINING,
        help="Compile the training step with this backend of torch.compile, such as inductor.",
    ),
]
MicroBatches = Annotated[
    int | None,
    typer.Option(
        "--micro-batches",
        min=1,
        metavar="N",
        rich_help_panel=_TRAINING,
        help="Parts of a batch whose gradients are added up before a step, to take less memory.",
    ),
]
Cuts = Annotated[
    int | None,
    typer.Option(
        "--cuts",
        min=1,
        metavar="N",
        rich_help_panel=_TRAINING,
        help="Cut a little at a time, so many times in the first three quarters of the fine-tuning.",
    ),
]
EverySteps = Annotated[
    int | None,
    typer.Option(
        "--every-steps",
        min=1,
        metavar="N",
        rich_help_panel=_TRAINING,
        help="The same, every so many training steps, such as 100.",
    ),
]
FlopPenalty = Annotated[
    float | None,
    typer.Option(
        "--flop-penalty",
        metavar="B",
        rich_help_panel=_TARGET,
        help="What all FLOPs are worth in units of the criterion: the larger, the sooner expensive channels leave.",
    ),
]
Distill = Annotated[
    bool,
    typer.Option(
        "--distill",
        rich_help_panel=_TRAINING,
        help="Train against the scores of the dense model too, whatever is trained.",
    ),
]

# Engine and measuring
Engine = Annotated[
    str,
    typer.Option(
        "--engine",
        metavar="NAME",
        rich_help_panel=_MEASURING,
        help=listed("One of", choices.ENGINES) + " `p2d doctor` says which run here.",
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        "--precision",
        metavar="NAMES",
        rich_help_panel=_MEASURING,
        help=listed("Precisions, comma-separated", choices.PRECISIONS),
    ),
]
Batch = Annotated[
    str,
    typer.Option("--batch", metavar="N,N", rich_help_panel=_MEASURING, help="Batch sizes, comma-separated."),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", min=1, metavar="N", rich_help_panel=_MEASURING, help="CPU threads inside one operator."),
]

# Run
Seed = Annotated[
    int, typer.Option("--seed", min=0, metavar="N", rich_help_panel=_RUN, help="Seed of everything random.")
]
Resume = Annotated[
    bool,
    typer.Option("--resume", rich_help_panel=_RUN, help="Go on with an interrupted run: the same command and this."),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="DIR", rich_help_panel=_RUN, help="Folder to write. Default: a new one under p2d-runs/."
    ),
]
Json = Annotated[
    bool,
    typer.Option("--json", rich_help_panel=_RUN, help="Print one JSON document to standard output, nothing else."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", rich_help_panel=_RUN, help="No progress and no remarks.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", rich_help_panel=_RUN, help="Log what happens, other libraries included.")
]
