"""The raw samples as one table, for spreadsheets and data frames: a line a timed run."""

import csv
import gzip
import io
from collections.abc import Iterable, Iterator
from pathlib import Path

from prune2deploy.bench.samples import BuildSamples
from prune2deploy.storage import atomic_path

COLUMNS = (
    "build",
    "precision",
    "batch",
    "variant",
    "copy",
    "round",
    "position",
    "kind",
    "run",
    "runs",
    "sample_ns",
    "dropped",
)

_COMPRESSION = 6


def write_samples_csv(path: Path, builds: Iterable[BuildSamples]) -> None:
    """Write every sample as a line of gzipped CSV, one at a time, in the order in which they were taken.

    ``run`` counts within a block; ``runs`` is above 1 where one sample spans a queue of runs; ``dropped`` says why a
    round does not count and is empty where it does. The same samples give the same bytes.

    Raises:
        StorageError: the file cannot be written; an earlier one stays whole.
    """
    with (
        atomic_path(path) as partial,
        partial.open("wb") as raw,
        gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=_COMPRESSION, mtime=0) as packed,
        io.TextIOWrapper(packed, encoding="utf-8", newline="") as text,
    ):
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(_lines(builds))


def _lines(builds: Iterable[BuildSamples]) -> Iterator[tuple[str | int, ...]]:
    for build in builds:
        for cell in build.cells:
            disturbed = cell.disturbed
            for block in cell.blocks:
                before = (build.build, cell.precision, cell.batch, block.variant, block.copy, block.round)
                reason = disturbed.get(block.round, "")
                for run, sample in enumerate(block.samples_ns):
                    yield (*before, block.position, block.kind, run, block.runs, sample, reason)
