"""Plots of a measurement: speed-ups with their intervals, latency distributions, accuracy against latency."""

from collections.abc import Sequence

from prune2deploy.bench.claims.kinds import SPEEDUP
from prune2deploy.bench.result import Row
from prune2deploy.bench.subjects import OFFLINE
from prune2deploy.report.canvas import (
    INK,
    MUTED,
    SURFACE,
    Plot,
    colour_of,
    drawing,
    legend_above,
    legend_inches,
    marker_of,
    plot_from_figure,
    shortened,
)
from prune2deploy.report.content import ReportContent, Setting, spell_setting
from prune2deploy.report.figures import spell_interval, spell_latency, spell_percent, spell_ratio
from prune2deploy.report.judged import judged_in_words, judged_ns, scenario_of

_NAMED_BESIDE_MARKS = 3

_Key = tuple[str, str, str, int]
"""Variant, engine, precision and batch size: what a row is told by."""


def speedup_plot(content: ReportContent) -> Plot | None:
    """Speed-ups with their intervals, the ratio of every build as a dot below; the line at 1 means no difference."""
    shown = [
        (f"{shortened(row.variant)}\n{_spell_validity(setting, content)}", row, interval)
        for setting in content.settings
        for row in content.rows_at(setting)
        if (interval := row.speedup_against(content.baseline)) is not None
    ]
    if not shown:
        return None
    claims = _claimed_ratios(content)
    reach = [1.0]
    with drawing(height_inches=0.9 + 0.62 * len(shown)) as figure:
        axes = figure.subplots()
        for place, (_, row, interval) in enumerate(shown):
            colour = colour_of(row.variant, content.names)
            if interval.low is not None and interval.high is not None:
                axes.plot([interval.low, interval.high], [place, place], color=colour, linewidth=3)
                reach += [interval.low, interval.high]
            marker = marker_of(row.variant, content.names)
            axes.plot(interval.estimate, place, marker=marker, color=colour, markersize=8)
            axes.annotate(
                spell_ratio(interval.estimate),
                (interval.estimate, place),
                xytext=(0, 9),
                textcoords="offset points",
                ha="center",
                fontsize=10,
            )
            ratios = build_ratios(content, row)
            below = [place + 0.24] * len(ratios)
            axes.plot(ratios, below, ".", color=colour, alpha=0.45, markersize=7, markeredgewidth=0)
            asked = claims.get(_key(row), ())
            axes.plot(asked, [place] * len(asked), "|", markersize=18, markeredgewidth=2, color=INK)
            reach += [interval.estimate, *ratios, *asked]
        axes.axvline(1, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.set_yticks(range(len(shown)), [label for label, _, _ in shown])
        axes.set_ylim(len(shown) - 0.4, -0.75)
        margin = 0.08 * max(max(reach) - min(reach), 0.1)
        axes.set_xlim(min(reach) - margin, max(reach) + margin)
        axes.set_xlabel(f"times the speed of {shortened(content.baseline)}")
        axes.grid(visible=False, axis="y")
        said = "; ".join(
            f"{label.replace(chr(10), ', ')}: {spell_ratio(interval.estimate)}"
            f" ({spell_interval(interval.low, interval.high)})"
            for label, _, interval in shown
        )
        return plot_from_figure(
            figure,
            key="speedups",
            title=f"Speed-up against {content.baseline}",
            description=(
                "The large mark is the estimate, the bar its interval; each small dot below is one engine build, in a "
                f"process of its own{'; tall dark marks are claims' if claims else ''}."
            ),
            figures=f"{said}.",
        )


def build_ratios(content: ReportContent, row: Row) -> list[float]:
    """How many times as fast as the baseline a row was in each build. Shape: (builds,); empty without a baseline."""
    for other in content.rows_at((row.engine, row.precision, row.batch)):
        if other.variant == content.baseline and len(other.build_medians_ns) == len(row.build_medians_ns):
            return [base / own for base, own in zip(other.build_medians_ns, row.build_medians_ns, strict=True)]
    return []


def _spell_validity(setting: Setting, content: ReportContent) -> str:
    spelled = spell_setting(setting, content)
    return spelled if content.invalid_because(setting) is None else f"{spelled}, INVALID"


def _claimed_ratios(content: ReportContent) -> dict[_Key, list[float]]:
    """What each row was to reach, of the claims about its speed against the baseline."""
    claims: dict[_Key, list[float]] = {}
    for claim in content.result.claims if content.result is not None else ():
        if claim.kind == SPEEDUP and claim.against == content.baseline and claim.batch is not None:
            claims.setdefault((claim.variant, claim.engine, claim.precision, claim.batch), []).append(claim.claim)
    return claims


def _key(row: Row) -> _Key:
    return row.variant, row.engine, row.precision, row.batch


def accuracy_latency_plot(content: ReportContent, setting: Setting, *, key: str) -> Plot | None:
    """Accuracy against the latency that is judged; the stepped line is the Pareto front. None without accuracies."""
    rows = [row for row in content.rows_at(setting) if row.accuracy is not None]
    if not rows:
        return None
    names, scenario = content.names, scenario_of(content.result)
    points = [(judged_ns(row, scenario) / 1e6, (row.accuracy or 0.0) * 100) for row in rows]
    latencies, accuracies = [point[0] for point in points], [point[1] for point in points]
    labels = [shortened(row.variant) for row in rows]
    legend = legend_inches(labels) if len(rows) > _NAMED_BESIDE_MARKS else 0.3
    with drawing(height_inches=2.4 + legend) as figure:
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
                label=shortened(row.variant),
            )
            if len(rows) > _NAMED_BESIDE_MARKS:
                continue
            at_right = latency < 0.75 * reach
            axes.annotate(
                shortened(row.variant),
                (latency, accuracy),
                xytext=(9 if at_right else -9, 7),
                textcoords="offset points",
                ha="left" if at_right else "right",
                fontsize=11,
            )
        if len(rows) > _NAMED_BESIDE_MARKS:
            legend_above(figure, labels)
        axes.set_xlim(0, reach)
        axes.set_ylim(low, high)
        axes.set_xlabel(f"{judged_in_words(scenario)} (ms)")
        axes.set_ylabel("top-1 accuracy, %")
        said = "; ".join(
            f"{row.variant}: {spell_latency(judged_ns(row, scenario))}, {spell_percent(row.accuracy)}" for row in rows
        )
        return plot_from_figure(
            figure,
            key=key,
            title=f"Accuracy against latency, {spell_setting(setting, content)}",
            description="Up and to the left is better; the dashed steps join what nothing beats in both.",
            figures=f"{said}.",
        )


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (latency, accuracy) that no other beats or equals in both, by growing latency."""
    front: list[tuple[float, float]] = []
    for latency, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or accuracy > front[-1][1]:
            front.append((latency, accuracy))
    return front


def distribution_plot(content: ReportContent, setting: Setting, *, key: str) -> Plot | None:
    """The share of runs that took at most so long, for each variant. None offline, where no run is timed by itself."""
    rows = content.rows_at(setting)
    if not rows or scenario_of(content.result) == OFFLINE:
        return None
    names = content.names
    labels = [shortened(row.variant) for row in rows]
    with drawing(height_inches=2.4 + legend_inches(labels)) as figure:
        axes = figure.subplots()
        for row, label in zip(rows, labels, strict=True):
            shares = [100 * step / (len(row.distribution_ns) - 1) for step in range(len(row.distribution_ns))]
            axes.plot(
                [value / 1e6 for value in row.distribution_ns],
                shares,
                color=colour_of(row.variant, names),
                linewidth=2.2,
                label=label,
            )
        axes.set_xlim(0, _shown_ns(rows) / 1e6)
        axes.set_ylim(0, 100)
        axes.set_xlabel("latency, ms")
        axes.set_ylabel("runs at most as slow, %")
        legend_above(figure, labels)
        said = "; ".join(f"{row.variant}: median {spell_latency(row.latency_ns.p50)}" for row in rows)
        return plot_from_figure(
            figure,
            key=key,
            title=f"Latency of single runs, {spell_setting(setting, content)}",
            description="The steeper a line, the steadier the variant; the slowest runs may lie outside.",
            figures=f"{said}.",
        )


def _shown_ns(rows: Sequence[Row]) -> float:
    """How far a plot of latencies reaches: nearly to the slowest run, but not so far that the medians fall together."""
    nearly_slowest = [row.distribution_ns[-2] for row in rows if len(row.distribution_ns) > 1]
    medians = [row.latency_ns.p50 for row in rows]
    return 1.1 * min(max([*nearly_slowest, *medians]), 2.5 * max(medians))
