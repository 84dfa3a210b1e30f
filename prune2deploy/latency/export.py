"""All kept measurements as one file, for spreadsheets and programs."""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prune2deploy.errors import InputError
from prune2deploy.latency.store import Measurement
from prune2deploy.latency.words import words
from prune2deploy.storage import write_json, write_text

SCHEMA_VERSION = 1
FORMATS = (".csv", ".json")
COLUMNS = (
    *("engine", "version", "device", "precision", "threads", "protocol", "batch", "unit", "width_1", "width_2"),
    *("latency_ns", "spread_ns", "runs", "times", "measured_at", "unit_key"),
)


def check_export(path: Path) -> None:
    """Refuse a file of another format.

    Raises:
        InputError: its name ends on neither .csv nor .json.
    """
    if path.suffix not in FORMATS:
        raise InputError("is of no known format", where=f"--export {path}", hint="name a .csv or a .json file")


def export_measurements(path: Path, measurements: Iterable[Measurement]) -> None:
    """Write measurements to a CSV or a JSON file, as its name ends; a line or an object each.

    Raises:
        InputError: the name ends otherwise.
        StorageError: the file cannot be written; an earlier one stays whole.
    """
    check_export(path)
    if path.suffix == ".json":
        write_json(path, {"schema_version": SCHEMA_VERSION, "measurements": list(_rows(measurements))})
        return
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for row in _rows(measurements):
        axes = dict(zip(("width_1", "width_2"), row["widths"], strict=False))
        writer.writerow({**row, **axes})
    write_text(path, text.getvalue())


def _rows(measurements: Iterable[Measurement]) -> Iterator[Mapping[str, Any]]:
    for one in measurements:
        yield {
            **asdict(one.environment),
            "batch": one.batch,
            "unit": words(one.point.unit),
            "widths": list(one.point.widths),
            **asdict(one.timing),
            "measured_at": one.measured_at,
            "unit_key": one.point.unit.key,
        }
