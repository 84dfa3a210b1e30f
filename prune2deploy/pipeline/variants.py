"""Keeping a variant: its bundle on disk and its line in the manifest."""

from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from prune2deploy.budget.plan import PrunePlan
from prune2deploy.checkpoint.bundle import save_bundle
from prune2deploy.data.splits import DataSplits
from prune2deploy.pipeline.outcomes import VariantRow
from prune2deploy.pipeline.subject import Subject
from prune2deploy.processes import on_main
from prune2deploy.run import RunFolder, RunManifest, VariantRecord


def keep_variant(
    run: RunFolder,
    name: str,
    model: nn.Module,
    subject: Subject,
    *,
    plan: PrunePlan | None,
    splits: DataSplits | None,
    flops: int,
    parameters: int,
    accuracies: Mapping[str, float],
    training: Mapping[str, Any],
    epochs: int | None,
) -> None:
    """Write the bundle of a variant and enter it in the manifest. ``epochs`` counts all its training so far.

    With several processes all must call it; the main one's weights and accuracies are kept.

    Raises:
        StorageError: it cannot be written; the run is as it was.
    """
    normalization = splits.normalization if splits is not None else subject.normalization
    metrics = {"flops": flops, "parameters": parameters, **accuracies}
    provenance = {
        "variant": name,
        "command": list(run.manifest.command),
        "epochs": epochs,
        "training": dict(training),
    }

    def write() -> None:
        save_bundle(
            run.bundle_path(name),
            model,
            spec=subject.spec,
            plan=_since_the_start(subject.plan, plan),
            input_shape=subject.input_shape,
            class_names=splits.class_names if splits is not None else (),
            data=splits.name if splits is not None else subject.data,
            normalization=None if normalization is None else (normalization.mean, normalization.std),
            provenance=provenance,
            metrics=metrics,
        )

    on_main(write)
    run.save_variant(
        VariantRecord(
            name=name,
            bundle=name,
            flops=flops,
            parameters=parameters,
            accuracies=dict(accuracies),
            training=dict(training),
        )
    )


def variant_rows(manifest: RunManifest) -> tuple[VariantRow, ...]:
    """The manifest's variants as rows, cost as a share of dense."""
    dense = manifest.variants["dense"]
    return tuple(
        VariantRow(
            name=record.name,
            flops=record.flops,
            flops_fraction=record.flops / max(dense.flops, 1),
            parameters=record.parameters,
            parameters_fraction=record.parameters / max(dense.parameters, 1),
            accuracy=record.accuracy,
        )
        for record in manifest.variants.values()
    )


def training_costs(manifest: RunManifest, *, without: Collection[str] = ()) -> dict[str, Mapping[str, Any]]:
    """What the training of each variant cost, of those that were trained; ``without`` names the ones to leave out."""
    return {
        name: record.training["cost"]
        for name, record in manifest.variants.items()
        if "cost" in record.training and name not in without
    }


def _since_the_start(first: PrunePlan | None, second: PrunePlan | None) -> PrunePlan | None:
    """What was cut out of the architecture in all, where a pruned model is pruned again."""
    if first is None or second is None:
        return second or first
    return first.then(second)
