"""Plots of a run: the widths that pruning left, and how each variant was trained."""

from typing import Any

from matplotlib.ticker import MaxNLocator

from prune2deploy.report.canvas import (
    Plot,
    colour_of,
    drawing,
    legend_above,
    legend_inches,
    marker_of,
    plot_from_figure,
    shortened,
)
from prune2deploy.report.content import ReportContent

_NAMED_LAYERS = 40


def widths_plot(content: ReportContent) -> Plot | None:
    """The width of every layer, dense behind pruned."""
    layers: list[dict[str, Any]] = [
        layer for layer in content.pruning.get("layers", ()) if layer.get("dense") and layer.get("pruned") is not None
    ]
    if not layers:
        return None
    names = content.names
    dense, pruned = [layer["dense"] for layer in layers], [layer["pruned"] for layer in layers]
    few = len(layers) <= _NAMED_LAYERS
    with drawing(height_inches=1.0 + 0.24 * len(layers) if few else 2.7) as figure:
        axes = figure.subplots()
        places = range(len(layers))
        solid, pale = colour_of("pruned", names), colour_of("dense", names)
        if few:
            axes.barh(places, dense, height=0.78, label="dense", color=pale, alpha=0.35)
            axes.barh(places, pruned, height=0.78, label="pruned", color=solid)
            axes.set_yticks(places, [shortened(str(layer["name"])) for layer in layers], fontsize=9)
            axes.set_ylim(len(layers) - 0.4, -0.6)
            axes.set_xlabel("channels")
            axes.grid(visible=False, axis="y")
        else:
            axes.bar(places, dense, width=1.0, label="dense", color=pale, alpha=0.35)
            axes.bar(places, pruned, width=1.0, label="pruned", color=solid)
            axes.set_xlim(-0.5, len(layers) - 0.5)
            axes.set_xlabel("layer, from input to output")
            axes.set_ylabel("channels")
            axes.grid(visible=False, axis="x")
        figure.legend(loc="outside upper left", ncols=2)
        return plot_from_figure(
            figure,
            key="widths",
            title="Widths of the layers",
            description=f"{sum(pruned)} of {sum(dense)} channels stay in {len(layers)} layers; the table lists them.",
        )


def history_plot(content: ReportContent) -> Plot | None:
    """Accuracy over the epochs of each training, or its loss where no accuracy was taken."""
    histories = {
        variant.name: list(variant.training.get("history", ()))
        for variant in content.variants
        if variant.training.get("history")
    }
    if not histories:
        return None
    measure = next(
        (
            name
            for name in ("accuracy", "loss")
            if any(epoch.get(name) is not None for h in histories.values() for epoch in h)
        ),
        None,
    )
    if measure is None:
        return None
    names = content.names
    scale, label = (100, "top-1 accuracy, %") if measure == "accuracy" else (1, "loss")
    labels = [shortened(variant) for variant in histories]
    with drawing(height_inches=2.4 + legend_inches(labels)) as figure:
        axes = figure.subplots()
        for variant, history in histories.items():
            known = [(epoch["epoch"], epoch[measure] * scale) for epoch in history if epoch.get(measure) is not None]
            axes.plot(
                [epoch for epoch, _ in known],
                [value for _, value in known],
                color=colour_of(variant, names),
                marker=marker_of(variant, names),
                markersize=4,
                linewidth=2,
                label=shortened(variant),
            )
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel(label)
        legend_above(figure, labels)
        lengths = ", ".join(f"{variant} {len(history)}" for variant, history in histories.items())
        return plot_from_figure(
            figure, key="history", title="Training", description=f"One point an epoch. Epochs: {lengths}."
        )
