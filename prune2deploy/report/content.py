"""What a report is made of: a run's manifest and, where there is one, the result of its benchmark."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prune2deploy.bench.result import BenchResult, Row
from prune2deploy.bench.subjects import DENSE, PRUNED
from prune2deploy.run import RunManifest, VariantRecord

Setting = tuple[str, str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportContent:
    """Everything the pages draw from. ``result`` is None before a benchmark."""

    manifest: RunManifest
    result: BenchResult | None

    @classmethod
    def from_documents(
        cls, manifest: RunManifest, result: Mapping[str, Any] | None, *, where: str = "result.json"
    ) -> "ReportContent":
        """From a manifest and a result document.

        Raises:
            InputError: the result document is damaged or of another schema version.
        """
        parsed = None if result is None else BenchResult.from_document(result, where=where)
        return cls(manifest=manifest, result=parsed)

    @property
    def variants(self) -> tuple[VariantRecord, ...]:
        """The run's variants, dense first."""
        return tuple(sorted(self.manifest.variants.values(), key=lambda variant: variant.name != DENSE))

    @property
    def dense(self) -> VariantRecord | None:
        """The dense variant, None where the run has none."""
        return self.manifest.variants.get(DENSE)

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
        record = self.manifest.variants.get(variant)
        return None if record is None else record.accuracy

    def flops_fraction_of(self, variant: str) -> float | None:
        """FLOPs relative to dense."""
        record = self.manifest.variants.get(variant)
        if record is None or self.dense is None or not self.dense.flops:
            return None
        return record.flops / self.dense.flops

    def parameters_fraction_of(self, variant: str) -> float | None:
        """Parameters relative to dense."""
        record = self.manifest.variants.get(variant)
        if record is None or self.dense is None or not self.dense.parameters:
            return None
        return record.parameters / self.dense.parameters


def spell_setting(setting: Setting, content: ReportContent) -> str:
    """Name a setting by what tells it from the others: ``batch 1``, or ``trt, fp16, batch 1``."""
    engine, precision, batch = setting
    parts = []
    if len({other[0] for other in content.settings}) > 1:
        parts.append(engine)
    if len({other[1] for other in content.settings}) > 1:
        parts.append(precision)
    return ", ".join([*parts, f"batch {batch}"])
