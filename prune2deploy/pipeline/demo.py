"""``p2d demo``: the whole chain on the bundled digits."""

from pathlib import Path

from prune2deploy.pipeline.bench import run_bench_command
from prune2deploy.pipeline.measurable import usable_engine
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
from prune2deploy.run import LATEST, MANIFEST, RUNS_FOLDER, RunFolder

# Wide enough that a narrower network is a faster one, small enough to train in seconds (docs/demo.md).
MODEL = "resnet8_wide"
DATA = "digits"
FLOPS = 0.33
EPOCHS = 12
FINE_TUNING_EPOCHS = 8
# On so few groups data-free magnitudes give every layer the same share; Fisher tells the layers apart.
METHOD = "fisher"
BATCHES = (1, 32)
# One thread repeats best, and a bounded measurement keeps the whole within three minutes on two cores.
THREADS = 1
BENCH_SECONDS = 60.0


def run_demo(request: DemoRequest, progress: Progress = SILENT) -> DemoOutcome:
    """Train, prune to a third of the FLOPs, fine-tune, train the reduced variant, export, measure, report.

    Raises:
        EngineError: the engine asked for is not usable here.
        StorageError: a file cannot be written.
    """
    usable_engine(request.engine)
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
            method=METHOD,
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
            threads=request.threads or THREADS,
            max_seconds=BENCH_SECONDS,
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
    if not (Path(RUNS_FOLDER) / LATEST / MANIFEST).is_file():
        return None, None
    latest = RunFolder.open()
    if latest.manifest.command[:2] != request.command[:2]:
        return None, None
    checkpoint = latest.manifest.options.get("checkpoint")
    if checkpoint is None:
        return latest.path, None
    return Path(checkpoint).parent, latest.path
