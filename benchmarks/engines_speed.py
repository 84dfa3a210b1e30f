"""How much faster int8 is than fp32 on one engine: interleaved in each of several fresh processes.

``p2d bench`` compares variants of one precision; here two precisions of one variant are compared by the same means:
random order in every round, a second fp32 engine as control, the ratio of medians of each process, a t interval over
the processes.
"""

import argparse
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from cell_process import CellProcess
from engines_cells import INT8, export_cell, limit_threads, onnx_file, prepare_cell, style_for_engine
from engines_networks import EVALUATION

from prune2deploy.bench.machine.affinity import pick_cpus, pin
from prune2deploy.bench.statistics.intervals import control_passes, ratio_interval
from prune2deploy.bench.timed.schedule import build_order, round_orders
from prune2deploy.bench.timed.timing import collection_paused, iterations_for, time_block, warm_up
from prune2deploy.engines.engine import BuildOptions
from prune2deploy.engines.registry import engine_named
from prune2deploy.evaluation import EvaluationSet

THREADS = 1
VARIANT = "dense"
_ROUNDS = 20
_BLOCK_SECONDS = 0.2
_SLOTS = ("fp32", INT8, "fp32")


def time_int8(name: str, engine: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The record of one engine: medians in ms, the speed-up of int8 and the control, each with its interval."""
    folder = arguments.work / name
    process = CellProcess(limit_threads, THREADS)
    try:
        made = process.ask(prepare_cell, name, folder, (VARIANT,), arguments.side, seconds=arguments.seconds)
        if "failed" in made:
            return made
        for precision in dict.fromkeys(_SLOTS):
            style = style_for_engine(precision, engine)
            if not onnx_file(folder, VARIANT, precision, style).is_file():
                exported = process.ask(export_cell, folder, VARIANT, precision, style, seconds=arguments.seconds)
                if "failed" in exported:
                    return exported
        builds = []
        for build in range(arguments.builds):
            # Each build has a process of its own, as in `p2d bench`.
            process.end()
            timed = process.ask(timed_build, folder, engine, build, seconds=arguments.seconds)
            if "failed" in timed:
                return timed
            builds.append(timed)
    finally:
        process.end()
    medians = np.array([build["medians_ns"] for build in builds], dtype=np.float64)
    control = ratio_interval(list(medians[:, 0]), list(medians[:, 2]), confidence=0.999)
    return {
        "network": name,
        "threads": THREADS,
        "fp32_ms": float(np.median(medians[:, 0])) / 1e6,
        "int8_ms": float(np.median(medians[:, 1])) / 1e6,
        "speedup": asdict(ratio_interval(list(medians[:, 0]), list(medians[:, 1]))),
        "control": asdict(control),
        "control_passed": control_passes(control),
        "census": builds[0]["census"],
        "style": style_for_engine(INT8, engine),
        "builds": builds,
    }


def timed_build(folder: Path, engine_name: str, build: int) -> dict[str, Any]:
    """Build fp32, int8 and fp32 again in random order, and time them in interleaved rounds. Medians in ns."""
    pin(pick_cpus(THREADS))
    engine = engine_named(engine_name)
    images = EvaluationSet.load(folder / EVALUATION).inputs[:1]
    engines: list[Any] = [None] * len(_SLOTS)
    try:
        for slot in build_order(len(_SLOTS), seed=0, build=build):
            path = onnx_file(folder, VARIANT, _SLOTS[slot], style_for_engine(_SLOTS[slot], engine_name))
            engines[slot] = engine.build(path, BuildOptions(precision=_SLOTS[slot], threads=THREADS))
            engines[slot].bind({engines[slot].inputs[0].name: images})
        with collection_paused():
            counts = [
                iterations_for(warm_up(one.run, block_seconds=_BLOCK_SECONDS).latency_ns, _BLOCK_SECONDS)
                for one in engines
            ]
            samples: list[list[int]] = [[] for _ in engines]
            for order in islice(round_orders(len(engines), seed=0, build=build, cell=0), _ROUNDS):
                for slot in order:
                    engines[slot].run()
                    samples[slot] += time_block(engines[slot].run, counts[slot])
        return {"medians_ns": [median(one) for one in samples], "census": engines[1].inspect().get("census")}
    finally:
        for one in engines:
            if one is not None:
                one.close()
