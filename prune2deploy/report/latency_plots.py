"""A latency target drawn: importance against time by group, the widths that were chosen, and a family's way down."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from prune2deploy.bench.subjects import PRUNED
from prune2deploy.report.canvas import (
    ACCENT,
    INK,
    MUTED,
    SURFACE,
    WIDTH_INCHES,
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
from prune2deploy.report.figures import spell_latency, spell_percent
from prune2deploy.report.latency_words import spell_gain, spell_share, target_fraction

_NAMED_GROUPS = 40
_LABELS = 6
# Of text of 9 points, in shares of the drawn area: the width of a letter, the height of a line; and half a point.
_LETTER, _LINE, _DOT = 5.2 / (72 * 0.8 * WIDTH_INCHES), 0.075, 0.025

_GROUPS, _BRANCHES, _AVERAGE = "group", "whole branch", "plan's average"
_THIS_PLAN, _BY_FLOPS = "this plan", "by FLOPs"


def latency_plots(content: ReportContent) -> Iterator[Plot | None]:
    """The exchange of importance for time and the widths of one network, or the way down of a family."""
    told = content.latency_targets
    if len(told) > 1:
        yield family_plot(told)
    elif told:
        (document,) = told.values()
        yield exchange_plot(document)
        yield chosen_widths_plot(document)


def exchange_plot(document: Mapping[str, Any]) -> Plot | None:
    """Importance lost against time gained, a point for each group that was cut; the largest are named."""
    # What left with a branch is told by the branch.
    groups = [group for group in document.get("groups", ()) if 0 < group["kept"] < group["dense"]]
    branches = [branch for branch in document.get("branches", ()) if branch["removed"]]
    entries = [*groups, *branches]
    if not entries:
        return None
    unit, divisor = _unit(max(abs(entry["saved_ns"]) for entry in entries))
    gained_ns = sum(entry["saved_ns"] for entry in entries)
    lost = sum(entry["importance_lost"] for entry in entries)
    labels = [_GROUPS, *([_BRANCHES] if branches else []), *([_AVERAGE] if gained_ns > 0 else [])]
    with drawing(height_inches=2.6 + legend_inches(labels)) as figure:
        axes = figure.subplots()
        for some, marker, label in ((groups, "o", _GROUPS), (branches, "D", _BRANCHES)):
            axes.plot(
                [entry["saved_ns"] / divisor for entry in some],
                [100 * entry["importance_lost"] for entry in some],
                marker=marker,
                color=ACCENT,
                markersize=8,
                markeredgecolor=SURFACE,
                linestyle="none",
                label=label if some else None,
            )
        low, high = min(0.0, *(entry["saved_ns"] for entry in entries)), max(entry["saved_ns"] for entry in entries)
        left, right = 1.08 * low / divisor, 1.12 * max(high, 1.0) / divisor
        top = 122 * max(max(entry["importance_lost"] for entry in entries), 1e-6)
        if gained_ns > 0:
            slope = 100 * lost / (gained_ns / divisor)
            axes.plot([0, right], [0, slope * right], color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)), label=_AVERAGE)
        _name_points(axes, entries, divisor, (left, right), top)
        axes.set_xlim(left, right)
        axes.set_ylim(-0.03 * top, top)
        axes.set_xlabel(f"gained, {unit}")
        axes.set_ylabel("importance lost, %")
        legend_above(figure, labels)
        said = "; ".join(
            f"{entry['name']}: {spell_percent(entry['importance_lost'], digits=2)} for {spell_gain(entry['saved_ns'])}"
            for entry in entries
        )
        return plot_from_figure(
            figure,
            key="latency-exchange",
            title="Importance lost against time gained",
            description=(
                "Each point is what one cut gives and gains by itself, the others as they are: best is low and far "
                "to the right. Groups above the dashed line paid more for a millisecond than the plan does on average."
            ),
            figures=f"{said}.",
        )


def chosen_widths_plot(document: Mapping[str, Any]) -> Plot | None:
    """The width of every group, dense behind kept; marks where FLOPs would have chosen."""
    groups = list(document.get("groups", ()))
    if not groups:
        return None
    places = range(len(groups))
    dense, kept = [group["dense"] for group in groups], [group["kept"] for group in groups]
    chosen = [(place, group["flop_optimal"]) for place, group in enumerate(groups) if _is_compared(group)]
    few = len(groups) <= _NAMED_GROUPS
    solid, pale = colour_of(PRUNED, ()), colour_of("dense", ())
    labels = ["dense", "kept", *([_BY_FLOPS] if chosen else [])]
    with drawing(height_inches=0.8 + 0.24 * len(groups) + legend_inches(labels) if few else 2.7) as figure:
        axes = figure.subplots()
        at, values = [place for place, _ in chosen], [width for _, width in chosen]
        marks: dict[str, Any] = {"color": INK, "linestyle": "none", "label": _BY_FLOPS if chosen else None}
        if few:
            axes.barh(places, dense, height=0.78, label="dense", color=pale, alpha=0.35)
            axes.barh(places, kept, height=0.78, label="kept", color=solid)
            axes.plot(values, at, marker="|", markersize=13, markeredgewidth=2, **marks)
            axes.set_yticks(places, [shortened(str(group["name"])) for group in groups], fontsize=9)
            axes.set_ylim(len(groups) - 0.4, -0.6)
            axes.set_xlabel("channels")
            axes.grid(visible=False, axis="y")
        else:
            axes.bar(places, dense, width=1.0, label="dense", color=pale, alpha=0.35)
            axes.bar(places, kept, width=1.0, label="kept", color=solid)
            axes.plot(at, values, marker="_", markersize=4, markeredgewidth=1.6, **marks)
            axes.set_xlim(-0.5, len(groups) - 0.5)
            axes.set_xlabel("group, from input to output")
            axes.set_ylabel("channels")
            axes.grid(visible=False, axis="x")
        legend_above(figure, labels)
        wider = sum(group["kept"] > group["flop_optimal"] for group in groups if _is_compared(group))
        narrower = sum(group["kept"] < group["flop_optimal"] for group in groups if _is_compared(group))
        against = (
            f" The marks are the widths that FLOPs would have chosen for the same kept importance: {wider} "
            f"{'group is' if wider == 1 else 'groups are'} wider here, {narrower} narrower."
            if chosen
            else ""
        )
        return plot_from_figure(
            figure,
            key="latency-widths",
            title="Widths chosen for latency",
            description=f"{sum(kept)} of {sum(dense)} channels stay in {len(groups)} groups.{against}",
        )


def family_plot(told: Mapping[str, Mapping[str, Any]]) -> Plot:
    """Kept importance against measured latency, a point for each network, with what FLOPs would have chosen."""
    documents = sorted(told.items(), key=lambda pair: pair[1]["ratio"])
    compared = [document for _, document in documents if document.get("flop_optimal") is not None]
    labels = [_THIS_PLAN, *([_BY_FLOPS] if compared else [])]
    with drawing(height_inches=2.5 + legend_inches(labels)) as figure:
        axes = figure.subplots()
        shares = [100 * document["ratio"] for _, document in documents]
        kept = [100 * document["importance_kept"] for _, document in documents]
        colour = colour_of(PRUNED, ())
        axes.plot(shares, kept, marker=marker_of(PRUNED, ()), color=colour, markersize=8, linewidth=2, label=_THIS_PLAN)
        for (_, document), share, height in zip(documents, shares, kept, strict=True):
            if document["low"] is not None and document["high"] is not None:
                ends = [100 * document["low"], 100 * document["high"]]
                axes.plot(ends, [height, height], color=colour, linewidth=3)
            axes.axvline(100 * target_fraction(document), color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
            axes.annotate(
                spell_share(document["ratio"]),
                (share, height),
                xytext=(-6, 7),
                textcoords="offset points",
                ha="right",
                fontsize=10,
            )
        axes.plot(
            [100 * document["flop_optimal"]["predicted_ns"] / document["dense_ns"] for document in compared],
            [100 * document["flop_optimal"]["importance_kept"] for document in compared],
            marker=marker_of("reduced", ()),
            color=colour_of("reduced", ()),
            markersize=6,
            linewidth=1.4,
            label=_BY_FLOPS if compared else None,
        )
        axes.margins(x=0.16, y=0.14)
        axes.set_xlabel("latency, % of dense")
        axes.set_ylabel("importance kept, %")
        legend_above(figure, labels)
        said = "; ".join(
            f"{variant}: {spell_share(document['ratio'])} of dense, {spell_latency(document['pruned_ns'])}, "
            f"{spell_percent(document['importance_kept'])} kept"
            for variant, document in documents
        )
        return plot_from_figure(
            figure,
            key="latency-family",
            title="Importance kept at each latency",
            description=(
                "Up and to the left is better; dashed lines are the targets. Latencies of this plan were measured; "
                "those of FLOP-optimal plans that keep as much importance are the latency table's."
            ),
            figures=f"{said}.",
        )


def _name_points(
    axes: Axes, entries: Sequence[Mapping[str, Any]], divisor: float, reach: tuple[float, float], top: float
) -> None:
    """The names of the largest cuts beside their points, as far as there is room."""
    span = max(entry["saved_ns"] for entry in entries) or 1.0, max(entry["importance_lost"] for entry in entries) or 1.0
    ordered = sorted(entries, key=lambda entry: -max(entry["saved_ns"] / span[0], entry["importance_lost"] / span[1]))

    def place_across(entry: Mapping[str, Any]) -> float:
        """Where a point lies between left and right, in [0, 1]."""
        share: float = (entry["saved_ns"] / divisor - reach[0]) / (reach[1] - reach[0])
        return share

    # What a name must keep off: begin, end and height of every point and of the names before it, and how far above.
    taken = [
        (place_across(entry) - _DOT, place_across(entry) + _DOT, 100 * entry["importance_lost"] / top, 2 * _DOT)
        for entry in entries
    ]
    named = 0
    for entry in ordered:
        name = shortened(str(entry["name"]))
        across = place_across(entry)
        at_right = across > 0.5
        begin = across - _LETTER * len(name) if at_right else across
        end, height = begin + _LETTER * len(name), 100 * entry["importance_lost"] / top + _LINE
        if named == _LABELS or any(
            begin < other_end and other_begin < end and abs(height - other) < clear
            for other_begin, other_end, other, clear in taken
        ):
            continue
        named += 1
        taken.append((begin, end, height, _LINE))
        axes.annotate(
            name,
            (entry["saved_ns"] / divisor, 100 * entry["importance_lost"]),
            xytext=(4 if at_right else -4, 6),
            textcoords="offset points",
            ha="right" if at_right else "left",
            fontsize=9,
        )


def _is_compared(group: Mapping[str, Any]) -> bool:
    return group.get("flop_optimal") is not None


def _unit(largest_ns: float) -> tuple[str, float]:
    """The unit of an axis and what to divide ns by."""
    return ("ms", 1e6) if largest_ns >= 1e6 else ("µs", 1e3)
