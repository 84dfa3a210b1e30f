"""What a method saw while it trained and pruned: the tables and plots of its findings.

Findings are the JSON object that a policy leaves with the training of ``pruned``; what one lacks is not shown.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from matplotlib.ticker import MaxNLocator

from prune2deploy.bench.subjects import PRUNED
from prune2deploy.report.canvas import (
    ACCENT,
    INK,
    MUTED,
    Plot,
    colour_of,
    drawing,
    legend_above,
    legend_inches,
    plot_from_figure,
)
from prune2deploy.report.content import ReportContent
from prune2deploy.report.figures import spell_number, spell_percent
from prune2deploy.report.table import Table

Series = Mapping[str, Sequence[tuple[float, float]]]
"""For each layer its points (epoch, value)."""

_SHOWN_ELSEWHERE = frozenset({"method", "flops", "parameters", "kept"})
_WHY = {"indicator": "", "fallback": ", the fallback", "fixed": ", as asked for"}


def method_tables(content: ReportContent) -> tuple[Table, ...]:
    """All tables of the findings, in reading order; empty ones where there is nothing to show."""
    findings = _findings(content)
    return (
        facts_table(findings),
        stability_table(findings),
        reconfigurations_table(findings),
        rounds_table(findings),
        steps_table(findings),
    )


def method_plots(content: ReportContent) -> Iterator[Plot | None]:
    """All plots of a training that was pruned on the way, in reading order; None where there is nothing to draw."""
    findings = _findings(content)
    yield size_plot(content)
    yield stability_plot(findings)
    yield surviving_plot(content)
    yield densities_plot(findings)


def facts_table(findings: Mapping[str, Any]) -> Table:
    """Single figures, such as the coefficient of a penalty or the seconds that scoring took."""
    rows: list[tuple[str, str]] = []
    for name, value in findings.items():
        if name in _SHOWN_ELSEWHERE or value is None:
            continue
        if isinstance(value, Mapping):
            rows += [
                (f"{name}: {inner}".replace("_", " "), spell_number(one))
                for inner, one in value.items()
                if one is not None and not isinstance(one, Mapping | list)
            ]
        elif not isinstance(value, list):
            rows.append((name.replace("_", " "), spell_number(value)))
    return Table(key="method", title="What the method found", columns=("what", "value"), rows=tuple(rows))


def stability_table(findings: Mapping[str, Any]) -> Table:
    """EPI after each epoch, and how many channels would have stayed."""
    rows = tuple(
        (str(point["epoch"]), spell_number(point["epi"]), spell_number(_total(point.get("widths"))))
        for point in _stability(findings)
    )
    return Table(
        key="method-epi",
        title="Stability of the widths that would stay",
        columns=("epoch", "EPI", "channels that would stay"),
        rows=rows,
        numeric=frozenset({0, 1, 2}),
        note="The early pruning indicator: 1 means that the widths equal those of the epochs before.",
    )


def reconfigurations_table(findings: Mapping[str, Any]) -> Table:
    """One row for each reconfiguration of PruneTrain."""
    rows = tuple(
        (
            str(one["epoch"]),
            str(one["dead"]),
            str(one["removed"]),
            str(one["kept_for_alignment"] + one["kept_as_last"]),
            str(len(one["branches"])),
            spell_percent(one["flops"]),
            spell_percent(one["parameters"]),
            str(one["batch_size"]),
        )
        for one in findings.get("reconfigurations", ())
    )
    columns = ("after epoch", "dead", "removed", "dead kept", "branches", "FLOPs", "parameters", "batch")
    return Table(
        key="method-reconfigurations",
        title="Reconfigurations",
        columns=columns,
        rows=rows,
        numeric=frozenset(range(len(columns))),
        note="Dead channels are kept where widths are aligned, and where a layer would be empty.",
    )


def rounds_table(findings: Mapping[str, Any]) -> Table:
    """One row for each round of activation density."""
    rows = tuple(
        (
            str(number),
            str(one["begins_after"]),
            str(one["epochs"]),
            spell_percent(_mean((one["densities"] or {}).values())),
            spell_percent(one["training_accuracy"]),
            spell_percent(one["flops"]),
            spell_percent(one["parameters"]),
        )
        for number, one in enumerate(findings.get("rounds", ()))
    )
    columns = ("round", "after epoch", "epochs", "mean density", "training accuracy", "FLOPs", "parameters")
    return Table(
        key="method-rounds", title="Rounds", columns=columns, rows=rows, numeric=frozenset(range(len(columns)))
    )


def steps_table(findings: Mapping[str, Any]) -> Table:
    """The width of every layer after each cut, and in rounds of activation density how dense it was before the next."""
    cuts = list(findings.get("reconfigurations", ())) or list(findings.get("rounds", ()))
    layers = list(dict.fromkeys(layer for cut in cuts for layer in cut["widths"]))
    columns, rows = ["layer"], [[layer] for layer in layers]
    for number, cut in enumerate(cuts):
        columns.append(f"epoch {cut['epoch']}" if "epoch" in cut else f"round {number}")
        for row, layer in zip(rows, layers, strict=True):
            row.append(spell_number(cut["widths"].get(layer)))
        if cut.get("densities"):
            columns.append("density")
            for row, layer in zip(rows, layers, strict=True):
                row.append(spell_percent(cut["densities"].get(layer)))
    return Table(
        key="method-widths",
        title="Widths on the way",
        columns=tuple(columns),
        rows=tuple(tuple(row) for row in rows),
        numeric=frozenset(range(1, len(columns))),
    )


def size_plot(content: ReportContent) -> Plot | None:
    """The FLOPs of the network over the epochs of each training that changed them, as a share of dense."""
    if content.dense is None or not content.dense.flops:
        return None
    sizes = {
        variant.name: [(epoch["epoch"], epoch["flops"] / content.dense.flops) for epoch in variant.training["history"]]
        for variant in content.variants
        if any("flops" in epoch for epoch in variant.training.get("history", ()))
    }
    changing = {
        name: [*points, (points[-1][0] + 1, content.flops_fraction_of(name) or 0.0)]
        for name, points in sizes.items()
        if len({size for _, size in points} | {content.flops_fraction_of(name)}) > 1
    }
    if not changing:
        return None
    names = content.names
    with drawing(height_inches=2.4 + legend_inches(tuple(changing))) as figure:
        axes = figure.subplots()
        for name, points in changing.items():
            axes.step(
                [epoch - 0.5 for epoch, _ in points],
                [size * 100 for _, size in points],
                where="post",
                color=colour_of(name, names),
                linewidth=2.2,
                label=name,
            )
        axes.set_ylim(0, 105)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel("FLOPs of dense, %")
        legend_above(figure, tuple(changing))
        said = "; ".join(
            f"{name}: {spell_percent(points[0][1])} in the first epoch, {spell_percent(points[-1][1])} at the end"
            for name, points in changing.items()
        )
        return plot_from_figure(
            figure,
            key="sizes",
            title="Size of the network while it trained",
            description=f"The area below a line is what its training cost. {said}.",
        )


def stability_plot(findings: Mapping[str, Any]) -> Plot | None:
    """EPI over the epochs, the threshold, and when was pruned."""
    points = [(point["epoch"], point["epi"]) for point in _stability(findings) if point["epi"] is not None]
    if not points:
        return None
    threshold, pruned = findings.get("threshold"), findings.get("pruned")
    with drawing(height_inches=2.7) as figure:
        axes = figure.subplots()
        axes.plot(*zip(*points, strict=True), color=ACCENT, marker="o", markersize=4, linewidth=2.2, label="EPI")
        if threshold is not None:
            axes.axhline(threshold, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)), label="threshold")
        if pruned is not None:
            axes.axvline(pruned["epoch"], color=INK, linewidth=1.2, label="pruned")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlim(0.5, max(point["epoch"] for point in _stability(findings)) + 0.5)
        axes.set_ylabel("stability of widths")
        figure.legend(loc="outside upper left", ncols=3)
        when = "not pruned" if pruned is None else f"pruned after epoch {pruned['epoch']}{_WHY[pruned['how']]}"
        return plot_from_figure(
            figure,
            key="epi",
            title="When to prune",
            description=f"1 means that the widths that would stay equal those of the epochs before; {when}.",
        )


def surviving_plot(content: ReportContent) -> Plot | None:
    """The share of each layer's channels that PruneTrain left, over the epochs."""
    findings = _findings(content)
    cuts = findings.get("reconfigurations", ())
    if not cuts:
        return None
    layers = content.pruning["layers"]
    dense = {layer["name"]: layer["dense"] for layer in layers if layer["name"] in cuts[0]["widths"]}
    ends = [*cuts, {**cuts[-1], "epoch": findings["schedule"]["epochs"]}]
    series = {
        layer: [(0, 100.0), *((cut["epoch"], 100 * cut["widths"][layer] / width) for cut in ends)]
        for layer, width in dense.items()
    }
    left, all_of_them = _total(cuts[-1]["widths"]), _total(dense)
    return _layers_plot(
        series,
        key="surviving",
        title="Channels that survive",
        label="channels of dense, %",
        description=f"{left} of {all_of_them} channels stay after {_counted(len(cuts), 'reconfiguration')}.",
        steps=True,
    )


def densities_plot(findings: Mapping[str, Any]) -> Plot | None:
    """The activation density of each layer, over the epochs."""
    points = [point for point in findings.get("curve", ()) if "densities" in point]
    if not points:
        return None
    series = {
        layer: [
            (point["epoch"], 100 * point["densities"][layer])
            for point in points
            if point["densities"].get(layer) is not None
        ]
        for layer in points[0]["densities"]
    }
    cuts = [earlier["epoch"] for earlier, later in pairwise(points) if later["round"] != earlier["round"]]
    ended = f" They ended because {findings['stopped']}." if findings.get("stopped") else ""
    return _layers_plot(
        series,
        key="densities",
        title="Activation densities",
        label="activations not zero, %",
        description=f"Upright lines show {_counted(len(cuts), 'cut')}.{ended}",
        cuts=cuts,
    )


def _layers_plot(
    series: Series,
    *,
    key: str,
    title: str,
    label: str,
    description: str,
    cuts: Sequence[float] = (),
    steps: bool = False,
) -> Plot:
    """A thin line for each layer, a strong one for their mean."""
    with drawing(height_inches=2.7) as figure:
        axes = figure.subplots()
        style: Any = "steps-post" if steps else "default"
        for number, points in enumerate(series.values()):
            axes.plot(
                [epoch for epoch, _ in points],
                [value for _, value in points],
                color=ACCENT,
                alpha=0.4,
                linewidth=1.2,
                drawstyle=style,
                label="one layer" if number == 0 else None,
            )
        epochs = sorted({epoch for points in series.values() for epoch, _ in points})
        values = [[value for points in series.values() for at, value in points if at == epoch] for epoch in epochs]
        axes.plot(
            epochs, [sum(some) / len(some) for some in values], color=INK, linewidth=2.2, drawstyle=style, label="mean"
        )
        for cut in cuts:
            axes.axvline(cut, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.set_ylim(0, 105)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel(label)
        figure.legend(loc="outside upper left", ncols=2)
        return plot_from_figure(figure, key=key, title=title, description=description)


def _findings(content: ReportContent) -> Mapping[str, Any]:
    pruned = content.records.get(PRUNED)
    return {} if pruned is None else pruned.training.get("findings", {})


def _stability(findings: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [point for point in findings.get("curve", ()) if "epi" in point]


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _total(widths: Mapping[str, int] | Sequence[int] | None) -> int | None:
    if widths is None:
        return None
    return sum(widths.values() if isinstance(widths, Mapping) else widths)


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
