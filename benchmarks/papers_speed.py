"""ONNX Runtime latencies of the networks that ``papers.py`` trained, by the protocol of ``p2d bench``."""

import time
from pathlib import Path
from typing import Any

from papers_cells import TARGETS, TIMED_SEED

from prune2deploy.bench.measure import run_bench
from prune2deploy.bench.subjects import BenchOptions, BenchRequest, Subject
from prune2deploy.engines.onnx_file import read_onnx_file

BATCHES = (1, 32)
BUILDS = 5
SECONDS = 100.0
_MADE = {
    "dense": ("dense/1", "dense"),
    "3sp": ("3sp/{target}", "pruned"),
    "3sp-plain": ("3sp-plain/{target}", "pruned"),
    "epi": ("epi/{target}", "pruned"),
    "fisher": ("fisher/{target}", "pruned"),
    "l1": ("l1/{target}", "pruned"),
    "fisher-at-once": ("fisher-at-once/{target}", "pruned"),
    "reduced": ("fisher/{target}", "reduced"),
    "bottleneck": ("fisher/{target}", "bottleneck"),
    "fisher-unaligned": ("fisher-unaligned/{target}", "pruned"),
    "reduced-unaligned": ("fisher-unaligned/{target}", "reduced"),
}
_SIZED = {
    "dense": ("dense/1", "dense"),
    **{f"prunetrain-{ratio}": (f"prunetrain/{ratio}", "pruned") for ratio in ("0.2", "0.4", "0.6")},
    **{f"density-{rounds}": (f"activation-density/{rounds}", "pruned") for rounds in (1, 2, 3)},
}


def time_networks(document: dict[str, Any], task: str, model: str, folder: Path, *, deadline: float) -> None:
    """Time the networks of one task and model, one interleaved measurement a target; fills ``document["speeds"]``."""
    comparisons = {f"{target:g}": _MADE for target in TARGETS} | {"self-sized": _SIZED}
    for target, made in comparisons.items():
        key = f"{task}/{model}/{target}".replace(":", "-")
        files = {
            name: folder / f"{task}/{model}/{cell.format(target=target)}/{TIMED_SEED}/{variant}.onnx".replace(":", "-")
            for name, (cell, variant) in made.items()
        }
        present = {name: file for name, file in files.items() if file.is_file()}
        if key in document["speeds"] or len(present) < 2 or "dense" not in present or time.monotonic() > deadline:
            continue
        subjects = tuple(
            Subject(variant=name, precision="fp32", onnx_path=file, sha256=read_onnx_file(file).sha256)
            for name, file in present.items()
        )
        options = BenchOptions(threads=1, builds=BUILDS, max_seconds=SECONDS)
        result = run_bench(BenchRequest(subjects=subjects, engine="ort-cpu", batches=BATCHES, options=options))
        document["speeds"][key] = {
            f"{row.variant}/{row.batch}": {
                "p50_ns": row.latency_ns.p50,
                **{
                    one.against: {
                        "estimate": one.interval.estimate,
                        "low": one.interval.low,
                        "high": one.interval.high,
                    }
                    for one in row.speedups
                },
            }
            for row in result.rows
        }
        print(f"timed {key}", flush=True)
