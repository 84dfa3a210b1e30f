"""Accuracy at equal importance: small networks on digits and textures, each plan fine-tuned in the same way."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from latency_cells import DENSE, FLOPS, LATENCY, TARGET, TORCH_PRUNING, against, time_models, told_rows
from latency_plans import Rival, TorchPruning, by_flops, importance_of, made

from prune2deploy.budget.alignment import granule_for
from prune2deploy.budget.ladder import Ladder
from prune2deploy.importance.criteria import criterion_named, score_channels
from prune2deploy.latency.setting import Setting
from prune2deploy.pipeline.backends import MODULE, find_channels
from prune2deploy.pipeline.cutting import CutChoices
from prune2deploy.pipeline.latency.search import latency_of_engine
from prune2deploy.pipeline.requests import LatencyTarget, TrainingChoices, TrainRequest
from prune2deploy.pipeline.subject import load_subject_data, open_subject
from prune2deploy.pipeline.train import run_train
from prune2deploy.training.evaluate import evaluate
from prune2deploy.training.loop import train
from prune2deploy.training.recalibrate import recalibrate_batchnorm
from prune2deploy.training.recipe import fine_tuning_defaults

TASKS = ("textures", "digits")
MODELS = ("resnet8_wide", "resnet20")
EPOCHS = 12
TUNING_EPOCHS = 5
BUILDS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyCell:
    """One training of one network."""

    task: str
    model: str
    seed: int

    @property
    def key(self) -> str:
        """Its name in the result."""
        return f"{self.task}/{self.model}/{self.seed}"


def accuracy_cells(seeds: int) -> Iterator[AccuracyCell]:
    """All cells, seed by seed, so that what is there when it is stopped is of use."""
    for model in MODELS:
        for seed in range(seeds):
            for task in TASKS:
                yield AccuracyCell(task=task, model=model, seed=seed)


def run_accuracy(cell: AccuracyCell, work: Path) -> dict[str, Any]:
    """Train, cut to half of the latency, make the rivals of equal importance, fine-tune all alike, and time them."""
    folder = work / "small" / cell.key.replace("/", "-")
    if not (folder / "dense").is_dir():
        training = TrainingChoices(epochs=EPOCHS)
        run_train(TrainRequest(model=cell.model, data=cell.task, training=training, seed=cell.seed, out=folder))
    subject = open_subject(folder / "dense", model=None, input_shape=None, trust_pickle=False)
    splits = load_subject_data(subject, None)
    assert splits is not None
    model = subject.model.eval()
    image = torch.randn(1, *subject.input_shape, generator=torch.Generator().manual_seed(cell.seed))
    channels = find_channels(model, (image,), backend=MODULE)
    graph = channels.graph
    scores = score_channels(graph, model, None, criterion=criterion_named("l2"), seed=cell.seed)
    setting = Setting(engine="ort-cpu", threads=1)
    granule = granule_for(setting.engine, setting.precision)
    ladder = Ladder.of(graph, scores, granule)
    with tempfile.TemporaryDirectory() as scratch:
        engine = latency_of_engine(model, channels, subject.input_shape, setting, granule=granule, folder=Path(scratch))
        choices = CutChoices(budget=None, method="l2", ranking="optimal", default_granule=granule)
        fitted = engine.fit(LatencyTarget(fraction=TARGET), choices, scores)
        kept = fitted.best.allocation.kept
        importance = importance_of(ladder, kept)
        peer = TorchPruning(model=model, graph=graph, ladder=ladder, image=image)
        rivals, failed = made(
            [
                (FLOPS, lambda: by_flops(model, channels, scores, importance=importance, granule=granule)),
                (TORCH_PRUNING, lambda: peer.keeping(importance)),
            ]
        )
        ours = Rival(
            model=engine.pruned(kept),
            importance=importance,
            flops_fraction=graph.cost.flops(kept) / graph.cost.dense_flops,
        )
        models = {LATENCY: ours, **rivals}
        result = time_models(
            setting, {DENSE: model}, models, Path(scratch), builds=BUILDS, input_shape=subject.input_shape
        )
    rows = told_rows(result, models)
    rows[DENSE]["accuracy"] = evaluate(model, splits.evaluation).accuracy
    for name, rival in models.items():
        recalibrate_batchnorm(rival.model, splits.calibration, seed=cell.seed)
        tuned = train(rival.model, splits, fine_tuning_defaults(epochs=TUNING_EPOCHS, seed=cell.seed))
        rows[name]["accuracy"] = tuned.accuracy
    return {
        "task": cell.task,
        "model": cell.model,
        "seed": cell.seed,
        "target": TARGET,
        "variants": rows,
        "failed": failed,
        "against": {name: against(result, name) for name in rivals},
        "met": fitted.met,
        "valid": all(one.passed for one in result.controls) and not any("INVALID" in note for note in result.notes),
    }
