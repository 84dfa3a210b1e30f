"""The cells of ``papers.py``: what is trained, and how one cell is run through the package's own commands."""

import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from prune2deploy.checkpoint.bundle import load_bundle
from prune2deploy.errors import TargetError
from prune2deploy.export.onnx_from_model import export_onnx
from prune2deploy.pipeline.prune import run_prune
from prune2deploy.pipeline.requests import MethodChoices, PruneRequest, Targets, TrainingChoices, TrainRequest
from prune2deploy.pipeline.train import run_train
from prune2deploy.run import RunFolder, VariantRecord

EPOCHS = 15
TUNING_EPOCHS = 8
TARGETS = (0.33, 0.5, 0.15)
# PruneTrain needs many small steps: in 15 epochs it kills nothing. So it has a dense control of its own schedule.
PRUNETRAIN_BATCH = 32
PRUNETRAIN_EPOCHS = 80
PRUNETRAIN_INTERVAL = 10
PENALTY_RATIOS = (0.4, 0.6, 0.2)
ROUNDS = (1, 2, 3)
GRID_EPOCHS = (0, 1, 3, 6, 9)
# The paper compares over 5 epochs of 90; with so few epochs that alone would put off pruning by a third of them.
WINDOW = 3
CUTS = 20
TIMED_SEED = 0
FEW_SEEDS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One training or pruning. ``amount`` is the target, the penalty ratio or the number of rounds; 1 for dense."""

    task: str
    model: str
    method: str
    amount: float
    seed: int
    options: dict[str, Any] = field(default_factory=dict)
    variants: tuple[str, ...] = ("pruned",)

    @property
    def key(self) -> str:
        """Its name in the result."""
        return f"{self.task}/{self.model}/{self.method}/{self.amount:g}/{self.seed}".replace(":", "-")


def cells_of(task: str, model: str, seeds: int) -> Iterator[list[Cell]]:
    """The cells of one task and network in groups, each of which may need the one before it."""

    def each(method: str, amount: float, *, count: int = seeds, **more: Any) -> list[Cell]:
        return [Cell(task=task, model=model, method=method, amount=amount, seed=seed, **more) for seed in range(count)]

    yield each("dense", 1)
    for target in TARGETS:
        few = seeds if target == TARGETS[0] else min(seeds, FEW_SEEDS)
        group = each("3sp", target, count=few, options={"per": "marginal"})
        group += each("3sp-plain", target, count=few, options={"per": "none"})
        group += each("epi", target, count=few, options={"criterion": "taylor", "window": WINDOW})
        comparisons = ("dense", "pruned", "reduced", "bottleneck", "scratch")
        if model.startswith("vgg"):
            comparisons = ("dense", "pruned", "reduced", "scratch")
        group += each("fisher", target, count=few, variants=comparisons)
        group += each("l1", target, count=few)
        group += each("fisher-at-once", target, count=few)
        if target == TARGETS[0]:
            group += each("fisher-unaligned", target, count=1, variants=("dense", "pruned", "reduced"))
            group += each("3sp-own-layer", target, count=few, options={"per": "own-layer"})
            group += each("epi-magnitude", target, count=few, options={"criterion": "l2", "window": WINDOW})
        yield group
        if target == TARGETS[0]:
            for rounds in ROUNDS:
                yield each("activation-density", rounds, count=FEW_SEEDS, options={"max_rounds": rounds, "window": 2})
            for epoch in GRID_EPOCHS:
                yield each(
                    f"epi-at-{epoch}",
                    target,
                    count=FEW_SEEDS,
                    options={"criterion": "taylor", "prune_epoch": epoch},
                )
    yield each("dense-small-batch", 1, count=FEW_SEEDS)
    for ratio in PENALTY_RATIOS:
        yield each(
            "prunetrain",
            ratio,
            count=FEW_SEEDS,
            options={"ratio": ratio, "interval": PRUNETRAIN_INTERVAL},
        )


def run_cell(cell: Cell, folder: Path) -> dict[str, Any]:
    """Run a cell and return its record. Dense bundles and, of one seed, ONNX files are left in ``folder``."""
    out = folder / "runs" / cell.key
    shutil.rmtree(out, ignore_errors=True)
    try:
        run = _run(cell, folder, out)
    except TargetError as error:
        return {**asdict(cell), "failed": str(error)}
    manifest = run.manifest
    record = {
        **asdict(cell),
        "variants": {
            name: _measured(variant, manifest.variants["dense"])
            for name, variant in manifest.variants.items()
            if name in (*cell.variants, "pruned") or cell.method.startswith("dense")
        },
        "findings": _short(manifest.variants["pruned"].training["findings"] if "pruned" in manifest.variants else {}),
        "notes": list(manifest.notes),
    }
    if cell.seed == TIMED_SEED and not cell.method.startswith("epi-at"):
        for name in record["variants"]:
            _export(run, name, folder / "onnx" / f"{cell.key}/{name}.onnx")
    if cell.method == "dense":
        kept = dense_bundle(folder, cell)
        shutil.rmtree(kept, ignore_errors=True)
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(run.bundle_path("dense"), kept)
    shutil.rmtree(out)
    return record


def dense_bundle(folder: Path, cell: Cell) -> Path:
    """Where the dense network lies that a cell prunes."""
    return folder / "dense" / f"{cell.task}-{cell.model}-{cell.seed}"


def _run(cell: Cell, folder: Path, out: Path) -> RunFolder:
    training = TrainingChoices(epochs=EPOCHS)
    if cell.method in ("dense-small-batch", "prunetrain"):
        training = TrainingChoices(epochs=PRUNETRAIN_EPOCHS, batch_size=PRUNETRAIN_BATCH)
    method = _TRAINED.get(cell.method.partition("-at-")[0])
    if cell.method.startswith("dense"):
        outcome: Any = run_train(
            TrainRequest(model=cell.model, data=cell.task, training=training, seed=cell.seed, out=out)
        )
    elif method is not None:
        targets = None if method in ("prunetrain", "activation-density") else Targets(flops=cell.amount)
        outcome = run_train(
            TrainRequest(
                model=cell.model,
                data=cell.task,
                method=method,
                pruning=MethodChoices(options=cell.options, targets=targets, variants=cell.variants),
                training=training,
                seed=cell.seed,
                out=out,
            )
        )
    else:
        fisher = cell.method.startswith("fisher")
        outcome = run_prune(
            PruneRequest(
                checkpoint=dense_bundle(folder, cell),
                targets=Targets(flops=cell.amount),
                data=cell.task,
                method="fisher" if fisher else cell.method,
                cuts=CUTS if fisher and not cell.method.endswith("at-once") else None,
                alignment=1 if cell.method.endswith("unaligned") else None,
                variants=cell.variants,
                training=TrainingChoices(epochs=TUNING_EPOCHS),
                seed=cell.seed,
                out=out,
            )
        )
    return RunFolder.open(outcome.run)


_TRAINED = {
    "3sp": "3sp",
    "3sp-plain": "3sp",
    "3sp-own-layer": "3sp",
    "epi": "epi",
    "epi-magnitude": "epi",
    "prunetrain": "prunetrain",
    "activation-density": "activation-density",
}


def _measured(variant: VariantRecord, dense: VariantRecord) -> dict[str, Any]:
    """Accuracy, sizes and cost of one variant."""
    cost = variant.training.get("cost", {})
    return {
        "accuracy": variant.accuracy,
        "flops_fraction": variant.flops / dense.flops,
        "parameters_fraction": variant.parameters / dense.parameters,
        "training_flops": cost.get("training_flops"),
        "training_flops_fraction": cost.get("flops_fraction"),
        "seconds": cost.get("seconds"),
        "images_per_second": variant.training.get("images_per_second"),
        "epochs": len(variant.training.get("history", ())),
    }


def _short(findings: dict[str, Any]) -> dict[str, Any]:
    """The numbers among the findings, and the epoch that EPI chose; curves stay in the runs."""
    plain = (int, float, str, bool)
    short = {name: value for name, value in findings.items() if isinstance(value, plain)}
    return short | ({"pruned": findings["pruned"]} if "pruned" in findings else {})


def _export(run: RunFolder, variant: str, file: Path) -> None:
    bundle = load_bundle(run.bundle_path(variant))
    file.parent.mkdir(parents=True, exist_ok=True)
    export_onnx(bundle.model.eval(), file, input_shape=tuple(run.manifest.input_shape))
