"""What a variant takes besides time: bytes and joules."""

from collections.abc import Callable, Mapping

from prune2deploy.bench.result import BenchResult, Row
from prune2deploy.report.figures import spell_bytes, spell_energy
from prune2deploy.report.table import Table

_RESOURCES: Mapping[str, tuple[str, Callable[[float | None], str], Callable[[Row], float | None]]] = {
    "file": ("file", spell_bytes, lambda row: row.file_bytes),
    "memory": ("memory", spell_bytes, lambda row: row.memory_bytes),
    "energy": ("energy of an input", spell_energy, lambda row: row.energy_joules),
}
_RESOURCE_NOTES = {
    "file": "the ONNX file with its weights",
    "memory": "the peak that loading and running added to a process",
    "energy": "what the device drew for one input",
}


def resources_table(result: BenchResult | None) -> Table:
    """What a variant takes besides time; a column for each figure that any row has.

    Only energy depends on the batch size: without it one row tells of all.
    """
    measured = result.rows if result is not None else ()
    known = [name for name, (_, _, told) in _RESOURCES.items() if any(told(row) is not None for row in measured)]
    by_batch = "energy" in known
    rows = {(row.variant, row.engine, row.precision, *((str(row.batch),) if by_batch else ())): row for row in measured}
    columns = (
        *("variant", "engine", "precision", *(("batch",) if by_batch else ())),
        *(_RESOURCES[name][0] for name in known),
    )
    return Table(
        key="resources",
        title="Size, memory, energy",
        columns=columns,
        rows=tuple(
            (*key, *(_RESOURCES[name][1](_RESOURCES[name][2](row)) for name in known))
            for key, row in rows.items()
            if known
        ),
        numeric=frozenset(range(3, len(columns))),
        note=" ".join(f"{_RESOURCES[name][0].capitalize()}: {_RESOURCE_NOTES[name]}." for name in known),
    )
