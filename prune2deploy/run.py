"""The run folder: where a run keeps everything, and the manifest that says what is there.

    p2d-runs/
      latest                        -> the newest run
      20260131-142530-resnet50/
        run.json                    the manifest (``RunManifest``)
        dense/ pruned/ reduced/     one bundle a variant (``checkpoint.bundle``)
        training/                   the last epoch of each training, for --resume
        onnx/                       VARIANT-PRECISION.onnx and evaluation.npz
        engines/                    built engines
        bench/                      result.json and raw samples
        report/                     report.html, report.md, report.json, junit.xml

Every file is written atomically, the manifest last, so that a killed run is never left half-written. With several
processes the main one writes, and all of them see the manifest that it wrote.
"""

import datetime
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from prune2deploy.errors import InputError, StorageError
from prune2deploy.processes import on_main
from prune2deploy.storage import read_json, write_json

SCHEMA_VERSION = 1
RUNS_FOLDER = "p2d-runs"
LATEST = "latest"
MANIFEST = "run.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxRecord:
    """One exported file of a variant.

    ``file`` is relative to the run folder; ``bytes_total`` includes weights that lie beside it. ``parity_max_error``
    is the largest relative error ‖y − ref‖/‖ref‖ over the batch sizes that the gate tried. ``checks`` holds what else
    was measured before the file was written: "accuracy" (top-1 through the gate's engine, in [0, 1]), and of int8 files
    "agreement" (share of images with the class that fp32 names), "least_agreement" (what it had to reach) and
    "sqnr_db"; a check that was not made is absent.
    """

    file: str
    sha256: str
    bytes_total: int
    parity_max_error: float
    checks: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantRecord:
    """One version of the model: what it costs, how accurate it is, which files hold it.

    FLOPs are those of one input (batch 1). ``accuracies`` maps a moment ("final", and for ``pruned``
    also "before_pruning", "after_pruning", "after_recalibration") to top-1 accuracy in [0, 1]; it is
    empty where the run had no data. ``onnx`` maps a precision to its exported file. ``training`` holds
    the recipe and the history of epochs.
    """

    name: str
    bundle: str
    flops: int
    parameters: int
    accuracies: Mapping[str, float] = field(default_factory=dict)
    onnx: Mapping[str, OnnxRecord] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)

    @property
    def accuracy(self) -> float | None:
        """Top-1 accuracy of the stored weights, None without data."""
        return self.accuracies.get("final")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunManifest:
    """What ``run.json`` says. ``input_shape`` is (channels, height, width).

    ``options`` are the choices that a resumed run must repeat; ``notes`` are facts for the report
    (a target that was met only in part, a layer that stayed frozen).
    """

    command: tuple[str, ...]
    created: str
    versions: Mapping[str, str]
    model: str
    input_shape: tuple[int, ...]
    data: str | None
    seed: int
    options: Mapping[str, Any] = field(default_factory=dict)
    pruning: Mapping[str, Any] = field(default_factory=dict)
    variants: Mapping[str, VariantRecord] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    finished: bool = False
    schema_version: int = SCHEMA_VERSION

    def to_document(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    @classmethod
    def from_document(cls, document: Mapping[str, Any], *, where: str) -> "RunManifest":
        """From a JSON object.

        Raises:
            InputError: the document is of another schema version, or lacks a field.
        """
        if document.get("schema_version") != SCHEMA_VERSION:
            raise InputError(
                f"the run manifest has schema version {document.get('schema_version')}, "
                f"this p2d reads {SCHEMA_VERSION}",
                where=where,
                hint="use the p2d version named in it, or run `p2d prune` anew",
            )
        try:
            fields = dict(document)
            fields["command"] = tuple(fields["command"])
            fields["input_shape"] = tuple(fields["input_shape"])
            fields["notes"] = tuple(fields["notes"])
            fields["variants"] = {name: _variant(record) for name, record in fields["variants"].items()}
            return cls(**fields)
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"the run manifest is damaged ({error})", where=where, hint="run `p2d prune` anew"
            ) from error


class RunFolder:
    """A folder that holds one run. All paths it hands out lie inside it."""

    def __init__(self, path: Path, manifest: RunManifest) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def create(cls, manifest: RunManifest, *, name: str, out: Path | None = None) -> "RunFolder":
        """Make a new run folder, ``out`` or ``p2d-runs/TIME-name``, and point ``latest`` at it.

        Raises:
            InputError: ``out`` exists and is not empty.
            StorageError: the folder cannot be written.
        """
        return on_main(lambda: cls._created(manifest, name=name, out=out))

    @classmethod
    def _created(cls, manifest: RunManifest, *, name: str, out: Path | None) -> "RunFolder":
        if out is None:
            safe = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-") or "run"
            stamp = datetime.datetime.now(tz=datetime.UTC).strftime("%Y%m%d-%H%M%S")
            path = _first_free(Path(RUNS_FOLDER) / f"{stamp}-{safe}")
        else:
            path = out
            if path.exists() and (not path.is_dir() or any(path.iterdir())):
                raise InputError(
                    "exists and is not an empty folder", where=str(path), hint="name a new folder with --out"
                )
        run = cls(path, manifest)
        run.save(manifest)
        _point_latest(path)
        return run

    @classmethod
    def open(cls, path: Path | None = None) -> "RunFolder":
        """Open a run folder; without ``path``, the latest one below the current folder.

        Raises:
            InputError: there is no such run, or its manifest is damaged.
        """
        return on_main(lambda: cls._opened(path))

    @classmethod
    def _opened(cls, path: Path | None) -> "RunFolder":
        folder = path if path is not None else Path(RUNS_FOLDER) / LATEST
        if not (folder / MANIFEST).is_file():
            if path is None:
                raise InputError(
                    "there is no run in this folder", where=str(folder), hint="make one with `p2d prune` or `p2d demo`"
                )
            raise InputError(
                "is not a run folder (it holds no run.json)", where=str(folder), hint="make one with `p2d prune`"
            )
        document = read_json(folder / MANIFEST, hint="run `p2d prune` anew")
        return cls(_shown(folder), RunManifest.from_document(document, where=str(folder / MANIFEST)))

    def save(self, manifest: RunManifest) -> None:
        """Replace the manifest, on disk and here."""
        self.manifest = on_main(lambda: self._written(manifest))

    def _written(self, manifest: RunManifest) -> RunManifest:
        write_json(self.path / MANIFEST, manifest.to_document())
        return manifest

    def save_variant(self, variant: VariantRecord) -> None:
        """Add or replace one variant in the manifest."""
        self.save(replace(self.manifest, variants={**self.manifest.variants, variant.name: variant}))

    def note(self, text: str) -> None:
        """Add a fact for the report, once."""
        if text not in self.manifest.notes:
            self.save(replace(self.manifest, notes=(*self.manifest.notes, text)))

    def bundle_path(self, variant: str) -> Path:
        """The bundle folder of a variant."""
        return self.path / variant

    @property
    def training_folder(self) -> Path:
        """Where all trainings keep their last epochs; absent until one has ended."""
        return self.path / "training"

    def training_path(self, variant: str) -> Path:
        """Where the training of a variant keeps its last epoch."""
        return self.training_folder / f"{variant}.pt"

    def onnx_path(self, variant: str, precision: str) -> Path:
        """The ONNX file of a variant at a precision."""
        return self.path / "onnx" / f"{variant}-{precision}.onnx"

    @property
    def evaluation_path(self) -> Path:
        """Inputs, labels and reference outputs, for everything to the right of export."""
        return self.path / "onnx" / "evaluation.npz"

    @property
    def engines_path(self) -> Path:
        """The folder of built engines."""
        return self.path / "engines"

    @property
    def bench_path(self) -> Path:
        """The folder of measurements; ``result.json`` in it is the result document."""
        return self.path / "bench"

    @property
    def report_path(self) -> Path:
        """The folder of the report."""
        return self.path / "report"


def _variant(record: Mapping[str, Any]) -> VariantRecord:
    onnx = {precision: OnnxRecord(**file) for precision, file in record["onnx"].items()}
    return VariantRecord(**{**record, "onnx": onnx})


def _shown(folder: Path) -> Path:
    """The real folder, not ``latest``, which moves on; relative where it lies in the current folder."""
    real, here = folder.resolve(), Path.cwd()
    return real.relative_to(here) if real.is_relative_to(here) else real


def _first_free(path: Path) -> Path:
    candidate, number = path, 2
    while candidate.exists():
        candidate, number = path.with_name(f"{path.name}-{number}"), number + 1
    return candidate


def _point_latest(run: Path) -> None:
    """Make ``latest`` beside the run a link to it, unless the run lies outside a ``p2d-runs`` folder."""
    if run.parent.name != RUNS_FOLDER:
        runs = Path(RUNS_FOLDER)
        target = run.resolve()
    else:
        runs = run.parent
        target = Path(run.name)
    link, fresh = runs / LATEST, runs / f".latest-{os.getpid()}"
    try:
        runs.mkdir(parents=True, exist_ok=True)
        fresh.symlink_to(target)
        fresh.replace(link)
    except OSError as error:
        raise StorageError(f"cannot be pointed at the new run ({error.strerror})", where=str(link)) from error
