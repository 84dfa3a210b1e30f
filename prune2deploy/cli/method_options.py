"""Options of the methods that prune while they train. Which one belongs to which: ``pipeline.method_options``."""

from typing import Annotated

import typer

from prune2deploy.pipeline.choices import TRAINING_METHODS, VARIANTS

_METHOD = "Method"

Method = Annotated[
    str,
    typer.Option(
        "--method",
        metavar="NAME",
        rich_help_panel=_METHOD,
        help=f"How: {', '.join(f'{name} ({words})' for name, words in TRAINING_METHODS.items())}.",
    ),
]
Variants = Annotated[
    str | None,
    typer.Option(
        "--variants",
        metavar="NAMES",
        rich_help_panel=_METHOD,
        help=f"What to make and train, comma-separated: {', '.join(VARIANTS)}. Default: pruned; dense is then "
        "untrained, and for timing only.",
    ),
]
Criterion = Annotated[
    str | None,
    typer.Option(
        "--criterion",
        metavar="NAME",
        rich_help_panel=_METHOD,
        help="3sp, epi: what makes a channel matter, a criterion of p2d prune. Default: the method's own.",
    ),
]
Per = Annotated[
    str | None,
    typer.Option(
        "--per",
        metavar="NAME",
        rich_help_panel=_METHOD,
        help="3sp: what sensitivity is divided by: marginal (FLOPs that the whole model loses with a channel; the "
        "default), own-layer, or none.",
    ),
]
ScoreImages = Annotated[
    int | None,
    typer.Option(
        "--score-images",
        min=1,
        metavar="N",
        rich_help_panel=_METHOD,
        help="Images that are scored with. 3sp: one training batch by default; epi, for criteria that need data: 256.",
    ),
]
Threshold = Annotated[
    float | None,
    typer.Option(
        "--threshold",
        metavar="VALUE",
        rich_help_panel=_METHOD,
        help="epi: stability above which is pruned (0.983 for magnitudes, 0.944 for taylor). activation-density: "
        "size above which an activation counts, for networks without rectifiers.",
    ),
]
Window = Annotated[
    int | None,
    typer.Option(
        "--window",
        min=1,
        metavar="N",
        rich_help_panel=_METHOD,
        help="epi: epochs that the latest widths are compared with. Default: 5.",
    ),
]
FallbackEpoch = Annotated[
    int | None,
    typer.Option(
        "--fallback-epoch",
        min=1,
        metavar="N",
        rich_help_panel=_METHOD,
        help="epi: epoch after which is pruned if widths were never stable. Default: half of the epochs.",
    ),
]
PruneEpoch = Annotated[
    int | None,
    typer.Option(
        "--prune-epoch",
        min=0,
        metavar="N",
        rich_help_panel=_METHOD,
        help="epi: prune after this epoch, whatever the stability.",
    ),
]
PenaltyRatio = Annotated[
    float | None,
    typer.Option(
        "--penalty-ratio",
        metavar="SHARE",
        rich_help_panel=_METHOD,
        help="prunetrain: share of the first loss that the group lasso makes up. Default: 0.2.",
    ),
]
Interval = Annotated[
    int | None,
    typer.Option(
        "--interval",
        min=1,
        metavar="N",
        rich_help_panel=_METHOD,
        help="prunetrain: epochs from one cut to the next. Default: 10.",
    ),
]
DeadBelow = Annotated[
    float | None,
    typer.Option(
        "--dead-below",
        metavar="VALUE",
        rich_help_panel=_METHOD,
        help="prunetrain: a channel is dead when all its weights are smaller. Default: 1e-4.",
    ),
]
DynamicBatch = Annotated[
    bool | None,
    typer.Option(
        "--dynamic-batch/--no-dynamic-batch",
        rich_help_panel=_METHOD,
        help="prunetrain: let the batch, and the learning rate, grow into the memory that cuts free. Default: yes.",
    ),
]
LargestBatch = Annotated[
    int | None,
    typer.Option(
        "--largest-batch",
        min=1,
        metavar="N",
        rich_help_panel=_METHOD,
        help="prunetrain: images that a batch may grow to.",
    ),
]
Keep = Annotated[
    str | None,
    typer.Option(
        "--keep",
        metavar="NAME",
        rich_help_panel=_METHOD,
        help="activation-density: which channels stay: keep-densest (the default), or reinitialise (fresh weights at "
        "the new widths).",
    ),
]
PlateauWindow = Annotated[
    int | None,
    typer.Option(
        "--plateau-window",
        min=1,
        metavar="N",
        rich_help_panel=_METHOD,
        help="activation-density: epochs whose mean density is compared with that of as many before.",
    ),
]
PlateauEpsilon = Annotated[
    float | None,
    typer.Option(
        "--plateau-epsilon",
        metavar="VALUE",
        rich_help_panel=_METHOD,
        help="activation-density: largest difference of these means in any layer at which is cut.",
    ),
]
MinimumEpochs = Annotated[
    int | None,
    typer.Option(
        "--minimum-epochs",
        min=1,
        metavar="N",
        rich_help_panel=_METHOD,
        help="activation-density: epochs of each round before its cut.",
    ),
]
MaxRounds = Annotated[
    int | None,
    typer.Option("--max-rounds", min=1, metavar="N", rich_help_panel=_METHOD, help="activation-density: cuts at most."),
]
AccuracyDrop = Annotated[
    float | None,
    typer.Option(
        "--accuracy-drop",
        metavar="SHARE",
        rich_help_panel=_METHOD,
        help="activation-density: fall of training accuracy from one round to a later one with which nothing is cut.",
    ),
]
Every = Annotated[
    int | None,
    typer.Option(
        "--every",
        min=1,
        metavar="N",
        rich_help_panel=_METHOD,
        help="activation-density: training steps from one look at the activations to the next. Default: 1.",
    ),
]
