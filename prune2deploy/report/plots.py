"""The report's plots. Each is a function from the content to a drawing, or None where there is nothing to draw."""

from collections.abc import Iterator, Sequence
from typing import Any

from matplotlib.ticker import MaxNLocator

from prune2deploy.bench.result import Row
from prune2deploy.report.canvas import (
    INK,
    MUTED,
    SURFACE,
    Plot,
    colour_of,
    drawing,
    marker_of,
    plot_from_figure,
)
from prune2deploy.report.content import ReportContent, Setting, spell_setting
from prune2deploy.report.figures import spell_interval, spell_latency, spell_percent, spell_ratio
from prune2deploy.report.methods import method_plots

_NAMED_LAYERS = 40


def report_plots(content: ReportContent) -> tuple[Plot, ...]:
    """All plots that the content supports, in reading order."""
    return tuple(plot for plot in _all_plots(content) if plot is not None)


def _all_plots(content: ReportContent) -> Iterator[Plot | None]:
    yield speedup_plot(content)
    for number, setting in enumerate(content.settings):
        yield accuracy_latency_plot(content, setting, key=f"pareto{number}")
    for number, setting in enumerate(content.settings):
        yield distribution_plot(content, setting, key=f"latency{number}")
    yield widths_plot(content)
    yield history_plot(content)
    yield from method_plots(content)


def speedup_plot(content: ReportContent) -> Plot | None:
    """Speed-ups with their intervals as dots and whiskers; the line at 1 means no difference."""
    entries = [
        (f"{row.variant}\n{spell_setting(setting, content)}", row, row.speedup_against(_baseline(content)))
        for setting in content.settings
        for row in content.rows_at(setting)
    ]
    shown = [(label, row, interval) for label, row, interval in entries if interval is not None]
    if not shown:
        return None
    names = _variants(content)
    claims = {(claim.variant, claim.engine, claim.precision, claim.batch): claim for claim in _claims(content)}
    lowest = highest = 1.0
    with drawing(height_inches=0.9 + 0.58 * len(shown)) as figure:
        axes = figure.subplots()
        for place, (_, row, interval) in enumerate(shown):
            colour = colour_of(row.variant, names)
            if interval.low is not None and interval.high is not None:
                axes.plot([interval.low, interval.high], [place, place], color=colour, linewidth=3)
                lowest, highest = min(lowest, interval.low), max(highest, interval.high)
            axes.plot(interval.estimate, place, marker=marker_of(row.variant, names), color=colour, markersize=8)
            axes.annotate(
                spell_ratio(interval.estimate),
                (interval.estimate, place),
                xytext=(0, 9),
                textcoords="offset points",
                ha="center",
                fontsize=10,
            )
            lowest, highest = min(lowest, interval.estimate), max(highest, interval.estimate)
            claim = claims.get((row.variant, row.engine, row.precision, row.batch))
            if claim is not None:
                axes.plot(claim.claim, place, marker="|", markersize=18, markeredgewidth=2, color=INK)
                lowest, highest = min(lowest, claim.claim), max(highest, claim.claim)
        axes.axvline(1, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.set_yticks(range(len(shown)), [label for label, _, _ in shown])
        axes.set_ylim(len(shown) - 0.4, -0.75)
        margin = 0.08 * max(highest - lowest, 0.1)
        axes.set_xlim(lowest - margin, highest + margin)
        axes.set_xlabel(f"times the speed of {_baseline(content)}{' (tall mark: the claim)' if claims else ''}")
        axes.grid(visible=False, axis="y")
        said = "; ".join(
            f"{label.replace(chr(10), ', ')}: {spell_ratio(interval.estimate)}"
            f" ({spell_interval(interval.low, interval.high)})"
            for label, _, interval in shown
        )
        return plot_from_figure(
            figure,
            key="speedups",
            title=f"Speed-up against {_baseline(content)}",
            description=f"Dots are estimates, bars their intervals. {said}.",
        )


def accuracy_latency_plot(content: ReportContent, setting: Setting, *, key: str) -> Plot | None:
    """Accuracy against latency; the stepped line is the Pareto front. None without accuracies."""
    rows = [row for row in content.rows_at(setting) if row.accuracy is not None]
    if not rows:
        return None
    names = _variants(content)
    points = [(row.latency_ns.p50 / 1e6, (row.accuracy or 0.0) * 100) for row in rows]
    latencies, accuracies = [point[0] for point in points], [point[1] for point in points]
    with drawing(height_inches=3.1) as figure:
        axes = figure.subplots()
        reach = max(latencies) * 1.2
        spread = max(accuracies) - min(accuracies)
        low, high = min(accuracies) - max(0.4, 0.35 * spread), max(accuracies) + max(0.4, 0.35 * spread)
        front = pareto_front(points)
        axes.step(
            [latency for latency, _ in front] + [reach],
            [accuracy for _, accuracy in front] + [front[-1][1]],
            where="post",
            color=MUTED,
            linewidth=1.2,
            linestyle=(0, (4, 3)),
        )
        for row, (latency, accuracy) in zip(rows, points, strict=True):
            colour = colour_of(row.variant, names)
            axes.plot(
                latency,
                accuracy,
                marker=marker_of(row.variant, names),
                color=colour,
                markersize=10,
                markeredgecolor=SURFACE,
                linestyle="none",
            )
            at_right = latency < 0.75 * reach
            axes.annotate(
                row.variant,
                (latency, accuracy),
                xytext=(9 if at_right else -9, 7),
                textcoords="offset points",
                ha="left" if at_right else "right",
                fontsize=11,
            )
        axes.set_xlim(0, reach)
        axes.set_ylim(low, high)
        axes.set_xlabel("median latency, ms")
        axes.set_ylabel("top-1 accuracy, %")
        said = "; ".join(
            f"{row.variant}: {spell_latency(row.latency_ns.p50)}, {spell_percent(row.accuracy)}" for row in rows
        )
        return plot_from_figure(
            figure,
            key=key,
            title=f"Accuracy against latency, {spell_setting(setting, content)}",
            description=f"Up and to the left is better; the dashed steps join what nothing beats in both. {said}.",
        )


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (latency, accuracy) that no other beats or equals in both, by growing latency."""
    front: list[tuple[float, float]] = []
    for latency, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or accuracy > front[-1][1]:
            front.append((latency, accuracy))
    return front


def distribution_plot(content: ReportContent, setting: Setting, *, key: str) -> Plot | None:
    """The share of runs that took at most so long, for each variant."""
    rows = content.rows_at(setting)
    if not rows:
        return None
    names = _variants(content)
    with drawing(height_inches=3.1) as figure:
        axes = figure.subplots()
        for row in rows:
            shares = [100 * step / (len(row.distribution_ns) - 1) for step in range(len(row.distribution_ns))]
            axes.plot(
                [value / 1e6 for value in row.distribution_ns],
                shares,
                color=colour_of(row.variant, names),
                linewidth=2.2,
                label=row.variant,
            )
        slowest = max(_nearly_slowest(row) for row in rows) / 1e6
        axes.set_xlim(0, slowest * 1.1)
        axes.set_ylim(0, 100)
        axes.set_xlabel("latency, ms")
        axes.set_ylabel("runs at most as slow, %")
        figure.legend(loc="outside upper left", ncols=min(4, len(rows)))
        said = "; ".join(f"{row.variant}: median {spell_latency(row.latency_ns.p50)}" for row in rows)
        return plot_from_figure(
            figure,
            key=key,
            title=f"Latency of single runs, {spell_setting(setting, content)}",
            description=f"The steeper a line, the steadier the variant; the slowest 2.5% may lie outside. {said}.",
        )


def widths_plot(content: ReportContent) -> Plot | None:
    """The width of every layer, dense behind pruned."""
    layers: list[dict[str, Any]] = [
        layer
        for layer in content.manifest.pruning.get("layers", ())
        if layer.get("dense") and layer.get("pruned") is not None
    ]
    if not layers:
        return None
    names = _variants(content)
    dense, pruned = [layer["dense"] for layer in layers], [layer["pruned"] for layer in layers]
    few = len(layers) <= _NAMED_LAYERS
    with drawing(height_inches=1.0 + 0.24 * len(layers) if few else 3.1) as figure:
        axes = figure.subplots()
        places = range(len(layers))
        solid, pale = colour_of("pruned", names), colour_of("dense", names)
        if few:
            axes.barh(places, dense, height=0.78, label="dense", color=pale, alpha=0.35)
            axes.barh(places, pruned, height=0.78, label="pruned", color=solid)
            axes.set_yticks(places, [str(layer["name"]) for layer in layers], fontsize=9)
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
    names = _variants(content)
    scale, label = (100, "top-1 accuracy, %") if measure == "accuracy" else (1, "loss")
    with drawing(height_inches=3.1) as figure:
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
                label=variant,
            )
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel(label)
        figure.legend(loc="outside upper left", ncols=min(4, len(histories)))
        lengths = ", ".join(f"{variant} {len(history)}" for variant, history in histories.items())
        return plot_from_figure(
            figure, key="history", title="Training", description=f"One point an epoch. Epochs: {lengths}."
        )


def _nearly_slowest(row: Row) -> float:
    return row.distribution_ns[-2] if len(row.distribution_ns) > 1 else row.latency_ns.p50


def _variants(content: ReportContent) -> tuple[str, ...]:
    measured = [row.variant for row in content.result.rows] if content.result is not None else []
    return tuple(dict.fromkeys([*content.manifest.variants, *measured]))


def _baseline(content: ReportContent) -> str:
    return "dense" if content.result is None else content.result.baseline


def _claims(content: ReportContent) -> tuple[Any, ...]:
    return content.result.claims if content.result is not None else ()
