"""What a method saw while it trained and pruned: the tables and plots of its findings.

Findings are the JSON object that a policy leaves in the manifest; what one of another version lacks is not shown.
"""

from collections.abc import Iterator

from matplotlib.ticker import MaxNLocator

from prune2deploy.report.canvas import Plot, colour_of, drawing, plot_from_figure
from prune2deploy.report.content import ReportContent
from prune2deploy.report.figures import spell_percent
from prune2deploy.report.table import Table


def method_tables(content: ReportContent) -> tuple[Table, ...]:
    """All tables of the findings, in reading order."""
    return ()


def method_plots(content: ReportContent) -> Iterator[Plot | None]:
    """All plots of a training that was pruned on the way, in reading order; None where there is nothing to draw."""
    yield size_plot(content)


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
    names = tuple(content.manifest.variants)
    with drawing(height_inches=3.1) as figure:
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
        figure.legend(loc="outside upper left", ncols=min(4, len(changing)))
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
