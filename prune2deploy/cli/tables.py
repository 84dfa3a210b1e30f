"""Results as tables: which columns a command shows, and how a table is drawn with and without a terminal."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prune2deploy.pipeline.outcomes import (
    AlignmentReport,
    EngineFile,
    ExportedFile,
    FrozenRow,
    GroupRow,
    PaddedRow,
    Table,
    VariantAlignment,
    VariantRow,
    WidthRow,
)

if TYPE_CHECKING:
    from rich.table import Table as RichTable

_NOTHING = "-"
_PHASES = ("training", "evaluating", "deciding", "cutting", "saving")
_MOST_PADDED_ROWS = 12
_INEXACT = "inexact: a norm, a mean or the like takes its statistics over these channels, which a cut changes"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTable:
    """A table of ours, as ``pipeline.outcomes.Table`` describes one."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: frozenset[int] = frozenset()
    title: str = ""
    note: str = ""


def variants_table(variants: Sequence[VariantRow]) -> TextTable:
    """Variants with their cost, its share of dense, and accuracy."""
    return TextTable(
        columns=("variant", "FLOPs", "of dense", "parameters", "of dense", "accuracy"),
        rows=tuple(
            (
                row.name,
                count(row.flops),
                f"{row.flops_fraction:.3f}",
                count(row.parameters),
                f"{row.parameters_fraction:.3f}",
                percent(row.accuracy),
            )
            for row in variants
        ),
        numeric=frozenset({1, 2, 3, 4, 5}),
    )


def groups_table(groups: Sequence[GroupRow]) -> TextTable:
    """The widths of a network, with the pruned ones where a run has them."""
    with_pruned = any(group.pruned_width is not None for group in groups)
    columns = ["group", "width", "channels"] + ["pruned"] * with_pruned + ["kind"]
    rows = []
    for group in groups:
        kinds = ["residual stream"] * group.stream + ["inexact"] * (not group.exact)
        pruned = [_NOTHING if group.pruned_width is None else str(group.pruned_width)] * with_pruned
        rows.append((group.name, str(group.width), str(group.channels), *pruned, ", ".join(kinds) or "inside a block"))
    numeric = frozenset({1, 2, 3} if with_pruned else {1, 2})
    note = "" if all(group.exact for group in groups) else _INEXACT
    return TextTable(columns=tuple(columns), rows=tuple(rows), numeric=numeric, note=note)


def frozen_table(frozen: Sequence[FrozenRow]) -> TextTable:
    """What cannot be cut and why, with the share of the dense FLOPs that stays because of it."""
    rows = []
    for row in frozen:
        operator = f" [{row.operator.removesuffix('.default')}]" if row.operator.startswith("aten.") else ""
        source = f" at {'/'.join(row.source.split('/')[-2:])}" if row.source else ""
        rows.append((share(row.flops_fraction), row.named or _NOTHING, f"{row.reason}{operator}{source}"))
    return TextTable(columns=("of FLOPs", "keeps its width", "because"), rows=tuple(rows), numeric=frozenset({0}))


def alignment_table(variant: VariantAlignment) -> TextTable:
    """The layers of a variant that are padded, with their widths and the aligned ones beside them."""
    shown = variant.rows[:_MOST_PADDED_ROWS]
    rows = tuple(
        (share(row.share), row.named, _kind_of(row), _beside(row.input), _beside(row.output), _states_off(row))
        for row in shown
    )
    note = "in brackets: the nearest aligned widths"
    if any("narrow" in row[-1] for row in rows):
        note += "; narrow: under four granules when dense, so cut without alignment"
    if hidden := variant.rows[len(shown) :]:
        note += f"\n{len(hidden)} more rows, {share(sum(row.share for row in hidden))}: see --json"
    columns = ("padding", "layer", "kind", "reads", "makes", "width is")
    return TextTable(columns=columns, rows=rows, numeric=frozenset({0}), note=note)


def spell_alignment(report: AlignmentReport, variant: VariantAlignment) -> str:
    """What padding costs a variant, in one line."""
    setting = f"{report.engine or 'any engine'} at {report.precision} (granule {report.granule})"
    if not variant.layers_padded:
        return f"{variant.variant} on {setting}: nothing is padded, all {variant.layers_total} layers are aligned"
    return (
        f"{variant.variant} on {setting}: {share(variant.padding_share)} of the FLOPs go into padding, "
        f"in {variant.layers_padded} of {variant.layers_total} layers"
    )


def _kind_of(row: PaddedRow) -> str:
    several = row.groups > 1 and not row.operator.startswith("depthwise")
    return f"{row.operator}, {row.groups} groups" if several else row.operator


def _states_off(row: PaddedRow) -> str:
    """What the widths are that are off the granule."""
    return ", ".join(dict.fromkeys(width.state for width in (row.input, row.output) if width.above != width.width))


def _beside(width: WidthRow) -> str:
    """A width, and in brackets the aligned ones where it is none."""
    if width.above == width.width:
        return str(width.width)
    return f"{width.width} ({width.above})" if width.below is None else f"{width.width} ({width.below}, {width.above})"


def exported_table(files: Sequence[ExportedFile]) -> TextTable:
    """ONNX files with their size, what was checked before they were written, and what they compute in."""
    checks = [name for name in _CHECKS if any(name in row.checks for row in files)]
    headings = [_CHECKS[name][0] for name in checks]
    return TextTable(
        columns=("variant", "precision", "size", "parity error", *headings, "computes in", "file"),
        rows=tuple(
            (
                row.variant,
                row.precision,
                size(row.bytes_total),
                f"{row.parity_max_error:.1e}",
                *(_CHECKS[name][1](row.checks.get(name)) for name in checks),
                row.computes or _NOTHING,
                str(row.file),
            )
            for row in files
        ),
        numeric=frozenset(range(2, 4 + len(checks))),
    )


def engines_table(files: Sequence[EngineFile]) -> TextTable:
    """Stored engines: their size, how long they took ("before" where they were there), what they compute in."""
    return TextTable(
        columns=("variant", "precision", "engine", "size", "built in", "computes in", "file"),
        rows=tuple(
            (
                row.variant,
                row.precision,
                row.engine,
                size(row.bytes_total),
                "before" if row.reused else f"{row.build_seconds:.1f} s",
                row.computes or _NOTHING,
                str(row.file),
            )
            for row in files
        ),
        numeric=frozenset({3, 4}),
    )


def doctor_tables(document: Mapping[str, Any]) -> tuple[TextTable, ...]:
    """The machine, its engines, and the optional packages."""
    machine, torch = document["machine"], document["torch"]
    facts = (
        ("p2d", document["versions"]["prune2deploy"]),
        ("python", machine["python"]),
        ("torch", f"{torch['version']} on {torch['device']}" if torch["works"] else f"unusable: {torch['reason']}"),
        ("system", machine["system"]),
        ("CPU", f"{machine['cpu']}, {machine['cores_usable']} cores usable"),
        ("memory", size(machine["memory_bytes"])),
        ("GPU", machine["gpu"] or "none"),
        ("disk", f"{size(machine['disk_free_bytes'])} free in {machine['folder']}"),
    )
    engines = tuple(
        (row["name"], _engine_state(row), row["version"] or _NOTHING, row["device"] or row["reason"] or _NOTHING)
        for row in document["engines"]
    )
    extras = tuple((row["name"], row["version"] or _NOTHING, row["purpose"]) for row in document["extras"])
    return (
        TextTable(columns=("this machine", ""), rows=facts),
        TextTable(columns=("engine", "state", "version", "device"), rows=engines),
        TextTable(columns=("optional", "version", "for"), rows=extras),
    )


def _engine_state(row: Mapping[str, Any]) -> str:
    if row["runs"]:
        return "runs"
    return "builds only" if row["builds"] else "not usable"


def count(value: int) -> str:
    """A count with the unit prefix of its size: 4.09 G, 25.56 M, 1.30 k."""
    for factor, prefix in ((10**12, " T"), (10**9, " G"), (10**6, " M"), (10**3, " k")):
        if value >= factor:
            return f"{value / factor:.2f}{prefix}"
    return str(value)


def flop_count(value: int) -> str:
    """FLOPs with the unit prefix of their number: 4.09 GFLOPs, 640 FLOPs."""
    text = count(value)
    return f"{text}FLOPs" if text[-1].isalpha() else f"{text} FLOPs"


def size(bytes_total: int) -> str:
    """A file size in binary units: 4.1 MiB."""
    for factor, unit in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if bytes_total >= factor:
            return f"{bytes_total / factor:.1f} {unit}"
    return f"{bytes_total} B"


def percent(fraction: float | None) -> str:
    """An accuracy: 98.4%."""
    return _NOTHING if fraction is None else f"{fraction:.1%}"


def share(fraction: float) -> str:
    """A share of the FLOPs: 12.3%, and <0.1% for what is little but not nothing."""
    return "<0.1%" if 0 < fraction < 0.0005 else f"{fraction:.1%}"


def spell_cost(cost: Mapping[str, Any]) -> str:
    """What a training cost, in one line: FLOPs against dense training, seconds by phase, throughput, memory."""
    parts = []
    if dense := cost.get("dense_training_flops"):
        done = cost["training_flops"]
        share_of_dense = f", {done / dense:.3f} of the {flop_count(dense)} that dense training takes"
        parts.append(flop_count(done) + (share_of_dense if done < dense else ""))
    seconds = {phase: cost.get("seconds", {}).get(phase, 0.0) for phase in _PHASES}
    seconds = {phase: value for phase, value in seconds.items() if value >= 0.05}
    if seconds:
        phases = ", ".join(f"{phase} {value:.1f}" for phase, value in seconds.items())
        parts.append(f"{sum(seconds.values()):.1f} s ({phases})")
    training = cost.get("seconds", {}).get("training")
    if training and cost.get("images"):
        parts.append(f"{cost['images'] / training:,.0f} images/s")
    if cost.get("peak_memory_bytes"):
        parts.append(f"peak memory {size(cost['peak_memory_bytes'])}")
    if cost.get("steps"):
        parts.append(f"{cost['steps']} steps")
    return "; ".join(parts)


def spell_latency_target(variant: str, latency: Mapping[str, Any]) -> str:
    """What a network that was cut to a latency takes of it, in one line; ``latency`` as the manifest keeps it."""
    threads, target = latency["threads"], latency["target"]
    measured = f"latency on {latency['engine']}, {latency['precision']}, batch {latency['batch']}"
    if threads is not None:
        measured += f", {threads} thread{'' if threads == 1 else 's'}"
    low, high = latency.get("low"), latency.get("high")
    interval = "" if low is None or high is None else f" ({low:.3f} to {high:.3f})"
    parts = [] if target.get("fraction") is None else [f"{target['fraction']:.4g}"]
    asked = ", ".join((*parts, _duration(target["ns"])))
    return (
        f"{measured}: {_duration(latency['dense_ns'])} dense, {_duration(latency['pruned_ns'])} {variant}: "
        f"{latency['ratio']:.3f}{interval} of the dense latency stay (target {asked})"
        f"{'' if latency['met'] else ', which is missed'}"
    )


def _duration(nanoseconds: float) -> str:
    """A latency to three digits in a fitting unit."""
    for factor, unit in ((1e9, "s"), (1e6, "ms"), (1e3, "us")):
        if nanoseconds >= factor:
            value = nanoseconds / factor
            return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
    return f"{nanoseconds:.3g} ns"


def _decibels(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:.1f} dB"


_CHECKS: Mapping[str, tuple[str, Callable[[float | None], str]]] = {
    "accuracy": ("accuracy", percent),
    "agreement": ("agreement", percent),
    "sqnr_db": ("signal to noise", _decibels),
}


def plain_lines(table: Table) -> Iterator[str]:
    """A table as aligned text: whole cells, two spaces between columns, no rules."""
    if table.title:
        yield table.title
    lines = (table.columns, *table.rows)
    widths = [max(len(line[column]) for line in lines) for column in range(len(table.columns))]
    for line in lines:
        cells = (
            cell.rjust(width) if column in table.numeric else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()
    if table.note:
        yield table.note


def rich_table(table: Table) -> "RichTable":
    """A table for a terminal; cells are shown as they are, markup in names included."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(
        box=box.SIMPLE_HEAD,
        title=Text(table.title) if table.title else None,
        caption=Text(table.note) if table.note else None,
        title_justify="left",
        caption_justify="left",
    )
    for column, heading in enumerate(table.columns):
        numeric = column in table.numeric
        drawn.add_column(Text(heading), justify="right" if numeric else "left", no_wrap=numeric, overflow="fold")
    for row in table.rows:
        drawn.add_row(*(Text(cell) for cell in row))
    return drawn
