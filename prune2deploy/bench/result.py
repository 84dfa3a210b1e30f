"""The result document of a benchmark: what ``p2d bench --json`` prints and ``result.json`` holds.

``docs/cli.md`` fixes its fields; others may be added. Raw samples lie beside it.
"""

import gzip
import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prune2deploy.bench.claims.verdicts import JudgedClaim, Verdict
from prune2deploy.bench.samples import BuildSamples
from prune2deploy.bench.statistics.intervals import Interval, Percentiles
from prune2deploy.engines.census import Census
from prune2deploy.errors import InputError
from prune2deploy.storage import read_json, write_bytes, write_json

SCHEMA_VERSION = 1
RESULT_FILE = "result.json"
SAMPLES_FILE = "samples.json.gz"


@dataclass(frozen=True, slots=True, kw_only=True)
class Speedup:
    """How much faster than ``against`` a row is: a ratio of latencies, above 1 is faster."""

    against: str
    interval: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One variant on one engine, precision and batch size.

    ``parity_max_error`` is ‖y − ref‖/‖ref‖ against the torch model; ``agreement`` is the share of reference images on
    which an int8 row names the class that the model names, None for other precisions. ``census`` is the document of an
    ``engines.census.Census`` of the engine, None where it could not tell.
    ``build_medians_ns`` has one figure a build, what its scenario judges (``bench.statistics.figures``);
    ``distribution_ns`` the quantiles 0, 2.5%, ..., 100% of all runs. Offline, ``latency_ns`` is a batch's share of the
    time of each queue. ``flop_yield`` (``yield`` in the document) is the speed-up against dense times
    ``flops_fraction``: 1 means that every FLOP removed was paid out as time.

    None where it was not measured or the engine cannot tell: ``device_ns`` is the time on the device alone (CUDA
    events) and ``copy_ns`` that of copying the inputs there, which ``latency_ns`` does not hold; ``memory_bytes`` the
    peak that loading and running added to a process; ``energy_joules`` that of one input; ``correct`` of ``evaluated``
    inputs got their label through the engine; ``profile`` is the document of a ``bench.aside.profile.Profile``.
    ``file_bytes`` is the ONNX file with its external data.
    """

    variant: str
    engine: str
    precision: str
    batch: int
    latency_ns: Percentiles
    build_medians_ns: tuple[float, ...]
    distribution_ns: tuple[float, ...]
    throughput_per_s: float
    speedups: tuple[Speedup, ...]
    flops_fraction: float | None
    parameters_fraction: float | None
    flop_yield: float | None
    accuracy: float | None
    parity_max_error: float | None
    file: str
    sha256: str
    agreement: float | None = None
    census: Mapping[str, Any] | None = None
    device_ns: Percentiles | None = None
    copy_ns: Percentiles | None = None
    file_bytes: int | None = None
    memory_bytes: int | None = None
    energy_joules: float | None = None
    correct: int | None = None
    evaluated: int | None = None
    profile: Mapping[str, Any] | None = None

    @property
    def computes_in(self) -> str | None:
        """The census in words: ``fp16 95.2%, fp32 4.8% of FLOPs``."""
        return None if self.census is None else Census.from_document(self.census).in_words()

    def speedup_against(self, variant: str) -> Interval | None:
        """The speed-up against another variant, None where it was not compared."""
        return next((speedup.interval for speedup in self.speedups if speedup.against == variant), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """The A/A control: the baseline's second copy against its first. ``passed`` is None without an interval.

    ``disturbed`` says why too much of the measurement was disturbed to conclude anything, None if it was not.
    """

    engine: str
    precision: str
    batch: int
    interval: Interval
    passed: bool | None
    disturbed: str | None = None

    @property
    def valid(self) -> bool | None:
        """Whether verdicts may rest on this measurement; None where the control has no interval."""
        return False if self.disturbed is not None else self.passed


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchResult:
    """Everything a benchmark found. ``samples`` is empty where the document was read without them.

    ``baseline_comparison`` is the document of a ``bench.across.changes.Comparison`` with an earlier result, under
    "file" its path; None where none was asked for.
    """

    environment: Mapping[str, Any]
    protocol: Mapping[str, Any]
    baseline: str
    rows: tuple[Row, ...]
    claims: tuple[JudgedClaim, ...]
    controls: tuple[Control, ...]
    notes: tuple[str, ...]
    samples: tuple[BuildSamples, ...] = ()
    baseline_comparison: Mapping[str, Any] | None = None

    def to_document(self) -> dict[str, Any]:
        """As a JSON object, without the raw samples."""
        return {
            "schema_version": SCHEMA_VERSION,
            "environment": dict(self.environment),
            "protocol": dict(self.protocol),
            "baseline": self.baseline,
            "rows": [_row_document(row) for row in self.rows],
            "claims": [{**asdict(claim), "verdict": claim.verdict.value} for claim in self.claims],
            "controls": [
                {
                    "engine": control.engine,
                    "precision": control.precision,
                    "batch": control.batch,
                    **_interval_document(control.interval),
                    "passed": control.passed,
                    "disturbed": control.disturbed,
                }
                for control in self.controls
            ],
            "notes": list(self.notes),
            "baseline_comparison": self.baseline_comparison,
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any], *, where: str = RESULT_FILE) -> "BenchResult":
        """From a JSON object.

        Raises:
            InputError: the document is damaged or of another schema version.
        """
        if document.get("schema_version") != SCHEMA_VERSION:
            raise InputError(
                f"the result has schema version {document.get('schema_version')}, this p2d reads {SCHEMA_VERSION}",
                where=where,
                hint="run `p2d bench` again",
            )
        try:
            return cls(
                environment=document["environment"],
                protocol=document["protocol"],
                baseline=document["baseline"],
                rows=tuple(_row(row) for row in document["rows"]),
                claims=tuple(
                    JudgedClaim(**{**claim, "verdict": Verdict(claim["verdict"])}) for claim in document["claims"]
                ),
                controls=tuple(_control(control) for control in document["controls"]),
                notes=tuple(document["notes"]),
                baseline_comparison=document.get("baseline_comparison"),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"the result is damaged ({error})", where=where, hint="run `p2d bench` again") from error


def write_result(result: BenchResult, folder: Path) -> tuple[Path, Path]:
    """Write the raw samples, then the document, into ``folder``; return (document, samples).

    Raises:
        StorageError: a file cannot be written; an earlier result stays whole.
    """
    samples_path, result_path = folder / SAMPLES_FILE, folder / RESULT_FILE
    listing = {"schema_version": SCHEMA_VERSION, "builds": [build.to_document() for build in result.samples]}
    write_bytes(samples_path, gzip.compress(json.dumps(listing, allow_nan=False).encode(), compresslevel=6, mtime=0))
    write_json(result_path, result.to_document())
    return result_path, samples_path


def read_result(path: Path) -> BenchResult:
    """Read a result document back, without its samples.

    Raises:
        InputError: it is missing, damaged or of another schema version.
    """
    return BenchResult.from_document(read_json(path, hint="run `p2d bench` first"), where=str(path))


def read_samples(path: Path) -> tuple[BuildSamples, ...]:
    """Read the raw samples of a result.

    Raises:
        InputError: the file is missing, damaged or of another schema version.
    """
    try:
        listing = json.loads(gzip.decompress(path.read_bytes()))
        builds = listing["builds"]
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        raise InputError("cannot be read as raw samples", where=str(path), hint="run `p2d bench` again") from error
    return tuple(BuildSamples.from_document(build, where=str(path)) for build in builds)


def _interval_document(interval: Interval) -> dict[str, Any]:
    return {**asdict(interval), "half_width": interval.half_width}


def _row_document(row: Row) -> dict[str, Any]:
    document = asdict(row)
    document["yield"] = document.pop("flop_yield")
    document["speedups"] = [
        {"against": speedup.against, **_interval_document(speedup.interval)} for speedup in row.speedups
    ]
    return document


def _interval(document: Mapping[str, Any]) -> Interval:
    return Interval(**{name: document[name] for name in ("estimate", "low", "high", "confidence", "builds")})


def _row(document: Mapping[str, Any]) -> Row:
    fields = dict(document)
    fields["flop_yield"] = fields.pop("yield")
    fields["latency_ns"] = Percentiles(**fields["latency_ns"])
    for name in ("device_ns", "copy_ns"):
        if fields.get(name) is not None:
            fields[name] = Percentiles(**fields[name])
    fields["speedups"] = tuple(
        Speedup(against=speedup["against"], interval=_interval(speedup)) for speedup in fields["speedups"]
    )
    fields["build_medians_ns"] = tuple(fields["build_medians_ns"])
    fields["distribution_ns"] = tuple(fields["distribution_ns"])
    return Row(**fields)


def _control(document: Mapping[str, Any]) -> Control:
    return Control(
        engine=document["engine"],
        precision=document["precision"],
        batch=document["batch"],
        interval=_interval(document),
        passed=document["passed"],
        disturbed=document.get("disturbed"),
    )
