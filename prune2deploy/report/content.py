"""What a report is made of: a run's manifest, the result of a benchmark, its raw samples; any may be absent."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prune2deploy.bench.result import BenchResult, Row
from prune2deploy.bench.subjects import DENSE, PRUNED
from prune2deploy.run import RunManifest, VariantRecord

Setting = tuple[str, str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportContent:
    """Everything the pages draw from.

    ``manifest`` is None where files were measured that belong to no run, ``result`` before a benchmark. ``archive`` is
    the file of raw samples, byte for byte; what is in it stands in ``result.samples``.
    """

    manifest: RunManifest | None
    result: BenchResult | None
    archive: bytes | None = None

    @classmethod
    def from_documents(
        cls,
        manifest: RunManifest | None,
        result: Mapping[str, Any] | None,
        *,
        where: str = "result.json",
    ) -> "ReportContent":
        """From a manifest and a result document, without raw samples.

        Raises:
            InputError: the result document is damaged or of another schema version.
        """
        parsed = None if result is None else BenchResult.from_document(result, where=where)
        return cls(manifest=manifest, result=parsed)

    @property
    def title(self) -> str:
        """The model's name, or those of the files."""
        if self.manifest is not None:
            return self.manifest.model
        return ", ".join(dict.fromkeys(row.file for row in self.result.rows)) if self.result is not None else ""

    @property
    def records(self) -> Mapping[str, VariantRecord]:
        """The run's variants by name; none without a run."""
        return {} if self.manifest is None else self.manifest.variants

    @property
    def pruning(self) -> Mapping[str, Any]:
        """What the run says of its pruning; nothing without a run."""
        return {} if self.manifest is None else self.manifest.pruning

    @property
    def latency_targets(self) -> Mapping[str, Mapping[str, Any]]:
        """What was found of each variant that was cut to a latency: one, or a family; nothing without such a target."""
        members = self.pruning.get("family") or {}
        family = {name: member["latency"] for name, member in members.items() if "latency" in member}
        alone = self.pruning.get("latency")
        return family or ({} if alone is None else {PRUNED: alone})

    @property
    def notes(self) -> tuple[str, ...]:
        """Facts worth a line, from the run and from the benchmark."""
        run = () if self.manifest is None else self.manifest.notes
        measured = () if self.result is None else self.result.notes
        return tuple(dict.fromkeys((*run, *measured)))

    @property
    def names(self) -> tuple[str, ...]:
        """All variants, those of the run first: what colours and markers go by."""
        measured = () if self.result is None else (row.variant for row in self.result.rows)
        return tuple(dict.fromkeys((*self.records, *measured)))

    @property
    def baseline(self) -> str:
        """What everything is compared with."""
        return DENSE if self.result is None else self.result.baseline

    @property
    def variants(self) -> tuple[VariantRecord, ...]:
        """The run's variants, dense first."""
        return tuple(sorted(self.records.values(), key=lambda variant: variant.name != DENSE))

    @property
    def dense(self) -> VariantRecord | None:
        """The dense variant, None where the run has none."""
        return self.records.get(DENSE)

    @property
    def settings(self) -> tuple[Setting, ...]:
        """The (engine, precision, batch) that were measured, in order."""
        if self.result is None:
            return ()
        return tuple(dict.fromkeys((row.engine, row.precision, row.batch) for row in self.result.rows))

    def rows_at(self, setting: Setting) -> tuple[Row, ...]:
        """The measured rows of one setting."""
        if self.result is None:
            return ()
        return tuple(row for row in self.result.rows if (row.engine, row.precision, row.batch) == setting)

    def invalid_because(self, setting: Setting) -> str | None:
        """Why nothing can be concluded at a setting; None where something can, or where no control tells."""
        for control in self.result.controls if self.result is not None else ():
            if (control.engine, control.precision, control.batch) == setting and control.valid is False:
                return control.disturbed or f"two copies of {self.baseline} differed"
        return None

    @property
    def subject(self) -> str:
        """The variant that the report is about: ``pruned``, else the first that is not the baseline."""
        if self.result is not None:
            names = list(dict.fromkeys(row.variant for row in self.result.rows))
            if PRUNED not in names:
                return next((name for name in names if name != self.result.baseline), names[0] if names else PRUNED)
        return PRUNED

    def accuracy_of(self, variant: str) -> float | None:
        """Accuracy measured through an engine where there is one, else that of the training side."""
        if self.result is not None:
            for row in self.result.rows:
                if row.variant == variant and row.accuracy is not None:
                    return row.accuracy
        record = self.records.get(variant)
        return None if record is None else record.accuracy

    def flops_fraction_of(self, variant: str) -> float | None:
        """FLOPs relative to dense."""
        record = self.records.get(variant)
        if record is None or self.dense is None or not self.dense.flops:
            return None
        return record.flops / self.dense.flops

    def parameters_fraction_of(self, variant: str) -> float | None:
        """Parameters relative to dense."""
        record = self.records.get(variant)
        if record is None or self.dense is None or not self.dense.parameters:
            return None
        return record.parameters / self.dense.parameters


def spell_setting(setting: tuple[str, str, int | None], content: ReportContent) -> str:
    """Name a setting by what tells it from the others: ``batch 1``, or ``trt, fp16, batch 1``; it may have no batch."""
    engine, precision, batch = setting
    parts = []
    if len({other[0] for other in content.settings}) > 1:
        parts.append(engine)
    if len({other[1] for other in content.settings}) > 1:
        parts.append(precision)
    return ", ".join(parts if batch is None else [*parts, f"batch {batch}"])
