"""Measured latencies, kept in the user's cache folder for all runs and processes.

One SQLite file, each measurement under its environment, unit, batch and widths. Every batch of measurements is a short
transaction of its own, so that a run that is stopped goes on where it was, and several may write at a time.
"""

import datetime
import json
import math
import sqlite3
from collections.abc import Callable, Collection, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

from platformdirs import user_cache_path

from prune2deploy.errors import StorageError
from prune2deploy.graph.unit import Unit
from prune2deploy.latency.environment import Environment
from prune2deploy.latency.points import Point, Timing
from prune2deploy.progress import SILENT, Progress

SCHEMA_VERSION = 2
LOCK_SECONDS = 30.0

_ENVIRONMENT = "engine, version, device, precision, threads, protocol"
_SCHEMA = f"""
CREATE TABLE environment (
    id INTEGER PRIMARY KEY,
    engine TEXT NOT NULL, version TEXT NOT NULL, device TEXT NOT NULL, precision TEXT NOT NULL,
    threads INTEGER NOT NULL, protocol INTEGER NOT NULL,
    UNIQUE ({_ENVIRONMENT})
);
CREATE TABLE unit (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE);
CREATE TABLE timing (
    environment INTEGER NOT NULL REFERENCES environment(id),
    unit INTEGER NOT NULL REFERENCES unit(id),
    batch INTEGER NOT NULL CHECK (batch > 0),
    widths TEXT NOT NULL,
    latency_ns REAL NOT NULL CHECK (latency_ns >= 0),
    spread_ns REAL NOT NULL CHECK (spread_ns >= 0),
    runs INTEGER NOT NULL CHECK (runs > 0),
    times INTEGER NOT NULL CHECK (times > 0),
    measured_at TEXT NOT NULL,
    PRIMARY KEY (environment, unit, batch, widths)
) WITHOUT ROWID;
PRAGMA user_version = {SCHEMA_VERSION};
"""
_WHERE_ENVIRONMENT = " AND ".join(f"{name.strip()} = ?" for name in _ENVIRONMENT.split(","))

Result = TypeVar("Result")


def store_path() -> Path:
    """Where measurements lie: a file of this schema in the user's cache folder."""
    return user_cache_path("prune2deploy") / "latency" / f"measured-{SCHEMA_VERSION}.sqlite3"


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """What there is of an environment at a batch size. The first and the last measurement are told in ISO 8601, UTC."""

    environment: Environment
    batch: int
    units: int
    points: int
    first_at: str
    last_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One kept measurement; ``measured_at`` is ISO 8601, UTC."""

    environment: Environment
    batch: int
    point: Point
    timing: Timing
    measured_at: str


class LatencyStore:
    """Measurements on disk. A damaged file is moved aside, with a note, and begun anew.

    Every method raises StorageError where the file cannot be read, or written where it writes.
    """

    def __init__(self, path: Path | None = None, *, progress: Progress = SILENT) -> None:
        """Keep measurements in ``path``; None: in the user's cache folder. Nothing is opened or made yet."""
        self.path = store_path() if path is None else path
        self._progress = progress

    def find(self, environment: Environment, batch: int, points: Collection[Point]) -> dict[Point, Timing]:
        """Those of ``points`` that were measured in an environment at a batch size."""

        def read(connection: sqlite3.Connection) -> dict[Point, Timing]:
            found: dict[Point, Timing] = {}
            for unit in dict.fromkeys(point.unit for point in points):
                rows = connection.execute(
                    "SELECT widths, latency_ns, spread_ns, runs, times FROM timing"
                    " JOIN environment ON environment.id = timing.environment JOIN unit ON unit.id = timing.unit"
                    f" WHERE {_WHERE_ENVIRONMENT} AND batch = ? AND unit.key = ?",
                    (*_values(environment), batch, unit.key),
                )
                found |= {Point(unit, _widths(widths)): _timing(*figures) for widths, *figures in rows}
            return {point: found[point] for point in points if point in found}

        return self._reading(read, {})

    def add(self, environment: Environment, batch: int, timings: Mapping[Point, Timing]) -> None:
        """Keep measurements, in place of earlier ones of the same points."""
        now = datetime.datetime.now(tz=datetime.UTC).isoformat(timespec="seconds")

        def write(connection: sqlite3.Connection) -> None:
            marks = ", ".join("?" * len(_values(environment)))
            connection.execute(
                f"INSERT OR IGNORE INTO environment ({_ENVIRONMENT}) VALUES ({marks})", _values(environment)
            )
            (number,) = connection.execute(
                f"SELECT id FROM environment WHERE {_WHERE_ENVIRONMENT}", _values(environment)
            ).fetchone()
            keys = [(point.unit.key,) for point in timings]
            connection.executemany("INSERT OR IGNORE INTO unit (key) VALUES (?)", keys)
            connection.executemany(
                "INSERT OR REPLACE INTO timing SELECT ?, id, ?, ?, ?, ?, ?, ?, ? FROM unit WHERE key = ?",
                [
                    (
                        *(number, batch, json.dumps(point.widths), timing.latency_ns, timing.spread_ns),
                        *(timing.runs, timing.times, now, point.unit.key),
                    )
                    for point, timing in timings.items()
                ],
            )

        self._writing(write)

    def holdings(self) -> tuple[Holding, ...]:
        """What there is, one entry for each environment and batch size."""

        def read(connection: sqlite3.Connection) -> tuple[Holding, ...]:
            rows = connection.execute(
                f"SELECT {_ENVIRONMENT}, batch, COUNT(DISTINCT unit), COUNT(*), MIN(measured_at), MAX(measured_at)"
                " FROM timing JOIN environment ON environment.id = timing.environment"
                f" GROUP BY environment, batch ORDER BY {_ENVIRONMENT}, batch"
            )
            return tuple(
                Holding(
                    environment=_environment(row[:6]),
                    batch=row[6],
                    units=row[7],
                    points=row[8],
                    first_at=row[9],
                    last_at=row[10],
                )
                for row in rows
            )

        return self._reading(read, ())

    def measurements(self) -> tuple[Measurement, ...]:
        """Everything there is, in the order of environments, units, batch sizes and widths."""

        def read(connection: sqlite3.Connection) -> tuple[Measurement, ...]:
            rows = connection.execute(
                f"SELECT {_ENVIRONMENT}, key, batch, widths, latency_ns, spread_ns, runs, times, measured_at"
                " FROM timing JOIN environment ON environment.id = timing.environment"
                " JOIN unit ON unit.id = timing.unit"
                f" ORDER BY {_ENVIRONMENT}, key, batch, widths"
            )
            found: list[Measurement] = []
            for key, members in groupby(rows, key=lambda row: row[6]):
                unit = Unit.from_key(key)
                found += [
                    Measurement(
                        environment=_environment(row[:6]),
                        batch=row[7],
                        point=Point(unit, _widths(row[8])),
                        timing=_timing(*row[9:13]),
                        measured_at=row[13],
                    )
                    for row in members
                ]
            return tuple(found)

        return self._reading(read, ())

    def clear(self, *, engine: str | None = None) -> int:
        """Drop the measurements of an engine, or all; gives how many there were."""

        def write(connection: sqlite3.Connection) -> int:
            chosen = "SELECT id FROM environment WHERE ? IS NULL OR engine = ?"
            dropped = connection.execute(f"DELETE FROM timing WHERE environment IN ({chosen})", (engine, engine))
            connection.execute("DELETE FROM environment WHERE id NOT IN (SELECT environment FROM timing)")
            connection.execute("DELETE FROM unit WHERE id NOT IN (SELECT unit FROM timing)")
            return dropped.rowcount

        return self._writing(write) if self.path.exists() else 0

    def _reading(self, work: Callable[[sqlite3.Connection], Result], nothing: Result) -> Result:
        if not self.path.exists():
            return nothing

        def read(connection: sqlite3.Connection) -> Result:
            return work(connection) if _version(connection) else nothing

        try:
            return self._whole(read)
        except sqlite3.Error as error:
            raise StorageError(f"kept latencies cannot be read ({error})", where=str(self.path)) from error

    def _writing(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        def write(connection: sqlite3.Connection) -> Result:
            # Before the first look, so that of two processes one makes the tables.
            connection.execute("BEGIN IMMEDIATE")
            with connection:
                if not _version(connection):
                    for statement in filter(str.strip, _SCHEMA.split(";")):
                        connection.execute(statement)
                return work(connection)

        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return self._whole(write)
        except (sqlite3.Error, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise StorageError(
                f"latencies cannot be kept ({reason})",
                where=str(self.path),
                hint="free some space or make the folder writable",
            ) from error

    def _whole(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        """What comes of ``work``, in a file that is begun anew if it turns out to be damaged."""
        try:
            return self._connected(work)
        except sqlite3.OperationalError:
            raise
        except (_Damaged, sqlite3.DatabaseError):
            aside = self.path.with_suffix(".damaged")
            self._progress.note(f"{self.path}: the kept latencies are damaged, so they are measured anew (see {aside})")
            with suppress(FileNotFoundError):
                self.path.replace(aside)
            return self._connected(work)

    def _connected(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        with closing(sqlite3.connect(self.path, timeout=LOCK_SECONDS, isolation_level=None)) as connection:
            return work(connection)


class _Damaged(Exception):  # noqa: N818 - never leaves this module
    """The file is a database, and not one that this module made."""


def _version(connection: sqlite3.Connection) -> int:
    """The schema version of the file, 0 where it is new."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version not in (0, SCHEMA_VERSION):
        raise _Damaged
    return int(version)


def _values(environment: Environment) -> tuple[Any, ...]:
    return tuple(getattr(environment, name.strip()) for name in _ENVIRONMENT.split(","))


def _environment(row: tuple[Any, ...]) -> Environment:
    return Environment(**dict(zip((name.strip() for name in _ENVIRONMENT.split(",")), row, strict=True)))


def _widths(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(width) for width in json.loads(text))
    except (ValueError, TypeError) as error:
        raise _Damaged from error


def _timing(latency_ns: float, spread_ns: float, runs: int, times: int) -> Timing:
    if not (math.isfinite(latency_ns) and math.isfinite(spread_ns)):
        raise _Damaged
    return Timing(latency_ns=latency_ns, spread_ns=spread_ns, runs=runs, times=times)
