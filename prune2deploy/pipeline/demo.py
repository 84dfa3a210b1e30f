"""``p2d demo``: the whole chain on the bundled digits."""

from pathlib import Path

from prune2deploy.pipeline.bench import run_bench_command
from prune2deploy.pipeline.outcomes import DemoOutcome
from prune2deploy.pipeline.prune import run_prune
from prune2deploy.pipeline.report import run_report
from prune2deploy.pipeline.requests import (
    BenchRequest,
    DemoRequest,
    PruneRequest,
    ReportRequest,
    Targets,
    TrainingChoices,
    TrainRequest,
)
from prune2deploy.pipeline.train import run_train
from prune2deploy.progress import SILENT, Progress
from prune2deploy.run import MANIFEST, RunFolder

# Wide enough that a narrower network is a faster one, small enough to train in seconds (docs/demo.md).
MODEL = "resnet8_wide"
DATA = "digits"
FLOPS = 0.33
EPOCHS = 12
FINE_TUNING_EPOCHS = 6
BATCHES = (1, 32)


def run_demo(request: DemoRequest, progress: Progress = SILENT) -> DemoOutcome:
    """Train, prune to a third of the FLOPs, fine-tune, train the reduced variant, export, measure, report.

    Raises:
        EngineError: the engine asked for is not usable here.
        StorageError: a file cannot be written.
    """
    training_run, pruning_run = _begun(request) if request.resume else (None, None)
    trained = run_train(
        TrainRequest(
            model=MODEL,
            data=DATA,
            training=TrainingChoices(epochs=EPOCHS),
            seed=request.seed,
            resume=training_run is not None,
            out=training_run or (request.out / "training" if request.out is not None else None),
            command=request.command,
        ),
        progress,
    )
    pruning = run_prune(
        PruneRequest(
            checkpoint=trained.bundle,
            targets=Targets(flops=FLOPS),
            training=TrainingChoices(epochs=FINE_TUNING_EPOCHS),
            seed=request.seed,
            resume=pruning_run is not None,
            out=pruning_run or (request.out / "pruning" if request.out is not None else None),
            command=request.command,
        ),
        progress,
    )
    bench = run_bench_command(
        BenchRequest(
            run=pruning.run,
            engine=request.engine,
            batches=BATCHES,
            threads=request.threads,
            seed=request.seed,
            command=request.command,
        ),
        progress,
    )
    report = run_report(ReportRequest(run=pruning.run), progress)
    return DemoOutcome(pruning=pruning, bench=bench, report=report)


def _begun(request: DemoRequest) -> tuple[Path | None, Path | None]:
    """The runs that an interrupted demonstration has begun: training, and pruning if it came that far."""
    if request.out is not None:
        runs = (request.out / "training", request.out / "pruning")
        training, pruning = (run if (run / MANIFEST).is_file() else None for run in runs)
        return training, pruning
    latest = RunFolder.open()
    checkpoint = latest.manifest.options.get("checkpoint")
    if checkpoint is None:
        return latest.path, None
    return Path(checkpoint).parent, latest.path
