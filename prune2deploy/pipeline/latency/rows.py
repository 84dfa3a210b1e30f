"""What ``p2d latency-table`` hands back: plain records that the command line prints."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldingRow:
    """What is kept of an engine in its version, on a device, in a setting. Times are ISO 8601, UTC.

    ``current`` is False where an engine of this machine is meant, and its version, its device or the way of measuring
    has changed since.
    """

    engine: str
    version: str
    device: str
    precision: str
    threads: int
    batch: int
    units: int
    points: int
    first_at: str
    last_at: str
    current: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitRow:
    """One unit of a model: ``unit`` in words, run ``times`` times, by ``layers``.

    ``widths`` are its largest, ``half_widths`` about half of them. ``latency_ns`` and ``half_ns`` are of one run there;
    ``total_ns`` is of all its places at their own widths, ``share`` that as a part of the whole. ``points`` were
    measured, ``spread`` is the median of how far another measurement would lie, as a share.
    """

    unit: str
    layers: tuple[str, ...]
    times: int
    widths: tuple[int, ...]
    half_widths: tuple[int, ...]
    latency_ns: float
    half_ns: float
    total_ns: float
    share: float
    points: int
    spread: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelTable:
    """The table of one model in a setting. ``unpriced`` are operators that no unit holds, with how often each runs.

    Of the points ``measured`` were timed now, in ``seconds``, and ``reused`` were there.
    """

    model: str
    input_shape: tuple[int, ...]
    engine: str
    precision: str
    batch: int
    threads: int
    granule: int
    units: tuple[UnitRow, ...]
    total_ns: float
    measured: int
    reused: int
    seconds: float
    spread: float
    unpriced: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyTableOutcome:
    """What is kept in ``file``, and the table of a model where one was named.

    ``cleared`` counts the measurements that were dropped, None where that was not asked for; ``exported`` is the file
    that all were written to.
    """

    file: Path
    holdings: tuple[HoldingRow, ...]
    table: ModelTable | None = None
    cleared: int | None = None
    exported: Path | None = None
    notes: tuple[str, ...] = ()

    def to_document(self) -> dict[str, Any]:
        """As the JSON object of ``p2d latency-table --json``."""
        document = {"schema_version": SCHEMA_VERSION, **asdict(self)}
        return {**document, "file": str(self.file), "exported": None if self.exported is None else str(self.exported)}
