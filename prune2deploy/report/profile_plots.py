"""Where the time goes, drawn: the parts of a run of each variant, and what its FLOPs alone would take."""

from collections.abc import Iterator, Mapping, Sequence

from prune2deploy.bench.aside.attribution import attribution_of
from prune2deploy.bench.aside.profile import Kind, Profile
from prune2deploy.bench.result import Row
from prune2deploy.report.canvas import (
    ACCENT,
    INK,
    LINE,
    MUTED,
    Plot,
    colour_of,
    drawing,
    legend_above,
    legend_inches,
    plot_from_figure,
    shortened,
)
from prune2deploy.report.content import ReportContent, Setting, spell_setting
from prune2deploy.report.figures import spell_latency, spell_percent

_COMPUTE, _PADDING, _BETWEEN = "computing", "of that, padding", "between layers"
_KINDS = {Kind.MEMORY: "memory-bound", Kind.REFORMAT: "reformatting", Kind.OTHER: "unknown"}
_OTHERS = ("memory-bound", "reformatting")
_COLOURS: Mapping[str, tuple[str, float]] = {
    _COMPUTE: (ACCENT, 1.0),
    _PADDING: (ACCENT, 0.4),
    **{part: (colour_of(part, _OTHERS), 1.0) for part in _OTHERS},
    _BETWEEN: (MUTED, 1.0),
    "unknown": (LINE, 1.0),
}
_LEAST_SHARE = 0.0005


def profile_plots(content: ReportContent) -> Iterator[Plot]:
    """One drawing for each setting that was profiled."""
    for number, setting in enumerate(content.settings):
        rows = [row for row in content.rows_at(setting) if row.profile is not None]
        if rows:
            yield parts_plot(content, setting, rows, key=f"parts{number}")


def parts_plot(content: ReportContent, setting: Setting, rows: Sequence[Row], *, key: str) -> Plot:
    """A bar for each variant, as long as its median, in parts; the tall mark is its share of the FLOPs of dense."""
    parts = [parts_of(row) for row in rows]
    shown = [part for part in _COLOURS if any(shares.get(part, 0) >= _LEAST_SHARE for shares in parts)]
    scale = max(row.latency_ns.p50 for row in rows)
    unit, divisor = ("ms", 1e6) if scale >= 1e6 else ("µs", 1e3)
    with drawing(height_inches=0.85 + 0.46 * len(rows) + legend_inches(shown)) as figure:
        axes = figure.subplots()
        left = [0.0] * len(rows)
        places = range(len(rows))
        for part in shown:
            widths = [
                shares.get(part, 0.0) * row.latency_ns.p50 / divisor for row, shares in zip(rows, parts, strict=True)
            ]
            colour, alpha = _COLOURS[part]
            axes.barh(places, widths, left=left, height=0.62, color=colour, alpha=alpha, label=part)
            left = [start + width for start, width in zip(left, widths, strict=True)]
        for place, row in enumerate(rows):
            paid = paid_ns(row)
            if paid is not None:
                axes.plot(paid / divisor, place, "|", markersize=20, markeredgewidth=2, color=INK)
        axes.set_yticks(places, [shortened(row.variant) for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(0, 1.04 * scale / divisor)
        axes.set_xlabel(f"one run, {unit}")
        axes.grid(visible=False, axis="y")
        legend_above(figure, shown)
        said = "; ".join(
            f"{row.variant} {spell_latency(row.latency_ns.p50)}: "
            + ", ".join(f"{part} {spell_percent(shares[part])}" for part in shown if part in shares)
            for row, shares in zip(rows, parts, strict=True)
        )
        return plot_from_figure(
            figure,
            key=key,
            title=f"Where the time goes, {spell_setting(setting, content)}",
            description=(
                "The parts of one run. A tall mark is what a variant would take if time followed FLOPs: the time of "
                f"{content.baseline} by the share of its FLOPs that the variant kept."
            ),
            figures=f"{said}.",
        )


def parts_of(row: Row) -> dict[str, float]:
    """The share of each part in a run of a row that has a profile. The shares sum to 1."""
    assert row.profile is not None
    profile, attribution = Profile.from_document(row.profile), attribution_of(row)
    shares = dict.fromkeys(_COLOURS, 0.0)
    for layer, share in zip(profile.layers, profile.shares, strict=True):
        shares[_KINDS.get(layer.kind, _COMPUTE)] += share
    if attribution is not None:
        shares[_COMPUTE] -= attribution.padded
        shares[_PADDING] = attribution.padded
    shares[_BETWEEN] = profile.between
    return shares


def paid_ns(row: Row) -> float | None:
    """What a row would take if time followed FLOPs, None where nothing was compared. Unit: ns."""
    attribution = attribution_of(row)
    return None if attribution is None else attribution.flop_yield * row.latency_ns.p50
