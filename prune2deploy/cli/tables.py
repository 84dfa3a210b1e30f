"""Results as tables: which columns a command shows, and how a table is drawn with and without a terminal."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prune2deploy.pipeline.outcomes import (
    EngineFile,
    ExportedFile,
    FrozenRow,
    GroupRow,
    ResultTable,
    VariantRow,
)

if TYPE_CHECKING:
    from rich.table import Table

_NOTHING = "-"


def variants_table(variants: Sequence[VariantRow]) -> ResultTable:
    """Variants with their cost, its share of dense, and accuracy."""
    return ResultTable(
        headings=("variant", "FLOPs", "of dense", "parameters", "of dense", "accuracy"),
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
        numeric=(False, True, True, True, True, True),
    )


def groups_table(groups: Sequence[GroupRow]) -> ResultTable:
    """The widths of a network, with the pruned ones where a run has them."""
    with_pruned = any(group.pruned_width is not None for group in groups)
    headings = ["group", "width", "channels"] + ["pruned"] * with_pruned + ["kind"]
    rows = []
    for group in groups:
        kinds = ["residual stream"] * group.stream + ["normed over channels"] * (not group.exact)
        pruned = [_NOTHING if group.pruned_width is None else str(group.pruned_width)] * with_pruned
        rows.append((group.name, str(group.width), str(group.channels), *pruned, ", ".join(kinds) or "inside a block"))
    numeric = (False, True, True, *[True] * with_pruned, False)
    return ResultTable(headings=tuple(headings), rows=tuple(rows), numeric=numeric)


def frozen_table(frozen: Sequence[FrozenRow]) -> ResultTable:
    """What cannot be cut, and why."""
    return ResultTable(
        headings=("frozen because", "operator", "where", "dimensions"),
        rows=tuple((row.reason, row.operator, row.place, str(row.axes_total)) for row in frozen),
        numeric=(False, False, False, True),
    )


def exported_table(files: Sequence[ExportedFile]) -> ResultTable:
    """ONNX files with their size and what the parity gate measured."""
    return ResultTable(
        headings=("variant", "precision", "size", "parity error", "file"),
        rows=tuple(
            (row.variant, row.precision, size(row.bytes_total), f"{row.parity_max_error:.1e}", str(row.file))
            for row in files
        ),
        numeric=(False, False, True, True, False),
    )


def engines_table(files: Sequence[EngineFile]) -> ResultTable:
    """Stored engines with their size and build time."""
    return ResultTable(
        headings=("variant", "precision", "engine", "size", "built in", "file"),
        rows=tuple(
            (row.variant, row.precision, row.engine, size(row.bytes_total), f"{row.build_seconds:.1f} s", str(row.file))
            for row in files
        ),
        numeric=(False, False, False, True, True, False),
    )


def doctor_tables(document: Mapping[str, Any]) -> tuple[ResultTable, ...]:
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
        ResultTable(headings=("this machine", ""), rows=facts, numeric=(False, False)),
        ResultTable(headings=("engine", "state", "version", "device"), rows=engines, numeric=(False,) * 4),
        ResultTable(headings=("optional", "version", "for"), rows=extras, numeric=(False,) * 3),
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


def size(bytes_total: int) -> str:
    """A file size in binary units: 4.1 MiB."""
    for factor, unit in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if bytes_total >= factor:
            return f"{bytes_total / factor:.1f} {unit}"
    return f"{bytes_total} B"


def percent(fraction: float | None) -> str:
    """An accuracy: 98.4%."""
    return _NOTHING if fraction is None else f"{fraction:.1%}"


def plain_lines(table: ResultTable) -> Iterator[str]:
    """A table as aligned text: whole cells, two spaces between columns, no rules."""
    lines = (table.headings, *table.rows)
    widths = [max(len(line[column]) for line in lines) for column in range(len(table.headings))]
    for line in lines:
        cells = (
            cell.rjust(width) if numeric else cell.ljust(width)
            for cell, width, numeric in zip(line, widths, table.numeric, strict=True)
        )
        yield "  ".join(cells).rstrip()


def rich_table(table: ResultTable) -> "Table":
    """A table for a terminal; cells are shown as they are, markup in names included."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD)
    for heading, numeric in zip(table.headings, table.numeric, strict=True):
        drawn.add_column(Text(heading), justify="right" if numeric else "left", no_wrap=numeric)
    for row in table.rows:
        drawn.add_row(*(Text(cell) for cell in row))
    return drawn
