"""Taking profiles: aside, after the timed rounds of a setting, and never part of them."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from prune2deploy.bench.aside.profile import Profile, profiled_layer
from prune2deploy.bench.samples import BuildSamples, Cell
from prune2deploy.bench.timed.rounds import Runner
from prune2deploy.bench.timed.timing import time_block
from prune2deploy.engines.capabilities import LayerProfiler
from prune2deploy.engines.engine import BuiltEngine
from prune2deploy.engines.onnx_work import FileWork
from prune2deploy.errors import EngineError

_PROFILED_SECONDS = 0.3
_FEWEST_RUNS, _MOST_RUNS = 3, 50
_MOST_RUNS_BESIDE = 10
_STEADY_TOLERANCE = 0.1


def profiles_of(runners: Sequence[Runner], cell: Cell, granules: Mapping[str, int]) -> list[dict[str, Any]]:
    """The profile of each variant at the setting of a cell, or why there is none.

    ``granules`` are those of the engine by precision. Each entry has variant, precision, batch, and either profile (the
    document of a ``Profile``) or reason, the other being None.
    """
    return [
        {
            "variant": runner.slot.variant,
            "precision": cell.precision,
            "batch": cell.batch,
            **_profile_or_reason(runner, cell, granules.get(cell.precision)),
        }
        for runner in runners
        if runner.slot.copy == 0
    ]


def profile_found(builds: Sequence[BuildSamples], variant: str, precision: str, batch: int) -> dict[str, Any] | None:
    """The document of the profile that a build took of a variant, None where none did."""
    return next(
        (
            entry["profile"]
            for build in builds
            for entry in build.profiles
            if (entry["variant"], entry["precision"], entry["batch"]) == (variant, precision, batch)
        ),
        None,
    )


def notes_on_profiles(builds: Sequence[BuildSamples]) -> Iterator[str]:
    """What profiling cost, and what could not be profiled and why."""
    entries = [entry for build in builds for entry in build.profiles]
    seconds = sum(entry["profile"]["seconds"] for entry in entries if entry["profile"] is not None)
    if seconds:
        yield f"profiling took {seconds:.1f} s of the first build, aside from the timed rounds"
    reasons = dict.fromkeys(entry["reason"] for entry in entries if entry["reason"] is not None)
    for reason in reasons:
        variants = dict.fromkeys(str(entry["variant"]) for entry in entries if entry["reason"] == reason)
        yield f"no profile of {', '.join(variants)}: {reason}"


def take_profile(
    engine: BuiltEngine,
    onnx_path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    whole_ns: float | None,
    granule: int | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Profile:
    """Profile what is bound, for about a third of a second: 50 runs at most, three of a slow network.

    ``shapes`` are those of the bound inputs by name, ``whole_ns`` the median of the timed runs.

    Raises:
        EngineError: this engine does not tell how long its layers take, here or at all.
    """
    if not isinstance(engine, LayerProfiler):
        raise EngineError("the engine does not tell how long its layers take", where=str(onnx_path))
    begun = clock()
    engine.run()
    (first_ns,) = time_block(engine.run, 1)
    runs = max(_FEWEST_RUNS, min(_MOST_RUNS, round(_PROFILED_SECONDS * 1e9 / max(first_ns, 1))))
    before = time_block(engine.run, min(runs, _MOST_RUNS_BESIDE))
    told = engine.profile_layers(runs)
    engine.run()
    after = time_block(engine.run, min(runs, _MOST_RUNS_BESIDE))
    if not any(layer.latency_ns > 0 for layer in told.layers):
        reason = (
            "all layers take less time than the profiler can tell" if told.layers else "the profiler tells no layer"
        )
        raise EngineError(reason, where=str(onnx_path))
    work = FileWork(onnx_path, shapes)
    return Profile(
        layers=tuple(profiled_layer(layer, work) for layer in told.layers),
        whole_ns=whole_ns,
        profiled_ns=told.run_ns,
        beside_ns=float(median(before + after)),
        runs=runs,
        granule=granule,
        told_by=told.told_by,
        left_out=(*told.left_out, *_cautions(median(before), median(after), queued=whole_ns is None)),
        seconds=clock() - begun,
    )


def _cautions(before_ns: float, after_ns: float, *, queued: bool) -> Iterator[str]:
    if queued:
        yield "what was timed was a full queue; the profile is of single runs, one after the other"
    apart = max(before_ns, after_ns) / min(before_ns, after_ns) - 1
    if apart > _STEADY_TOLERANCE:
        yield f"the machine was not steady: runs before and after a profile differ by {apart:.0%}"


def _profile_or_reason(runner: Runner, cell: Cell, granule: int | None) -> dict[str, Any]:
    runner.engine.bind(runner.buffers[0])
    shapes = {name: tuple(array.shape) for name, array in runner.buffers[0].items()}
    timed = (cell if cell.counts else cell.with_disturbed_rounds()).samples_of(runner.slot.variant)
    whole_ns = float(median(timed)) if timed else None
    try:
        profile = take_profile(runner.engine, Path(runner.where), shapes, whole_ns=whole_ns, granule=granule)
    except EngineError as error:
        return {"profile": None, "reason": error.what}
    return {"profile": profile.to_document(), "reason": None}
